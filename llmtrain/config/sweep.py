"""sweep.json: what a sweep is made of and what has come of it; all that it takes to go on.

Written whole before the first job starts and at every change, so that no death loses anything.
"""

import dataclasses
import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from llmtrain.config.groups.sweep import SweepConfig
from llmtrain.config.paths import METRICS
from llmtrain.config.result import EXIT_CODES, read_result
from llmtrain.durable import replace_text
from llmtrain.errors import ConfigError

SUMMARY = "sweep.json"
VERSION = 1

LONG_NUMBER = re.compile(r"(?<==)\d+\.\d{6,}(e[+-]?\d+)?\b")

DONE = ("completed", "pruned")
"""Statuses of jobs that are not run again."""


@dataclass
class Job:
    """One run of a sweep, and what came of it."""

    number: int
    overrides: list[str]
    """What this job sets."""
    given: list[str]
    """What distinguishes it from its neighbours."""
    status: str = "not started"
    """not started | submitted (to Slurm) | running | completed | pruned | failed | refused (its
    configuration) | stopped | preempted."""
    rank: int | None = None
    """Its place by the sweep's metric, 1 the best; null: it has not completed."""
    exit_code: int | None = None
    step: int | None = None
    train_loss: float | None = None
    val_loss: float | None = None
    wall_s: float | None = None
    """Of all its starts."""
    error: str | None = None

    @property
    def label(self) -> str:
        """What distinguishes it, for people: without the last digits of what a search has drawn."""
        return LONG_NUMBER.sub(lambda found: f"{float(found[0]):.4g}", " ".join(self.given))


@dataclass
class SweepRecord:
    """A sweep: what was asked, and its jobs."""

    folder: Path
    experiment_name: str
    typed: list[str]
    """The overrides as typed."""
    words: list[str]
    """The overrides with those of the sweep's YAML, but for its settings: what jobs are made of."""
    config_dirs: list[str]
    """The user's own YAML folders."""
    cwd: str
    """Where it began: relative paths in overrides start there."""
    settings: SweepConfig
    launcher: str = "local"
    """Who starts its jobs."""
    device: str = "auto"
    """train.device of its jobs, where they do not differ in it."""
    every_steps: int | None = None
    """Steps between two values of the metric in a run."""
    steps: int | None = None
    """Steps of a run, where all have the same."""
    jobs: list[Job] = field(default_factory=list)

    def run_dir(self, job: Job) -> Path:
        """Return the run directory of a job."""
        return self.folder / str(job.number)

    def value(self, job: Job) -> float | None:
        """Return the metric of a job; null where it has none that is a number."""
        found: float | None = getattr(job, self.settings.metric)
        return None if found is None or math.isnan(found) else found

    @property
    def has_begun(self) -> bool:
        """Whether a job of it was ever started or submitted."""
        return any(job.status not in ("not started", "refused") for job in self.jobs)

    @property
    def undrawn(self) -> int:
        """How many jobs a search has still to draw."""
        return max(0, (self.settings.trials or 0) - len(self.jobs))

    @property
    def is_done(self) -> bool:
        """Whether there is nothing left to go on with."""
        return not to_do(self.jobs) and not self.undrawn

    def ranked(self) -> list[Job]:
        """Return the jobs that completed, the best first, then the others by their numbers."""
        good = [job for job in self.jobs if job.status == "completed"]
        good.sort(key=lambda job: (_or_inf(self.value(job)), job.number))
        return [*good, *(job for job in self.jobs if job.status != "completed")]

    def save(self) -> None:
        """Write sweep.json, whole or not at all."""
        for rank, job in enumerate(self.ranked(), 1):
            placed = job.status == "completed" and self.value(job) is not None
            job.rank = rank if placed else None
        plain = {k: v for k, v in dataclasses.asdict(self).items() if k not in ("folder", "jobs")}
        jobs = [{**dataclasses.asdict(j), "run_dir": str(self.run_dir(j))} for j in self.jobs]
        text = json.dumps({"version": VERSION, **plain, "jobs": jobs}, indent=2)
        replace_text(self.folder / SUMMARY, text + "\n")

    def collect(self, job: Job, *, since: float | None = None) -> None:
        """Complete a job by its result.json, where one was written after `since` (unix s)."""
        result = read_result(self.run_dir(job), since=since or 0.0)
        if not result:
            return
        job.status, job.error = str(result.get("status", job.status)), result.get("error")
        job.step, job.train_loss = result.get("step"), result.get("train_loss")
        job.val_loss = result.get("val_loss")

    def settle(self) -> None:
        """Read what has come of jobs since the sweep wrote of them last: none of them runs now."""
        for job in self.jobs:
            if job.status in (*DONE, "refused"):
                continue
            if job.status in ("running", "submitted"):  # it has ended, without a word perhaps
                began = job.status == "running" or (self.run_dir(job) / METRICS).is_file()
                job.status = "stopped" if began else "not started"
            self.collect(job)

    def finish(self, job: Job, exit_code: int, *, since: float) -> None:
        """Complete a job whose process has ended.

        Args:
            job: The job.
            exit_code: As Popen says it; 130 or 143 where the sweep has ended it.
            since: When it was started, unix s.
        """
        known = {code: status for status, code in EXIT_CODES.items()}
        job.exit_code, job.error = exit_code, None
        job.status = known.get(exit_code, "failed")
        if job.status == "failed":
            ended = f"exit code {exit_code}" if exit_code > 0 else f"killed by signal {-exit_code}"
            job.error = f"{ended}, before it could tell why"
        self.collect(job, since=since)
        if job.status == "running":
            job.status = "failed"


def _or_inf(value: float | None) -> float:
    return math.inf if value is None else value


def load_sweep(folder: Path) -> SweepRecord:
    """Read DIR/sweep.json.

    Raises:
        ConfigError: when it is missing or not of ours.
    """
    path = folder / SUMMARY
    try:
        plain = json.loads(path.read_text())
        if plain.pop("version") != VERSION:
            raise ConfigError(f"{path} was written by another version of llmtrain.")
        known = [f.name for f in dataclasses.fields(Job)]
        jobs = [Job(**{k: v for k, v in job.items() if k in known}) for job in plain.pop("jobs")]
        settings = SweepConfig(**plain.pop("settings"))
        return SweepRecord(folder=folder, settings=settings, jobs=jobs, **plain)
    except OSError as error:
        raise ConfigError(
            f"sweep.resume={folder}: {path} cannot be read ({error.strerror}); name the folder of "
            "a sweep, sweeps/<experiment_name>/<date>_<time>-<id>."
        ) from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(f"{path} is not the record of a sweep: {error}") from None


def to_do(jobs: Iterable[Job]) -> list[Job]:
    """Return the jobs that are not done, those that have begun first."""
    left = [job for job in jobs if job.status not in DONE]
    return sorted(left, key=lambda job: job.status == "not started")
