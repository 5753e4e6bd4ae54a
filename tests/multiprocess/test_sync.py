"""Replicas that train apart compute what the papers' formulas say, on any layout inside."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from llmtrain.sync.fragment import names_in, split_names
from tests.support.apart import Streaming, Weights, average, train_apart
from tests.support.distributed import RankPool
from tests.support.runs import metric_lines, tiny_run, train_frozen

pytestmark = pytest.mark.multiprocess

Pools = Callable[[int], RankPool]

STEPS = 12

EXACT_RTOL = 1e-12
"""fp64, the same numbers added up in another order."""

LAYOUT_RTOL = 1e-9
"""fp64, other layouts inside a replica: as in the parity matrix of `test_parallel.py`."""


def _run(folder: Path, pool: Pools, words: str, *, ranks: int = 2) -> tuple[Weights, Path]:
    """Train and return rank 0's whole weights, having seen that all ranks hold the same."""
    overrides = words.split()
    if not any(word.startswith("strategy=") for word in overrides):
        overrides.append("strategy=data")
    run_dir = tiny_run(folder, f"train.steps={STEPS}", *overrides, world_size=ranks)
    everyones: list[Weights] = pool(ranks).run(train_frozen, run_dir)
    for weights in everyones[1:]:
        for name, value in weights.items():
            if name in everyones[0]:
                assert torch.equal(value, everyones[0][name]), name
    merged: Weights = {}
    for weights in everyones:
        merged |= weights
    return merged, run_dir


def _apart(a: Weights, b: Weights) -> float:
    """Return the largest difference, relative to each tensor's largest element."""
    return max(
        float((a[name] - b[name]).abs().max() / b[name].abs().max().clamp(min=1e-3)) for name in b
    )


def _losses(run_dir: Path) -> list[float]:
    return [line["loss"] for line in metric_lines(run_dir)]


@pytest.mark.parametrize(
    ("words", "share", "near"),
    [
        ("sync.compression=fp16", 0.5, 2e-3),
        ("sync.compression=powersgd sync.powersgd_rank=2 sync.powersgd_start_step=0", 0.4, 0.05),
    ],
)
def test_compressed_gradients_train_nearly_as_plain_ones(
    words: str, share: float, near: float, tmp_path: Path, rank_pool: Pools
) -> None:
    _, plain = _run(tmp_path / "plain", rank_pool, "train.precision=fp32")
    _, packed = _run(tmp_path / "packed", rank_pool, f"train.precision=fp32 {words}")
    assert _losses(packed) == pytest.approx(_losses(plain), rel=near)
    assert _losses(packed) != _losses(plain)
    sent = [metric_lines(run)[-1]["comm_bytes"] for run in (packed, plain)]
    assert sent[0] / sent[1] <= share


@pytest.mark.parametrize("optimizer", ["sgd", "momentum"])
def test_averaging_every_step_is_allreduce(
    optimizer: str, tmp_path: Path, rank_pool: Pools
) -> None:
    # Not so for AdamW: the mean of Adam's steps is not Adam's step of the mean. Nor with clipping.
    common = f"optimizer={optimizer} train.max_grad_norm=0"
    one, _ = _run(tmp_path / "one", rank_pool, common)
    local, run_dir = _run(
        tmp_path / "local", rank_pool, f"{common} sync=local_sgd sync.sync_every_steps=1"
    )
    assert _apart(local, one) < EXACT_RTOL
    assert len(_losses(run_dir)) == STEPS


def test_outer_sgd_of_1_is_averaging(tmp_path: Path, rank_pool: Pools) -> None:
    outer = "sync.outer_lr=1.0 sync.outer_momentum=0.0"
    averaged, first = _run(
        tmp_path / "a", rank_pool, "sync=local_sgd sync.sync_every_steps=5 model.dropout=0.1"
    )
    stepped, second = _run(
        tmp_path / "b", rank_pool, f"sync=diloco sync.sync_every_steps=5 model.dropout=0.1 {outer}"
    )
    assert _apart(stepped, averaged) < EXACT_RTOL
    assert _losses(first) == pytest.approx(_losses(second), rel=EXACT_RTOL)


@pytest.mark.parametrize("mode", ["local_sgd", "diloco", "gossip"])
def test_the_synchronous_start_is_allreduce_bitwise(
    mode: str, tmp_path: Path, rank_pool: Pools
) -> None:
    common = "train.precision=fp32 model.dropout=0.1"
    _, one = _run(tmp_path / "one", rank_pool, common)
    _, late = _run(
        tmp_path / "late", rank_pool,
        f"{common} sync={mode} sync.sync_every_steps=3 sync.warmup_sync_steps=6",
    )  # fmt: skip
    # The seventh is computed from the weights after six.
    assert _losses(late)[:7] == _losses(one)[:7]
    assert _losses(late)[7:] != _losses(one)[7:]


