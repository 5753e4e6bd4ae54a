"""The search of a sweep: Optuna draws the values of one job after another, and gives up bad runs.

Optuna directly: Hydra's own sweeper of that name needs optuna < 3, and lets no run be pruned or
go on after a death. Its study is kept in the sweep's folder (`optuna.journal`, which
optuna-dashboard shows); trial N is job N. A trial that has failed stays open in it, because the job
may yet complete when the sweep is resumed; samplers and pruners pass over it.
"""

import importlib.util
import random
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.types import (
    ChoiceSweep,
    IntervalSweep,
    Override,
    RangeSweep,
    Transformer,
)

from llmtrain.commands.sweep_jobs import new_job
from llmtrain.config.groups.sweep import SweepConfig
from llmtrain.config.sweep import Job, SweepRecord
from llmtrain.errors import ConfigError, require

if TYPE_CHECKING:
    import optuna

JOURNAL = "optuna.journal"
NAME = "llmtrain"


def require_optuna(settings: SweepConfig) -> None:
    """Refuse a sampler whose packages are not there.

    Raises:
        ConfigError: names what to install.
    """
    needed = ["optuna", *(["cmaes"] if settings.sampler == "cmaes" else [])]
    for package in needed:
        require(
            importlib.util.find_spec(package) is not None,
            f"sweep.sampler={settings.sampler} needs the package {package}: pip install "
            "'llmtrain[optuna]', or set sweep.sampler=grid.",
        )


class Search:
    """A study of Optuna beside a sweep's record."""

    def __init__(self, sweep: SweepRecord, words: Sequence[Override], folder: Path | None) -> None:
        """Open the study, or make it.

        Args:
            sweep: The sweep.
            words: Its overrides, parsed.
            folder: Where the study is kept; null: in memory alone.
        """
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        self._optuna = optuna
        self._sweep = sweep
        self._words = words
        self._last_steps: dict[int, int] = {}
        """The last step of each job whose value was reported; none until it is first looked at."""
        self._study = optuna.create_study(
            storage=_storage(folder) if folder else None, study_name=NAME, load_if_exists=True,
            pruner=_pruner(sweep),
        )  # fmt: skip
        for trial in self._study.get_trials(deepcopy=False)[len(sweep.jobs) :]:
            # Drawn, and not recorded: the sweep died in between.
            self._add_job(self._trial(trial.number))
        for job in sweep.jobs:
            self.tell(job)

    def ask(self) -> Job | None:
        """Draw the next job and add it to the record; null: all trials are drawn.

        Raises:
            ConfigError: when the space makes no sense to Optuna.
        """
        number = len(self._sweep.jobs)
        trials = self._sweep.settings.trials
        assert trials is not None
        if number >= trials:
            return None
        # One sampler a trial, seeded by both: interrupted or not, a sweep draws the same.
        self._study.sampler = self._sampler(number)
        return self._add_job(self._study.ask())

    def report(self, number: int, step: int, value: float) -> int | None:
        """Take note of a value in the course of a run.

        Returns:
            The last step that is known, where the run is bad enough by then to be given up.
        """
        last = self._last_steps.get(number)
        if last is not None and step <= last:
            return None  # it went on from a checkpoint, and does these steps again
        trial = self._trial(number)
        if last is None:  # the study may know more, and the run may have been bad when all ended
            last = max(trial.storage.get_trial(trial._trial_id).intermediate_values, default=-1)
        if step > last:
            trial.report(value, step)
        self._last_steps[number] = last = max(step, last)
        return last if last >= self._sweep.settings.warmup_steps and trial.should_prune() else None

    def tell(self, job: Job) -> None:
        """Take note of how a job has ended, if it is done."""
        state, value = self._optuna.trial.TrialState, self._sweep.value(job)
        if job.status == "completed" and value is not None:
            self._study.tell(job.number, value, skip_if_finished=True)
        elif job.status == "completed":
            self._study.tell(job.number, state=state.FAIL, skip_if_finished=True)
        elif job.status == "pruned":
            self._study.tell(job.number, state=state.PRUNED, skip_if_finished=True)

    def _trial(self, number: int) -> "optuna.Trial":
        frozen = self._study.get_trials(deepcopy=False)[number]
        return self._optuna.trial.Trial(self._study, frozen._trial_id)

    def _add_job(self, trial: "optuna.Trial") -> Job:
        words = []
        for override in self._words:
            key = override.get_key_element()
            if override.is_sweep_override():
                words.append(f"{key}={_suggest(trial, key, override)}")
            else:
                words.append(f"{key}={override.get_value_element_as_str()}")
        swept = {o.get_key_element() for o in self._words if o.is_sweep_override()}
        job = new_job(len(self._sweep.jobs), words, swept)
        self._sweep.jobs.append(job)
        return job

    def _sampler(self, number: int) -> "optuna.samplers.BaseSampler":
        settings, samplers = self._sweep.settings, self._optuna.samplers
        seed = random.Random(f"{settings.seed}/{number}").getrandbits(31)
        if settings.sampler == "random":
            return samplers.RandomSampler(seed=seed)
        startup = {"n_startup_trials": settings.startup_trials} if settings.startup_trials else {}
        if settings.sampler == "cmaes":
            return samplers.CmaEsSampler(seed=seed, warn_independent_sampling=False, **startup)
        # Jobs that run are counted as bad ones, so that two at once do not try the same.
        liar = settings.parallel > 1
        return samplers.TPESampler(seed=seed, constant_liar=liar, **startup)


