"""Schedules at points that can be worked out by hand, and what holds at every point."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from llmtrain.config.groups.scheduler import (
    ConstantConfig,
    CosineConfig,
    InverseSqrtConfig,
    LinearConfig,
    SchedulerConfig,
    WSDConfig,
)
from llmtrain.errors import ConfigError
from llmtrain.optim.scheduler import apply_lr, make_schedule

POINTS = [
    (ConstantConfig(), 10, {0: 1.0, 9: 1.0}),
    (ConstantConfig(warmup_steps=4), 10, {0: 0.25, 1: 0.5, 3: 1.0, 4: 1.0, 99: 1.0}),
    (LinearConfig(warmup_steps=0), 10, {0: 1.0, 5: 0.5, 9: 0.1, 10: 0.0, 50: 0.0}),
    (LinearConfig(warmup_steps=2, min_lr_ratio=0.2), 10, {0: 0.5, 2: 1.0, 6: 0.6, 10: 0.2}),
    (LinearConfig(warmup_steps=2, decay_steps=4), 10, {4: 0.5, 6: 0.0, 9: 0.0}),
    (CosineConfig(warmup_steps=0), 10, {0: 1.0, 5: 0.55, 10: 0.1, 12: 0.1}),
    (CosineConfig(warmup_steps=10), 40, {9: 1.0, 10: 1.0, 20: 0.1 + 0.9 * 0.75, 25: 0.55}),
    (WSDConfig(warmup_steps=5), 100, {4: 1.0, 50: 1.0, 90: 1.0, 95: 0.5, 99: 0.1, 100: 0.0}),
    (WSDConfig(decay_steps=20, min_lr_ratio=0.5), 100, {80: 1.0, 90: 0.75, 100: 0.5}),
    (InverseSqrtConfig(warmup_steps=100), 10, {0: 0.01, 99: 1.0, 399: 0.5, 9_999: 0.1}),
    (CosineConfig(), 5000, {0: 0.01, 49: 0.5, 99: 1.0, 100: 1.0}),
    (LinearConfig(), 50, {0: 0.2, 4: 1.0, 5: 1.0, 50: 0.0}),
    (InverseSqrtConfig(warmup_steps=0), 10, {0: 1.0, 3: 0.5}),
]


@pytest.mark.parametrize(("config", "total", "points"), POINTS)
def test_known_points(config: SchedulerConfig, total: int, points: dict[int, float]) -> None:
    schedule = make_schedule(config, total)
    for step, factor in points.items():
        assert schedule(step) == pytest.approx(factor, abs=1e-12), step


@st.composite
def schedules(draw: st.DrawFn) -> tuple[SchedulerConfig, int]:
    """A configuration that fits, and its total_steps."""
    total = draw(st.integers(2, 300))
    warmup = draw(st.integers(0, total - 1))
    ratio = draw(st.floats(0, 1))
    decay = draw(st.none() | st.integers(1, total - warmup))
    cls = draw(
        st.sampled_from([ConstantConfig, LinearConfig, CosineConfig, WSDConfig, InverseSqrtConfig])
    )
    if cls in (ConstantConfig, InverseSqrtConfig):
        return cls(warmup_steps=warmup), total
    return cls(warmup_steps=warmup, min_lr_ratio=ratio, decay_steps=decay), total


@given(schedules())
def test_bounds_monotony_and_continuity(case: tuple[SchedulerConfig, int]) -> None:
    config, total = case
    schedule = make_schedule(config, total)
    warmup = config.warmup_steps
    floor = getattr(config, "min_lr_ratio", 0.0)
    values = [schedule(step) for step in range(2 * total)]
    assert all(0 < value <= 1 for value in values[: max(1, warmup)])
    assert all(floor <= value <= 1 for value in values[warmup:])
    assert values[:warmup] == sorted(values[:warmup])
    assert values[warmup:] == sorted(values[warmup:], reverse=True)
    assert values[max(0, warmup - 1)] == pytest.approx(1.0)
    decay = getattr(config, "decay_steps", None)
    if decay is None:
        wsd = isinstance(config, WSDConfig)
        decay = min(max(1, total // 10), total - warmup) if wsd else total - warmup
    # steepest: 1 / warmup going up, pi / 2 / decay (cosine) or 1 / 2 / warmup (root) going down
    steepest = max(1 / max(1, warmup), math.pi / 2 / decay)
    if isinstance(config, ConstantConfig | InverseSqrtConfig):
        steepest = 1 / max(1, warmup)
    for before, after in itertools.pairwise(values):
        assert abs(after - before) <= steepest * (1 + 1e-9)
    if hasattr(config, "min_lr_ratio"):
        assert values[total] == pytest.approx(floor)


@pytest.mark.parametrize("cls", [LinearConfig, CosineConfig, WSDConfig])
def test_a_warmup_without_a_fall_is_refused(cls: type[SchedulerConfig]) -> None:
    with pytest.raises(ConfigError, match=r"scheduler\.warmup_steps=20.*train\.steps=20.*try"):
        make_schedule(cls(warmup_steps=20), 20)


@pytest.mark.parametrize("cls", [ConstantConfig, InverseSqrtConfig])
def test_a_long_warmup_is_fine_where_nothing_falls(cls: type[SchedulerConfig]) -> None:
    assert make_schedule(cls(warmup_steps=100), 20)(19) == pytest.approx(0.2)


def test_wsd_phases_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"scheduler\.decay_steps=15.*try.*10 or less"):
        make_schedule(WSDConfig(warmup_steps=10, decay_steps=15), 20)


def test_an_unknown_name_is_refused_with_a_hint() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'cosine'"):
        make_schedule(SchedulerConfig(name="cosin"), 20)


def test_apply_lr_writes_every_group_of_every_optimizer() -> None:
    a, b = (nn.Parameter(torch.zeros(2)) for _ in range(2))
    optimizers = [torch.optim.SGD([{"params": [a]}, {"params": [b]}]), torch.optim.Adam([a])]
    assert apply_lr(optimizers, 0.5, 0.25) == 0.125
    assert [g["lr"] for o in optimizers for g in o.param_groups] == [0.125] * 3