@pytest.mark.parametrize("warmup", [0, 5])
def test_local_sgd_is_the_plain_loop(warmup: int, tmp_path: Path, rank_pool: Pools) -> None:
    common = ("train.precision=fp32", "model.dropout=0.1")
    expected = train_apart(
        tmp_path, common, replicas=2, steps=STEPS, warmup=warmup,
        after_step=average(5, warmup, STEPS),
    )  # fmt: skip
    found, _ = _run(
        tmp_path / "run", rank_pool,
        f"{' '.join(common)} sync=local_sgd sync.sync_every_steps=5 "
        f"sync.warmup_sync_steps={warmup}",
    )  # fmt: skip
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize(
    ("fragments", "overlap", "alpha", "precision"),
    [(1, 0, 0.0, "fp32"), (1, 0, 0.0, "fp64"), (2, 0, 0.0, "fp64"), (2, 1, 0.5, "fp64")],
)
def test_diloco_is_the_plain_loop(
    fragments: int, overlap: int, alpha: float, precision: str, tmp_path: Path, rank_pool: Pools
) -> None:
    common = (f"train.precision={precision}", "model.dropout=0.1", "model.n_layers=3")
    plain = Streaming(
        every=4, warmup=2, total=STEPS, lr=0.7, momentum=0.9, fragments=[], overlap=overlap,
        alpha=alpha,
    )  # fmt: skip
    expected = _plain_diloco(tmp_path, common, plain, fragments)
    found, _ = _run(
        tmp_path / "run", rank_pool,
        f"{' '.join(common)} sync=diloco sync.sync_every_steps=4 sync.warmup_sync_steps=2 "
        f"sync.fragments={fragments} sync.overlap_steps={overlap} sync.mix_alpha={alpha}",
    )  # fmt: skip
    for name, value in expected.items():
        if precision == "fp32":
            assert torch.equal(found[name], value), name
    assert _apart(found, expected) < EXACT_RTOL


def _plain_diloco(
    folder: Path, common: tuple[str, ...], plain: Streaming, fragments: int
) -> Weights:
    """Train by the plain loop, whose anchors are the weights when the start is over."""

    def begin(weights: Weights) -> None:
        units = split_names({n: value.numel() for n, value in weights.items()}, fragments)
        plain.fragments = [names_in(weights, part, None) for part in units]
        plain.start(weights)

    return train_apart(
        folder, common, replicas=2, steps=plain.total, warmup=plain.warmup, begin=begin,
        after_step=plain,
    )  # fmt: skip


LAYOUTS = {
    "zero3": "strategy.tp=1 strategy.dp_shard=2 strategy.zero=3",
    "zero1": "strategy.tp=1 strategy.dp_shard=2 strategy.zero=1",
    "tp2": "strategy.tp=2",
    "cp2": "strategy.tp=1 strategy.cp=2",
    "pp2": "strategy.tp=1 strategy.pp=2 train.micro_batch_size=1",
}

INSIDE = {
    "local_sgd": "sync=local_sgd sync.sync_every_steps=4 sync.warmup_sync_steps=2 "
    "sync.inner_state=average",
    "streaming": "sync=diloco sync.sync_every_steps=4 sync.warmup_sync_steps=2 sync.fragments=2 "
    "sync.overlap_steps=1 sync.mix_alpha=0.5",
    "gossip": "sync=gossip sync.sync_every_steps=2 sync.warmup_sync_steps=1",
}


@pytest.fixture(scope="module")
def wholes() -> dict[str, tuple[Weights, Path]]:
    """By mode, a run of it whose replicas are one process each; trained by the first that asks."""
    return {}


QUICK = {("zero3", "gossip"), ("tp2", "streaming"), ("pp2", "gossip"), ("cp2", "streaming")}


@pytest.mark.parametrize(
    ("layout", "mode"),
    [
        pytest.param(layout, mode, marks=[] if (layout, mode) in QUICK else [pytest.mark.slow])
        for layout, mode in itertools.product(LAYOUTS, INSIDE)
    ],
)
def test_replicas_of_any_layout_compute_the_same(
    layout: str,
    mode: str,
    tmp_path: Path,
    rank_pool: Pools,
    wholes: dict[str, tuple[Weights, Path]],
) -> None:
    common = f"model.dropout=0.1 train.eval_every_steps=5 {INSIDE[mode]}"
    if mode not in wholes:
        wholes[mode] = _run(tmp_path / "whole", rank_pool, common)
    expected, whole = wholes[mode]
    inside = f"strategy=hybrid strategy.dp_replicate=2 {LAYOUTS[layout]}"
    found, run_dir = _run(tmp_path / layout, rank_pool, f"{common} {inside}", ranks=4)
    assert _losses(run_dir) == pytest.approx(_losses(whole), rel=LAYOUT_RTOL)
    assert _apart(found, expected) < LAYOUT_RTOL


