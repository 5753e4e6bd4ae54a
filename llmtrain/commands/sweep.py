"""`llmtrain train -m`, `sweep=NAME` and `sweep.resume=DIR`: several runs of one command line.

A job that fails, or that cannot even be composed, does not stop the others.
"""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmtrain.commands.compose import Composer, composer
from llmtrain.commands.freeze import drop, dropped_if_refused
from llmtrain.commands.options import Options
from llmtrain.commands.search import Search, require_optuna
from llmtrain.commands.show import print_plan
from llmtrain.commands.submit_array import array_script
from llmtrain.commands.sweep_jobs import compose_job, make_folder, read_sweep, words_of
from llmtrain.commands.sweep_run import SweepRun
from llmtrain.commands.sweep_slurm import submit_sweep
from llmtrain.commands.sweep_view import SweepView, count_jobs, how_to_resume, show_ranked
from llmtrain.config.store import to_yaml
from llmtrain.config.sweep import SweepRecord, load_sweep, to_do
from llmtrain.console import make_console, say
from llmtrain.errors import EXIT_BUG, EXIT_OK, EXIT_USER, ConfigError, UserError, require
from llmtrain.launch import foreign
from llmtrain.launch.claim import claimed
from llmtrain.launch.shares import Shares, share_machine
from llmtrain.launch.slurm import check_commands, check_folder, refuse_active
from llmtrain.panel import show_note
from llmtrain.secret import masked
from llmtrain.units import counted

CHANGEABLE = ("sweep.parallel", "sweep.trials")
"""What a sweep that is resumed may be told anew."""


def run_sweep(options: Options) -> int:
    """Run the sweep and return the exit code.

    0: every job is done; 1: some are not; 2: none could be composed; 130, 143: a signal came.

    Raises:
        ConfigError: when the sweep itself cannot be read.
    """
    if foreign.rank() is not None:
        raise ConfigError(
            "A multirun starts its own processes: run it without torchrun, srun or mpirun."
        )
    resumed = options.chooses("sweep.resume")
    sweep, told = _resumed(options) if resumed else (None, {})
    folders = options.config_dirs if sweep is None else [Path(d) for d in sweep.config_dirs]
    with composer("train", folders) as hydra:
        sweep = sweep or read_sweep(hydra, options.overrides)
        _check_parallel(sweep)
        shares = share_machine(sweep.settings.parallel)
        if sweep.settings.searches:
            require_optuna(sweep.settings)
        if options.has("--cfg") or options.has("--dry-run"):
            return _answer(hydra, sweep, shares, yaml=options.has("--cfg"))
        if sweep.device != "cpu" and sweep.launcher != "slurm":
            shares.require_gpu()
        if not resumed:
            _begin(hydra, sweep, shares)
        with claimed(sweep.folder, "sweep.resume"):
            refuse_active(sweep.folder)
            if resumed:
                _read_again(sweep, told)
                _look_again(sweep)
            code = _start(hydra, sweep, shares, is_new=not resumed)
    show_ranked(make_console(), sweep)
    if code != EXIT_OK:
        # To be copied: on one line, however long.
        say(make_console(stderr=True), f"{count_jobs(sweep)}. {_how_on(sweep, code)}", "dim")
    return code


def _begin(hydra: Composer, sweep: SweepRecord, shares: Shares) -> None:
    """Make the folder of a new sweep, when all is refused that can be without one.

    Raises:
        ConfigError: when it cannot be made, or the sweep cannot run.
    """
    _preview(hydra, sweep)
    if sweep.launcher == "slurm":
        check_commands()
        check_folder(sweep.folder)
    make_folder(sweep)
    jobs = counted(sweep.settings.trials or len(sweep.jobs), "job")
    show_note(f"{jobs} in {sweep.folder}{shares.describe()}")


def _start(hydra: Composer, sweep: SweepRecord, shares: Shares, *, is_new: bool) -> int:
    """Run or submit what is not done; return the exit code.

    A new sweep of which no job was begun leaves nothing behind.

    Raises:
        ConfigError: when the jobs cannot be submitted.
    """
    by_slurm = sweep.launcher == "slurm" and bool(to_do(sweep.jobs))
    with dropped_if_refused(sweep.folder, is_new=is_new, has_begun=lambda: sweep.has_begun):
        code = (submit_sweep if by_slurm else _run)(hydra, sweep, shares)
    if is_new and code == EXIT_USER:
        drop(sweep.folder)
    return code


def _how_on(sweep: SweepRecord, code: int) -> str:
    """Return how a sweep goes on that has ended with `code`."""
    if code == EXIT_USER:
        kept = "" if sweep.folder.exists() else f"{sweep.folder} is removed. "
        return f"{kept}Begin another sweep with what is mended."
    return how_to_resume(sweep)


def _check_parallel(sweep: SweepRecord) -> None:
    """Refuse to divide this machine among jobs that run on others.

    Raises:
        ConfigError: names the setting that is meant.
    """
    parallel = sweep.settings.parallel
    require(
        sweep.launcher != "slurm" or parallel == 1,
        f"sweep.parallel={parallel} divides this machine, and with launcher=slurm the jobs run on "
        f"others; for at most {parallel} at a time, set launcher.array_parallel={parallel}.",
    )