def _storage(folder: Path) -> "optuna.storages.BaseStorage":
    """Return the study's file, mended after a death in the middle of a write.

    The sweep's claim sees to it that nobody else has it open.
    """
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    path = folder / JOURNAL
    for lock in folder.glob(f"{JOURNAL}.lock*"):
        lock.unlink()
    if path.is_file():
        text = path.read_bytes()
        whole = text.rfind(b"\n") + 1
        if whole < len(text):
            with path.open("r+b") as stream:
                stream.truncate(whole)
    return JournalStorage(JournalFileBackend(str(path)))


def _pruner(sweep: SweepRecord) -> "optuna.pruners.BasePruner":
    from optuna import pruners

    settings, first = sweep.settings, sweep.every_steps or 1
    if settings.pruner == "median":
        startup = {} if settings.startup_trials is None else {
            "n_startup_trials": settings.startup_trials
        }  # fmt: skip
        return pruners.MedianPruner(**startup)
    if settings.pruner == "successive_halving":
        return pruners.SuccessiveHalvingPruner(min_resource=first)
    if settings.pruner == "hyperband":
        return pruners.HyperbandPruner(min_resource=first, max_resource=sweep.steps or "auto")
    return pruners.NopPruner()


def _suggest(trial: "optuna.Trial", key: str, override: Override) -> str:
    """Return the value that is drawn for a setting, as one types it.

    Raises:
        ConfigError: when Optuna can make nothing of the space.
    """
    space = override.value()
    try:
        if isinstance(space, ChoiceSweep):
            return trial.suggest_categorical(key, [Transformer.str(v) for v in space.list])
        assert isinstance(space, IntervalSweep | RangeSweep)
        log = "log" in space.tags
        if isinstance(space, RangeSweep):
            values = list(space.range())
            low, high = min(values), max(values)
            step: Any = abs(space.step)
            if all(isinstance(value, int) for value in values):
                return str(trial.suggest_int(key, low, high, step=1 if log else step, log=log))
            return repr(trial.suggest_float(key, low, high, step=None if log else step, log=log))
        assert space.start is not None and space.end is not None
        low, high = space.start, space.end
        if isinstance(low, int) and isinstance(high, int):
            return str(trial.suggest_int(key, low, high, log=log))
        return repr(trial.suggest_float(key, low, high, log=log))
    except ValueError as error:
        raise ConfigError(
            f"{override.input_line}: no value can be drawn from it ({str(error).rstrip('.')})."
        ) from None
