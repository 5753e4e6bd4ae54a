"""Scheduler: the factor on the learning rate as a pure function of the step.

A schedule has no state: a resumed run needs the step and nothing else. Step s is the number of
steps done before this one, so training calls it with 0 .. total_steps - 1.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch

from llmtrain.config.groups.scheduler import SchedulerConfig
from llmtrain.errors import require, require_choice

Schedule = Callable[[int], float]
"""Steps done -> factor on the peak learning rate, 0 to 1."""


def make_schedule(config: SchedulerConfig, total_steps: int) -> Schedule:
    """Return the schedule that `config` names, for a training of `total_steps`.

    Raises:
        ConfigError: when the name is unknown, or the warm-up and the fall do not fit in
            `total_steps`.
    """
    require_choice("scheduler.name", config.name, _SCHEDULES)
    if config.warmup_steps is None:
        config = replace(config, warmup_steps=min(100, total_steps // 10))
    return _SCHEDULES[config.name](config, total_steps)


def apply_lr(optimizers: Iterable[torch.optim.Optimizer], peak_lr: float, factor: float) -> float:
    """Write `peak_lr * factor` into every parameter group; return it, for the log.

    One peak serves every group: Muon's update is scaled to AdamW's.
    """
    lr = peak_lr * factor
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = lr
    return lr


def warmup_factor(step: int, warmup_steps: int) -> float:
    """Return (step + 1) / warmup_steps, at most 1: the first step already moves."""
    return min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0


def linear_factor(progress: float, min_ratio: float) -> float:
    """Return the point of the straight line from 1 to `min_ratio`; `progress` is cut to 0..1."""
    return min_ratio + (1.0 - min_ratio) * (1.0 - min(1.0, max(0.0, progress)))


def cosine_factor(progress: float, min_ratio: float) -> float:
    """Return the point of the half cosine from 1 to `min_ratio` (arXiv:1608.03983, equation 5)."""
    angle = math.pi * min(1.0, max(0.0, progress))
    return min_ratio + (1.0 - min_ratio) * 0.5 * (1.0 + math.cos(angle))


def _constant(config: Any, total_steps: int) -> Schedule:
    """1 after the warm-up."""
    return lambda step: warmup_factor(step, config.warmup_steps)


def _falling(config: Any, total_steps: int, shape: Callable[[float, float], float]) -> Schedule:
    """1 at the end of the warm-up, then `shape` over decay_steps, then min_lr_ratio."""
    warmup = config.warmup_steps
    _require_room(config, total_steps)
    decay = config.decay_steps or total_steps - warmup

    def factor(step: int) -> float:
        if step < warmup:
            return warmup_factor(step, warmup)
        return shape((step - warmup) / decay, config.min_lr_ratio)

    return factor


def _linear(config: Any, total_steps: int) -> Schedule:
    """A straight fall after the warm-up."""
    return _falling(config, total_steps, linear_factor)


def _cosine(config: Any, total_steps: int) -> Schedule:
    """Half a cosine after the warm-up."""
    return _falling(config, total_steps, cosine_factor)


def _wsd(config: Any, total_steps: int) -> Schedule:
    """Warm-up, stable, decay: a straight fall that ends with training (arXiv:2404.06395, 4.2)."""
    warmup = config.warmup_steps
    _require_room(config, total_steps)
    decay = config.decay_steps or max(1, total_steps // 10)
    decay = decay if config.decay_steps else min(decay, total_steps - warmup)
    require(
        warmup + decay <= total_steps,
        f"scheduler.warmup_steps={warmup} and scheduler.decay_steps={decay} do not fit in "
        f"train.steps={total_steps}; try scheduler.decay_steps={total_steps - warmup} or less.",
    )
    start = total_steps - decay

    def factor(step: int) -> float:
        if step < warmup:
            return warmup_factor(step, warmup)
        return linear_factor((step - start) / decay, config.min_lr_ratio)

    return factor


def _inverse_sqrt(config: Any, total_steps: int) -> Schedule:
    """min(n / warmup, sqrt(warmup / n)), n = step + 1 (Vaswani et al. 2017, equation 3)."""
    warmup = max(1, config.warmup_steps)
    return lambda step: min((step + 1) / warmup, math.sqrt(warmup / (step + 1)))


def _require_room(config: Any, total_steps: int) -> None:
    """Refuse a warm-up that leaves no step for the fall.

    Raises:
        ConfigError: when warmup_steps >= total_steps.
    """
    require(
        config.warmup_steps < total_steps,
        f"scheduler.warmup_steps={config.warmup_steps} must be less than train.steps={total_steps} "
        f"with scheduler={config.name}, or the rate never falls; try "
        f"scheduler.warmup_steps={total_steps // 10} or scheduler=constant.",
    )


_SCHEDULES: dict[str, Callable[[Any, int], Schedule]] = {
    "constant": _constant,
    "linear": _linear,
    "cosine": _cosine,
    "wsd": _wsd,
    "inverse_sqrt": _inverse_sqrt,
}
