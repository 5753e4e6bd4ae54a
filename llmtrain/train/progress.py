"""What a person sees while training: one live line on a terminal, plain lines elsewhere."""

import logging
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from llmtrain.config.plan import Plan
from llmtrain.config.schema import RunConfig
from llmtrain.units import counted, format_count, format_duration

log = logging.getLogger(__name__)

PLAIN_INTERVAL_S = 5.0
"""Seconds between plain lines, at least."""


class TrainProgress:
    """Rank 0's view of the loop: step, loss, tokens/s, MFU and the time that is left.

    Its log has every line, for whoever follows the run from elsewhere.
    """

    def __init__(
        self, console: Console, *, steps: int, start: int, shown: bool, logged: bool = True
    ) -> None:
        """Begin at step `start` of `steps`; show, and log, only where asked to."""
        self._console = console
        self._steps = steps
        self._shown, self._logged = shown, logged
        self._last_plain = 0.0
        self._live: Progress | None = None
        if shown and console.is_terminal:
            self._live = Progress(
                TextColumn("[bold]step[/] {task.completed:.0f}/{task.total:.0f}"),
                BarColumn(bar_width=20),
                TextColumn("{task.fields[numbers]}"),
                TextColumn("eta"),
                TimeRemainingColumn(compact=True),
                console=console,
                refresh_per_second=4,
                transient=True,
            )
            self._task = self._live.add_task("", total=steps, completed=start, numbers="")
            self._live.start()

    @classmethod
    def silent(cls) -> "TrainProgress":
        """Return one that shows nothing: what every rank but 0 has."""
        return cls(Console(quiet=True), steps=0, start=0, shown=False, logged=False)

    def step(self, step: int) -> None:
        """Move the line on; costs nothing that a step would feel."""
        if self._live is not None:
            self._live.update(self._task, completed=step)

    def numbers(self, line: dict[str, Any]) -> None:
        """Show and log a line of metrics."""
        if not self._shown and not self._logged:
            return
        text = (
            f"loss {line['loss']:.4f}  {format_count(line['tokens_per_s'])} tok/s"
            f"  mfu {line['mfu']:.1%}"
        )
        left = format_duration((self._steps - line["step"]) * line["step_time_s"])
        whole = f"step {line['step']}/{self._steps}  {text}  eta {left}"
        if self._logged:
            log.info(whole)
        if self._live is not None:
            self._live.update(self._task, numbers=text)
        elif self._shown and time.monotonic() - self._last_plain >= PLAIN_INTERVAL_S:
            self._last_plain = time.monotonic()
            self.say(whole, logged=False)

    def say(self, text: str, *, logged: bool = True) -> None:
        """Print a line that stays, and log it unless whoever says it has."""
        if self._logged and logged:
            log.info(text)
        if self._shown:
            self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def close(self) -> None:
        """Leave the live line."""
        if self._live is not None:
            self._live.stop()
            self._live = None


def show_plan(console: Console, run: RunConfig, plan: Plan, data: str, run_dir: str) -> None:
    """Print the plan as a table."""
    from rich.table import Table

    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column()
    table.add_column(overflow="fold")  # a path is never cut
    axes = " x ".join(
        f"{axis} {plan.axis(axis)}"
        for axis in ("pp", "dp_replicate", "dp_shard", "cp", "tp")
        if plan.axis(axis) > 1
    )
    zero = f", zero {run.strategy.zero}" if run.strategy.zero else ""
    batch = f"{counted(plan.global_batch_size, 'sequence')} x {run.model.seq_len} tokens"
    rows = {
        "run": run_dir,
        "model": f"{run.model.name}, {format_count(plan.n_parameters or 0)} parameters, "
        f"vocabulary {plan.vocab_size}",
        "data": data,
        "strategy": f"{run.strategy.name}{f' ({axes}{zero})' if axes else ''}, "
        f"sync {run.sync.name}, {counted(plan.world_size, 'process', 'processes')}",
        "step": f"{batch} = {format_count(plan.tokens_per_step)} tokens"
        f" ({plan.gradient_accumulation_steps} x {plan.micro_batch_size} on each of {plan.dp})",
        "training": f"{counted(plan.total_steps, 'step')}, "
        f"{format_count((plan.steps or 0) * plan.tokens_per_step)} tokens, "
        f"{run.optimizer.name} lr {run.optimizer.lr:g} {run.scheduler.name}, {run.train.precision}",
    }
    for name, value in rows.items():
        table.add_row(f"[bold]{name}[/]", value)
    console.print(table)
