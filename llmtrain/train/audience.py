"""Audience: those who are told how training goes, as the configuration names them."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

from llmtrain.config.plan import Plan
from llmtrain.config.schema import RunConfig
from llmtrain.parallel.precision import Precision
from llmtrain.train.journal import Journal
from llmtrain.train.metrics import MetricsWriter, build_writers
from llmtrain.train.peak import Peak, find_peak
from llmtrain.train.progress import TrainProgress
from llmtrain.train.state import TrainState


@dataclasses.dataclass(frozen=True)
class Audience:
    """Who is told."""

    writers: Sequence[MetricsWriter]
    progress: TrainProgress
    peak: Peak
    """Of one device, in FLOP/s; 0 where not known."""


def build_audience(
    run: RunConfig,
    plan: Plan,
    run_dir: Path,
    console: Console,
    state: TrainState,
    device: torch.device,
) -> Audience:
    """Return those who are told from `state` on.

    Raises:
        ConfigError: when an extra that is asked for is not installed.
    """
    writers = build_writers(
        run.metrics, run_dir, dataclasses.asdict(run), after_step=state.step,
        evaluated_step=state.evaluated_step,
    )  # fmt: skip
    dtype = Precision(run.train.precision).compute_dtype
    peak = find_peak(device, dtype, run.metrics.peak_tflops)
    progress = TrainProgress(
        console, steps=plan.total_steps, start=state.step, shown=run.metrics.progress
    )
    return Audience(writers, progress, peak)


def build_journal(
    run: RunConfig, plan: Plan, run_dir: Path, console: Console, state: TrainState
) -> Journal:
    """Return the journal of a run with a server."""
    on_cuda = run.train.device != "cpu" and torch.cuda.is_available()
    device = torch.device("cuda" if on_cuda else "cpu")
    audience = build_audience(run, plan, run_dir, console, state, device)
    return Journal(
        plan, every_steps=run.train.log_every_steps, writers=audience.writers,
        progress=audience.progress, peak=audience.peak,
    )  # fmt: skip
