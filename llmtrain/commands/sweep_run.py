"""The jobs of a sweep on this machine: one after another, or several at once.

Each is `python -m llmtrain.start RUN_DIR`, a process tree of its own, which this process starts,
signals and watches; a job that runs alone has the terminal, others print into logs/output.log.
"""

import math
import os
import signal
import time
from typing import Any

from llmtrain.commands.compose import Composer
from llmtrain.commands.search import Search
from llmtrain.commands.sweep_jobs import freeze_job
from llmtrain.commands.sweep_view import SweepView
from llmtrain.config.groups.sweep import METRICS
from llmtrain.config.paths import LOGS
from llmtrain.config.paths import METRICS as METRICS_FILE
from llmtrain.config.sweep import DONE, Job, SweepRecord, to_do
from llmtrain.errors import EXIT_BUG, EXIT_OK, EXIT_SIGINT, EXIT_SIGTERM, EXIT_USER
from llmtrain.launch.environment import python_path
from llmtrain.launch.local import PYTHON
from llmtrain.launch.metrics_tail import MetricsTail
from llmtrain.launch.pool import Pool
from llmtrain.launch.shares import Shares
from llmtrain.units import counted

OUTPUT = f"{LOGS}/output.log"
"""In a run directory: what a job would print on a terminal."""

LOOK_S = 0.1


class SweepRun:
    """The jobs of a sweep that are not done, run to their end."""

    def __init__(
        self, hydra: Composer, sweep: SweepRecord, search: Search | None, shares: Shares,
        view: SweepView,
    ) -> None:  # fmt: skip
        self._hydra = hydra
        self._sweep = sweep
        self._search = search
        self._shares = shares
        self._view = view
        self._left: list[Job] = []
        """Jobs that are frozen and wait."""
        self._pool = Pool(sweep.settings.parallel)
        self._tails: dict[int, MetricsTail] = {}
        self._since: dict[int, float] = {}
        """When each job that runs was started, unix s."""
        self._seen: dict[int, dict[str, Any]] = {}
        """The last values in the metrics of each job."""
        self._given_up: set[int] = set()
        self._stop_told = False
        self._refusal = ""
        """What was said last of a job that cannot run."""

    def run(self) -> int:
        """Run what is not done; return the exit code of the whole."""
        with self._pool as pool:
            # All at once, where they are known: what cannot run is told before anything starts.
            self._left = [job for job in to_do(self._sweep.jobs) if self._is_frozen(job)]
            self._sweep.save()
            while True:
                self._fill()
                for number, code in pool.ended().items():
                    self._end(self._sweep.jobs[number], code)
                for number in pool.children:
                    self._watch(self._sweep.jobs[number])
                self._tell_stop()
                if not pool.children and (pool.stopped_by or self._exhausted()):
                    break
                if pool.children:
                    time.sleep(LOOK_S)
        return self._exit_code()

    def _tell_stop(self) -> None:
        """Say once that a signal ends the sweep; a job that has the terminal says it itself."""
        jobs = len(self._pool.children)
        if self._pool.stopped_by is None or self._stop_told or not jobs:
            return
        self._stop_told = True
        if self._sweep.settings.parallel > 1:
            what = f"saving and stopping {counted(jobs, 'job')}"
            by_hand = self._pool.stopped_by == signal.SIGINT
            again = f"{what}; Ctrl-C again ends them at once"
            self._view.note(again if by_hand else f"told to end: {what}")

    def _is_frozen(self, job: Job) -> bool:
        """Freeze a job that is not; return whether it can be started."""
        if self._pool.slot is None:  # told to stop
            return False
        error = freeze_job(self._hydra, self._sweep, job, self._shares)
        if error is not None:
            self._view.refused(error, told=str(error) == self._refusal)
            self._refusal = str(error)
        return error is None

    def _fill(self) -> None:
        """Start jobs while there is room."""
        while (slot := self._pool.slot) is not None and not self._exhausted():
            if self._left:
                self._start(self._left.pop(0), slot)
                continue
            job = self._search.ask() if self._search is not None else None
            if job is not None and self._is_frozen(job):
                self._start(job, slot)

    def _exhausted(self) -> bool:
        if self._left:
            return False
        trials = self._sweep.settings.trials
        return self._search is None or trials is None or len(self._sweep.jobs) >= trials

    def _start(self, job: Job, slot: int) -> None:
        run_dir = self._sweep.run_dir(job)
        again = (run_dir / METRICS_FILE).is_file()
        job.status, job.error = "running", None
        self._sweep.save()
        self._view.began(job, again=again)
        alone = self._sweep.settings.parallel == 1
        self._since[job.number] = time.time()
        self._tails[job.number] = MetricsTail(run_dir / METRICS_FILE)
        self._pool.start(
            job.number, slot, [*PYTHON, "llmtrain.start", str(run_dir)],
            {**os.environ, **python_path(os.environ), **self._shares.environment(slot)},
            None if alone else run_dir / OUTPUT,
        )  # fmt: skip

    def _watch(self, job: Job) -> None:
        """Look at what a run has logged since the last look; give it up where it is bad."""
        key = METRICS[self._sweep.settings.metric]
        for line in self._tails[job.number].lines():
            self._seen.setdefault(job.number, {}).update(line)
            self._view.saw(job, line)
            if self._search is None or not _is_number(line.get(key)):
                continue
            bad_at = self._search.report(job.number, int(line["step"]), float(line[key]))
            # One that has ended by itself is not given up: what it came to is known.
            runs = job.number in self._pool.children and self._pool.stopped_by is None
            if bad_at is not None and runs and job.number not in self._given_up:
                self._given_up.add(job.number)
                self._view.note(f"job {job.number} is given up at step {bad_at}")
                self._pool.stop(job.number)

    def _end(self, job: Job, code: int) -> None:
        """Take note of how a job has ended."""
        self._watch(job)
        stopped_by = self._pool.stopped_by
        if code < 0 and (stopped_by or job.number in self._given_up):
            code = EXIT_SIGINT if stopped_by == signal.SIGINT else EXIT_SIGTERM
        since = self._since.pop(job.number)
        self._sweep.finish(job, code, since=since)
        self._fill_in(job)
        job.wall_s = (job.wall_s or 0.0) + time.time() - since
        if job.number in self._given_up and job.status == "preempted":
            job.status = "pruned"
        self._sweep.save()
        if self._search is not None:
            self._search.tell(job)
        self._view.ended(job)

    def _fill_in(self, job: Job) -> None:
        """Take from its metrics what a job that ended without a word has not told."""
        seen = self._seen.pop(job.number, {})
        job.step = job.step if job.step is not None else seen.get("step")
        job.train_loss = job.train_loss if job.train_loss is not None else seen.get("loss")
        job.val_loss = job.val_loss if job.val_loss is not None else seen.get("val_loss")

    def _exit_code(self) -> int:
        jobs = self._sweep.jobs
        if all(job.status in DONE for job in jobs) and self._exhausted():
            return EXIT_OK
        if self._pool.stopped_by is not None:
            return EXIT_SIGINT if self._pool.stopped_by == signal.SIGINT else EXIT_SIGTERM
        return EXIT_USER if all(job.status == "refused" for job in jobs) else EXIT_BUG


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