def test_levels_average_neighbours_often_and_all_seldom(tmp_path: Path, rank_pool: Pools) -> None:
    def after_step(step: int, team: list[Weights]) -> None:
        groups = [team] if step % 4 == 0 else [team[:2], team[2:]] if step % 2 == 0 else []
        for group in groups:
            for name in group[0]:
                mean = sum(weights[name] for weights in group) / len(group)
                for weights in group:
                    weights[name].copy_(mean)

    expected = train_apart(
        tmp_path, (), replicas=4, steps=STEPS, warmup=0, after_step=after_step
    )  # fmt: skip
    found, _ = _run(
        tmp_path / "run", rank_pool,
        "sync=hierarchical sync.levels=[{replicas:2,every_steps:2},{replicas:-1,every_steps:4}]",
        ranks=4,
    )  # fmt: skip
    assert _apart(found, expected) < EXACT_RTOL


@pytest.mark.parametrize(
    ("words", "share"),
    [
        ("sync=local_sgd sync.sync_every_steps=4", 1 / 4),
        ("sync=diloco sync.sync_every_steps=6", 1 / 6),
        # Every fragment travels every 6 steps, and all once more in the last.
        ("sync=diloco sync.sync_every_steps=6 sync.fragments=2", (1.5 + 1) / 12),
    ],
)
def test_bytes_are_a_share_of_allreduce(
    words: str, share: float, tmp_path: Path, rank_pool: Pools
) -> None:
    _, one = _run(tmp_path / "one", rank_pool, "model.n_layers=4")
    _, apart = _run(tmp_path / "apart", rank_pool, f"model.n_layers=4 {words}")
    sent = [sum(line["comm_bytes"] for line in metric_lines(run)) for run in (apart, one)]
    assert sent[0] / sent[1] == pytest.approx(share, rel=0.03 if "fragments" in words else 1e-12)


def test_a_fragment_is_a_share_of_the_peak(tmp_path: Path, rank_pool: Pools) -> None:
    words = "model.n_layers=6 sync=diloco sync.sync_every_steps=6"
    _, whole = _run(tmp_path / "whole", rank_pool, words)
    _, parts = _run(tmp_path / "parts", rank_pool, f"{words} sync.fragments=3")
    # In the last step every fragment ends its round.
    peaks = [max(line["comm_bytes"] for line in metric_lines(run)[:-1]) for run in (whole, parts)]
    # The fullest of evenly filled fragments has its share, and less than one block more.
    block = 12 * 32 * 32 + 13 * 32
    assert peaks[0] / 3 <= peaks[1] < peaks[0] / 3 + block * 8


COLLECTIVES = (
    "all_reduce", "broadcast", "all_gather_into_tensor", "all_gather_object", "all_to_all_single",
    "broadcast_object_list", "barrier", "reduce_scatter_tensor", "send", "recv",
    "batch_isend_irecv",
)  # fmt: skip


def train_counting(run_dir: Path) -> list[int]:
    """Train; return how many collectives each step took. A rank's function."""
    import torch.distributed as dist

    from llmtrain.train.trainer import Trainer

    calls, steps = [0], []
    rights = {name: getattr(dist, name) for name in COLLECTIVES}
    right_step = Trainer.one_step

    def counted(name: str) -> Any:
        def call(*args: Any, **keywords: Any) -> Any:
            calls[0] += 1
            return rights[name](*args, **keywords)

        return call

    def one_step(self: Any, interval: Any) -> Any:
        before = calls[0]
        result = right_step(self, interval)
        steps.append(calls[0] - before)
        return result

    for name in COLLECTIVES:
        setattr(dist, name, counted(name))
    Trainer.one_step = one_step  # type: ignore[method-assign]
    try:
        train_frozen(run_dir)
    finally:
        for name, right in rights.items():
            setattr(dist, name, right)
        Trainer.one_step = right_step  # type: ignore[method-assign]
    return steps


@pytest.mark.parametrize("mode", ["local_sgd", "diloco", "gossip"])
def test_steps_inside_a_round_take_no_collective(
    mode: str, tmp_path: Path, rank_pool: Pools
) -> None:
    words = ("strategy=data", f"sync={mode}", "sync.sync_every_steps=4")
    run_dir = tiny_run(tmp_path / "run", f"train.steps={STEPS}", *words, world_size=2)
    counts = rank_pool(2).run(train_counting, run_dir)[0]
    assert [step for step, count in enumerate(counts, start=1) if count] == [4, 8, 12]