def _run(hydra: Composer, sweep: SweepRecord, shares: Shares) -> int:
    """Freeze what is not frozen, and run what is not done."""
    search = _search(hydra, sweep, sweep.folder) if sweep.settings.searches else None
    with SweepView(sweep) as view:
        return SweepRun(hydra, sweep, search, shares, view).run()


def _search(hydra: Composer, sweep: SweepRecord, folder: Path | None) -> Search:
    return Search(sweep, words_of(hydra, sweep), folder)


def _preview(hydra: Composer, sweep: SweepRecord) -> SweepRecord:
    """Return the sweep with a job at least: of a search, one that is only drawn.

    Raises:
        ConfigError: when a search's space makes no sense.
    """
    if not sweep.settings.searches:
        return sweep
    drawn = dataclasses.replace(sweep, jobs=[])
    _search(hydra, drawn, None).ask()
    return drawn


def _answer(hydra: Composer, sweep: SweepRecord, shares: Shares, *, yaml: bool) -> int:
    """Print what every job that is not done would be, and start none; return the exit code.

    0: all can run; 1: some are refused; 2: all are.

    Raises:
        ConfigError: when the jobs of an array ask for different ones.
    """
    jobs, planned = to_do(sweep.jobs), {}
    if sweep.settings.searches:
        settings = sweep.settings
        print(f"# {settings.trials} jobs by {settings.sampler}; one that may be drawn:")
        jobs = [*jobs, *_preview(hydra, sweep).jobs]
    for job in jobs:
        print(f"# job {job.number}: {job.label}", flush=True)
        try:
            run, plan = planned[job.number] = compose_job(hydra, job, shares)
        except UserError as error:
            # Here, not on stderr: it is what was asked, and a comment where the answer is YAML.
            print("# refused: " + masked(str(error)).replace("\n", "\n# "))
            continue
        if yaml:
            print(to_yaml(run))
        else:
            print_plan(run, plan)
    if sweep.launcher == "slurm" and planned and not yaml:
        there = sweep.folder.exists()
        folder = sweep.folder if there else sweep.folder.with_name("DATE_TIME-ID")
        print(f"\n{array_script(dict(sorted(planned.items())), folder)}", end="")
    if len(planned) == len(jobs):
        return EXIT_OK
    return EXIT_BUG if planned else EXIT_USER


def _resumed(options: Options) -> tuple[SweepRecord, dict[str, Any]]:
    """Return the sweep that `sweep.resume` names, and what is told anew; its folder is entered.

    Raises:
        ConfigError: when it cannot be read, or something else is asked for besides.
    """
    with composer("train") as hydra:
        given = {o.key_or_group: o for o in hydra.parse(options.overrides)}
        folder = Path(str(given.pop("sweep.resume").value())).expanduser().absolute()
        sweep = load_sweep(folder)
        anew = [str(o.input_line) for key, o in given.items() if key in CHANGEABLE]
        kept = [f"sweep.sampler={sweep.settings.sampler}", f"sweep.trials={sweep.settings.trials}"]
        told = hydra.sweep_base([*(kept if sweep.settings.searches else []), *anew]).settings
    others = [str(o.input_line) for key, o in given.items() if key not in CHANGEABLE]
    others += [f"--config-dir {added}" for added in options.config_dirs]
    require(
        not others,
        f"{' '.join(others)}: sweep.resume={folder} goes on with what it was begun with; only "
        f"{' and '.join(CHANGEABLE)} may change. Leave it out, or begin another sweep.",
    )
    anew_told = {name: getattr(told, name) for name in (key.partition(".")[2] for key in given)}
    sweep.settings = dataclasses.replace(sweep.settings, **anew_told)
    try:
        os.chdir(sweep.cwd)
    except OSError as error:
        raise ConfigError(
            f"sweep.resume={folder} was begun in {sweep.cwd}, where its relative paths start, and "
            f"that cannot be entered ({error.strerror}); make it again."
        ) from None
    return sweep, anew_told


def _read_again(sweep: SweepRecord, told: Mapping[str, Any]) -> None:
    """Read the record of a sweep that is claimed: until then, another may have gone on with it."""
    now = load_sweep(sweep.folder)
    # The machine is divided already.
    kept = {"parallel": sweep.settings.parallel, **told}
    sweep.jobs, sweep.settings = now.jobs, dataclasses.replace(now.settings, **kept)


def _look_again(sweep: SweepRecord) -> None:
    """Read what has come of jobs since the sweep wrote of them last, and say what goes on."""
    sweep.settle()
    sweep.save()
    show_note(f"going on with {sweep.folder}: {count_jobs(sweep)}")
    for job in sweep.jobs:
        if job.status == "failed":  # a refusal is told where it is refused again
            show_note(f"job {job.number} failed before, and is tried again: {job.error}")
