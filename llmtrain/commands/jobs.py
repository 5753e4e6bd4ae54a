"""`llmtrain jobs`: the runs below some folders that were submitted to Slurm."""

import dataclasses
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from llmtrain.checkpoint.newest import newest_step
from llmtrain.commands.options import Options
from llmtrain.commands.show import plain_table
from llmtrain.config.result import read_result
from llmtrain.console import make_console
from llmtrain.errors import EXIT_OK, ConfigError
from llmtrain.launch import slurm
from llmtrain.launch.attempts import last_step
from llmtrain.panel import show_note

FOLDERS = ("runs", "sweeps")

DEPTH = 4
"""Folders between one that is named and a run: runs/<experiment>/<run>, and one more for sweeps."""


@dataclass(frozen=True)
class Row:
    """One run, as --json tells it."""

    run: str
    job: str
    state: str
    """Slurm's word: PENDING, RUNNING, COMPLETED ...; UNKNOWN where it has forgotten the job."""
    reason: str
    """Why it waits."""
    status: str | None
    """result.json's: completed | failed | preempted | stopped; null: not ended yet."""
    step: int
    """The last that is logged."""
    checkpoint: int | None
    """Step of the newest checkpoint."""
    requeues: int


def run_jobs(options: Options) -> int:
    """Print the submitted runs, the latest last; return the exit code.

    Raises:
        ConfigError: when a folder that is named is not there.
    """
    for name in options.folders:
        if not Path(name).is_dir():
            raise ConfigError(f"{name}: there is no such folder.")
    found = list(submitted_runs(map(Path, options.folders or FOLDERS)))
    rows = [_row(run, job) for run, job in sorted(found, key=lambda pair: pair[1].submitted)]
    if options.has("--json"):
        print(json.dumps({"jobs": [dataclasses.asdict(row) for row in rows]}, indent=2))
        return EXIT_OK
    if not rows:
        where = " or ".join(options.folders or FOLDERS)
        show_note(
            f"no run below {where} was submitted to Slurm, and only those are listed; "
            "`llmtrain train launcher=slurm ...` submits one"
        )
        return EXIT_OK
    _show(rows)
    return EXIT_OK


def submitted_runs(folders: Iterable[Path]) -> Iterator[tuple[Path, slurm.Submitted]]:
    """Yield every run below `folders` with the job that it was submitted as last."""
    for folder in folders:
        for depth in range(DEPTH):
            for path in sorted(folder.glob("*/" * depth + slurm.JOB)):
                run = path.parents[1]
                job = slurm.find(run)
                # A sweep's own folder holds the array's job, its runs the tasks'.
                if job is not None and not (run / slurm.ARRAY).exists():
                    yield run, job


def _row(run: Path, job: slurm.Submitted) -> Row:
    now = slurm.ask(job.job_id)
    status = None if now.is_active else read_result(run).get("status")
    return Row(
        str(run), job.job_id, now.state, now.reason, status, last_step(run), newest_step(run),
        now.requeues,
    )  # fmt: skip


def _show(rows: Sequence[Row]) -> None:
    table = plain_table("run", ">job", "state", "result", ">step", ">checkpoint", ">queued again")
    for row in rows:
        state = (
            f"{row.state} ({row.reason})" if row.state == "PENDING" and row.reason else row.state
        )
        table.add_row(
            row.run, row.job, state, row.status or "", str(row.step or ""),
            "" if row.checkpoint is None else str(row.checkpoint), str(row.requeues or ""),
        )  # fmt: skip
    make_console().print(table)
