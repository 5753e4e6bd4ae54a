"""What a person sees of a sweep: lines or a live table on stderr, the ranked table on stdout."""

import contextlib
import sys
import time
from collections.abc import Sequence
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from llmtrain.commands.show import plain_table
from llmtrain.config.sweep import DONE, Job, SweepRecord
from llmtrain.console import command_line, make_console
from llmtrain.errors import UserError
from llmtrain.panel import show_note, show_user_error
from llmtrain.units import counted, format_duration

STYLES = {"completed": "green", "failed": "red", "refused": "red", "not started": "dim"}

BEST_SHOWN = 5
"""Jobs that are done in the live table: there may be hundreds."""

OTHERS_WIDTH = 58
"""Columns that a ranked table has besides its overrides."""


class SweepView:
    """The course of a sweep. A context: several jobs at once have a live table on a terminal, jobs
    in turn one between them."""

    def __init__(self, sweep: SweepRecord) -> None:
        self._sweep = sweep
        self._alone = sweep.settings.parallel == 1
        self._running: dict[int, dict[str, Any]] = {}
        """The last values of each job that runs, and when it began."""
        self._live: Live | None = None

    def __enter__(self) -> "SweepView":
        if not self._alone and sys.stderr.isatty():
            self._live = Live(
                get_renderable=self._table, console=make_console(stderr=True), transient=True,
                refresh_per_second=2,
            )  # fmt: skip
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live is not None:
            self._live.stop()

    def note(self, text: str) -> None:
        """Say a line."""
        if self._live is not None:
            self._live.console.print(Text(text, "dim"))
        else:
            show_note(text)

    def began(self, job: Job, *, again: bool) -> None:
        """Tell that a job begins, or goes on."""
        self._running[job.number] = {"began": time.monotonic()}
        total = self._sweep.settings.trials or len(self._sweep.jobs)
        goes_on = " goes on" if again else ""
        if self._alone:
            self._show_done()
            self.note(f"\njob {job.number} of {total}{goes_on}: {job.label}")
        elif self._live is None:
            self.note(f"job {job.number} of {total}{goes_on or ' begins'}: {job.label}")

    def saw(self, job: Job, line: dict[str, Any]) -> None:
        """Take note of a line of a job's metrics."""
        self._running[job.number].update(line)

    def ended(self, job: Job) -> None:
        """Tell how a job has ended."""
        self._running.pop(job.number, None)
        if self._alone:
            return
        value = self._sweep.value(job)
        parts = [
            f"job {job.number} {job.status}",
            "" if value is None else f"{self._sweep.settings.metric} {value:.4f}",
            format_duration(job.wall_s) if job.wall_s else "",
            f"{job.error} ({self._sweep.run_dir(job) / 'logs'})" if job.error else "",
        ]
        self.note(", ".join(part for part in parts if part))

    def _show_done(self) -> None:
        """Show on a terminal how those that are done compare, before the next job has it."""
        done = [job for job in self._sweep.ranked() if job.status in DONE]
        if done and sys.stderr.isatty():
            console = make_console(stderr=True)
            show_ranked(console, self._sweep, done[:BEST_SHOWN])
            console.print(Text(count_jobs(self._sweep), "dim"))

    def refused(self, error: UserError, *, told: bool) -> None:
        """Tell why a job cannot run, once for all that have the same fault."""
        if told:
            return
        with contextlib.ExitStack() as stack:
            if self._live is not None:
                self._live.stop()
                stack.callback(self._live.start)
            show_user_error(error)

    def _table(self) -> Group:
        table = plain_table(">job", "overrides", "status", ">step", ">loss", ">val loss", ">wall")
        for number, seen in sorted(self._running.items()):
            job = self._sweep.jobs[number]
            table.add_row(
                str(number), job.label, Text("running", "cyan"), str(seen.get("step", "")),
                _loss(seen.get("loss")), _loss(seen.get("val_loss")),
                format_duration(time.monotonic() - seen["began"]),
            )  # fmt: skip
        best = [job for job in self._sweep.ranked() if job.status == "completed"]
        for job in best[:BEST_SHOWN]:
            table.add_row(
                str(job.number), job.label, _status(job), str(job.step or ""),
                _loss(job.train_loss), _loss(job.val_loss), format_duration(job.wall_s or 0),
            )  # fmt: skip
        return Group(table, Text(count_jobs(self._sweep), "dim"))


def count_jobs(sweep: SweepRecord) -> str:
    """Return how many jobs are how far: "12 completed, 1 failed, 4 running, 3 not started"."""
    counts: dict[str, int] = {}
    for job in sweep.jobs:
        counts[job.status] = counts.get(job.status, 0) + 1
    counts["not started"] = counts.get("not started", 0) + sweep.undrawn
    total = counted(sum(counts.values()), "job")
    return f"{total}: " + ", ".join(f"{n} {status}" for status, n in counts.items() if n)


def how_to_resume(sweep: SweepRecord) -> str:
    """Return how to go on with a sweep, as a command to be copied."""
    return f"To go on: {command_line('train', '-m', f'sweep.resume={sweep.folder}')}"


def show_ranked(console: Console, sweep: SweepRecord, jobs: Sequence[Job] | None = None) -> None:
    """Print jobs as a table; null: all of the sweep, the best first."""
    jobs = sweep.ranked() if jobs is None else jobs
    # Rich folds between two overrides, where there is room for each: what has no need of it makes
    # room, the headers of the losses and the gaps.
    longest = max((len(word) for job in jobs for word in job.label.split()), default=0)
    is_tight = longest > console.width - OTHERS_WIDTH
    fold = "\n" if is_tight else " "
    table = plain_table(
        ">rank", ">job", "overrides", "status", ">step", f">train{fold}loss", f">val{fold}loss",
        ">wall",
    )  # fmt: skip
    if is_tight:
        table.padding = (0, 1, 0, 0)
    for job in jobs:
        style = "bold green" if job.rank == 1 else ""
        table.add_row(
            str(job.rank or ""), str(job.number), job.label, _status(job), str(job.step or ""),
            Text(_loss(job.train_loss), style), Text(_loss(job.val_loss), style),
            format_duration(job.wall_s) if job.wall_s else "",
        )  # fmt: skip
    console.print(table)


def _status(job: Job) -> Text:
    return Text(job.status, STYLES.get(job.status, "yellow"))


def _loss(value: float | None) -> str:
    return f"{value:.4f}" if value is not None else ""
