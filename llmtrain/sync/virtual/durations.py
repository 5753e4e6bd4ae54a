"""Durations: how long each step of each worker takes on the virtual clock.

Functions of (worker, step) alone, so that every mode meets the same machines.
"""

from collections.abc import Callable

from llmtrain.distributed.rng import derive_seed

Durations = Callable[[int, int], float]
"""Worker, its own step from 0 -> seconds."""


def constant(step_s: float = 1.0) -> Durations:
    """All alike."""
    return lambda worker, step: step_s


def straggler(slow: int, factor: float, step_s: float = 1.0) -> Durations:
    """One worker always takes `factor` times as long."""
    return lambda worker, step: step_s * (factor if worker == slow else 1.0)


def transient(probability: float, factor: float, seed: int, step_s: float = 1.0) -> Durations:
    """Any step may take `factor` times as long, with `probability`."""

    def seconds(worker: int, step: int) -> float:
        drawn = derive_seed("transient", seed, worker, step) / 2**63
        return step_s * (factor if drawn < probability else 1.0)

    return seconds


def lockstep_s(durations: Durations, *, workers: int, steps: int, sync_every_steps: int) -> float:
    """Return the seconds of `steps` steps of each worker when all wait for all.

    Args:
        durations: Of every step.
        workers: How many.
        steps: Of each worker.
        sync_every_steps: Steps between waits: 1 is all-reduce, H is local SGD or DiLoCo.
    """
    total = 0.0
    for begin in range(0, steps, sync_every_steps):
        round_steps = range(begin, min(begin + sync_every_steps, steps))
        total += max(sum(durations(w, step) for step in round_steps) for w in range(workers))
    return total
