"""The jobs of a sweep, made of its command line and frozen: a run directory each, none started.

    sweeps/<experiment_name>/<date>_<time>-<id>/
        sweep.json       what was asked, and every job: overrides, status, losses, seconds
        0/  1/  ...      a run directory each, which `python -m llmtrain.start DIR/N` trains

Each job is composed once, here; an edit of the YAML files afterwards changes none of them.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep

from llmtrain.commands.compose import Composer, SweepBase
from llmtrain.commands.freeze import freeze
from llmtrain.commands.secrets import refuse_secrets
from llmtrain.commands.submit import in_time
from llmtrain.commands.train import plan_run
from llmtrain.config.groups.slurm import SlurmLauncherConfig
from llmtrain.config.groups.sweep import METRICS
from llmtrain.config.paths import CONFIG, default_sweep_dir, make_run_dir
from llmtrain.config.plan import Plan
from llmtrain.config.schema import RunConfig
from llmtrain.config.sweep import Job, SweepRecord
from llmtrain.errors import UserError, require
from llmtrain.launch.shares import Shares
from llmtrain.units import counted

SETTINGS = "sweep."

LAUNCHERS = ("local", "slurm")
"""What can start the jobs of a sweep."""


def read_sweep(hydra: Composer, overrides: Sequence[str]) -> SweepRecord:
    """Return the sweep that a command line asks for; its folder is only named.

    Raises:
        ConfigError: when an override cannot be read, or asks for what a sweep cannot do.
    """
    parsed = hydra.parse(overrides, multirun=True)
    own = [o for o in parsed if o.key_or_group.startswith(SETTINGS)]
    for override in own:
        require(
            not override.is_sweep_override(),
            f"{override.input_line}: a setting of the whole sweep has one value.",
        )
    base = hydra.sweep_base([str(o.input_line) for o in parsed if not o.is_sweep_override()])
    require(
        base.run_dir is None,
        f"run_dir={base.run_dir}: the runs of a sweep cannot share one; leave it out, and they are "
        "kept in sweeps/<experiment_name>/.",
    )
    params = hydra.parse([f"{k}={v}" for k, v in base.params.items()], multirun=True)
    # What is typed wins over what the sweep's YAML says.
    typed = {o.get_key_element() for o in parsed}
    words = [*(o for o in params if o.get_key_element() not in typed), *parsed]
    swept = {o.get_key_element() for o in words if o.is_sweep_override()}
    sweep = SweepRecord(
        folder=default_sweep_dir(base.experiment_name).absolute(),
        experiment_name=base.experiment_name,
        typed=list(overrides),
        words=[str(o.input_line) for o in words if o not in own],
        config_dirs=[str(folder) for folder in hydra.config_dirs],
        cwd=str(Path.cwd()),
        settings=base.settings,
        every_steps=base.eval_every_steps if base.settings.metric == "val_loss" else base.log_every,
        steps=None if "train.steps" in swept else base.steps,
        device="cpu" if "train.device" in swept else base.device,
        launcher=base.launcher,
    )
    require(
        "launcher" not in swept,
        "launcher: a sweep has one; make a sweep of each.",
    )
    _check_launcher(base.launcher)
    require(
        base.launcher != "slurm" or not base.settings.searches,
        f"sweep.sampler={base.settings.sampler} waits for results before it goes on, so its jobs "
        "cannot all be submitted at once; use sweep.sampler=grid, or launcher=local in one job of "
        "your own.",
    )
    if base.settings.searches:
        _check_search(sweep, words, base)
    else:
        sweep.jobs = _combinations(words_of(hydra, sweep))
    return sweep


def _check_launcher(name: str) -> None:
    """Refuse a launcher that starts one run over hosts which compose it themselves, or prints it.

    Raises:
        ConfigError: names those that start the jobs of a sweep.
    """
    require(
        name in LAUNCHERS,
        f"launcher={name} cannot start the jobs of a sweep, only {' and '.join(LAUNCHERS)} can: "
        "use launcher=slurm, or launcher=local on each host with a part of the jobs.",
    )


def words_of(hydra: Composer, sweep: SweepRecord) -> list[Override]:
    """Return the overrides that the jobs of a sweep are made of."""
    return hydra.parse(sweep.words, multirun=True)


def _check_search(sweep: SweepRecord, words: Sequence[Override], base: SweepBase) -> None:
    """Refuse a search without a space, or that prunes where there is nothing to look at."""
    settings = base.settings
    swept = [o for o in words if o.is_sweep_override()]
    require(
        bool(swept),
        f"sweep.sampler={settings.sampler} has nothing to search: give a setting a space, such as "
        "'optimizer.lr=tag(log, interval(1e-4, 1e-2))'.",
    )
    numbers = [o for o in swept if isinstance(o.value(), IntervalSweep | RangeSweep)]
    # Optuna would draw everything at random, and say nothing of it.
    require(
        settings.sampler != "cmaes" or len(numbers) > 1,
        f"sweep.sampler=cmaes learns from two settings at least that are numbers, interval() or "
        f"range(), and here is {counted(len(numbers), 'such setting')}; set sweep.sampler=tpe, "
        "which takes any.",
    )
    require(
        settings.pruner == "none" or sweep.every_steps is not None,
        f"sweep.pruner={settings.pruner} looks at {METRICS[settings.metric]} in the course of a "
        "run, and train.eval_every_steps=null evaluates at its end alone; set "
        "train.eval_every_steps=50, say, or sweep.pruner=none.",
    )


def _combinations(parsed: Sequence[Override]) -> list[Job]:
    """Return a job for every combination of the swept values, as Hydra's own sweeper makes them.

    Raises:
        ConfigError: for interval() and other sweeps without an end.
    """
    for override in parsed:
        require(
            not override.is_sweep_override() or override.is_discrete_sweep(),
            f"{override.input_line}: only lists, range(), choice() and glob() have an end; to "
            "search an interval, set sweep.sampler=tpe and sweep.trials=20, say.",
        )
    swept = {o.get_key_element() for o in parsed if o.is_sweep_override()}
    [batch] = BasicSweeper.split_arguments(list(parsed), max_batch_size=None)
    require(bool(batch), "There is nothing to sweep: a range() or choice() is empty.")
    return [new_job(number, list(words), swept) for number, words in enumerate(batch)]


def new_job(number: int, words: list[str], swept: Iterable[str]) -> Job:
    """Return a job of these overrides.

    Args:
        number: Its number.
        words: What it sets.
        swept: The keys in which jobs differ.

    Raises:
        ConfigError: when one holds a secret, which sweep.json would show.
    """
    refuse_secrets(dict(word.partition("=")[::2] for word in words))
    given = [word for word in words if word.partition("=")[0] in swept]
    return Job(number, words, given or words)


def make_folder(sweep: SweepRecord) -> None:
    """Make the sweep's folder, with sweep.json in it.

    Raises:
        ConfigError: when it cannot be made.
    """
    make_run_dir(sweep.folder, logs=False)
    sweep.save()


def freeze_job(hydra: Composer, sweep: SweepRecord, job: Job, shares: Shares) -> UserError | None:
    """Compose and freeze a job, unless it is; where it cannot run, note and return why.

    Raises:
        ConfigError: when no job could have the GPU that it needs.
    """
    if job.status != "refused" and (sweep.run_dir(job) / CONFIG).is_file():
        return None
    try:
        run, plan = compose_job(hydra, job, shares)
        run_dir = make_run_dir(sweep.run_dir(job))
        freeze(dataclasses.replace(run, run_dir=str(run_dir)), plan, job.overrides, run_dir)
    except UserError as error:
        job.status, job.error = "refused", str(error)
        return error
    job.status, job.error = "not started", None
    return None


def compose_job(hydra: Composer, job: Job, shares: Shares) -> tuple[RunConfig, Plan]:
    """Return the configuration and the plan of a job.

    Raises:
        UserError: when it cannot run.
    """
    run = hydra.compose(job.overrides).config
    _check_launcher(run.launcher.name)  # an experiment that is swept may choose one
    if isinstance(run.launcher, SlurmLauncherConfig):
        return in_time(run), plan_run(run)  # this machine's devices are not the job's
    if run.train.device != "cpu":
        shares.require_gpu()
    return run, plan_run(run, gpus=shares.gpus_each)
