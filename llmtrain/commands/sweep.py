"""`llmtrain train -m` and `sweep=NAME`: one run after another, each a fresh process tree.

    sweeps/<experiment_name>/<date>_<time>-<id>/
        0/  1/  ...      a run directory each
        sweep.json       every job: overrides, status, losses, seconds

A job that fails, or that cannot even be composed, does not stop the others.
"""

import contextlib
import dataclasses
import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.types import Override
from rich.text import Text

from llmtrain.commands.compose import Composer, SweepBase, composer
from llmtrain.commands.options import Options
from llmtrain.commands.secrets import refuse_secrets
from llmtrain.commands.show import plain_table, print_plan
from llmtrain.commands.submit import launcher_of
from llmtrain.commands.submit_array import ArrayRun, submit_array, tell_array, wait_for_array
from llmtrain.commands.train import plan_run, start
from llmtrain.config.paths import RESULT, default_sweep_dir, make_run_dir
from llmtrain.config.plan import Plan
from llmtrain.config.schema import RunConfig
from llmtrain.config.store import to_yaml
from llmtrain.console import make_console
from llmtrain.errors import (
    EXIT_BUG,
    EXIT_OK,
    EXIT_SIGINT,
    EXIT_SIGTERM,
    EXIT_USER,
    ConfigError,
    UserError,
)
from llmtrain.launch import torchrun
from llmtrain.panel import show_note, show_user_error
from llmtrain.units import counted, format_duration

SUMMARY = "sweep.json"

STYLES = {"completed": "green", "failed": "red", "refused": "red"}


@dataclass
class Job:
    """One run of a sweep, and what came of it."""

    number: int
    overrides: list[str]
    """What this job sets."""
    given: list[str]
    """What distinguishes it from its neighbours."""
    run_dir: str | None = None
    status: str = "not started"
    """completed | failed | refused (its configuration) | stopped | preempted | not started."""
    exit_code: int | None = None
    train_loss: float | None = None
    val_loss: float | None = None
    wall_s: float | None = None
    error: str | None = None


def run_sweep(options: Options) -> int:
    """Run the sweep and return the exit code.

    0: every job completed; 1: some did not; 2: none could be composed; 130, 143: a signal came.

    Raises:
        ConfigError: when the sweep itself cannot be read.
    """
    if torchrun.rank() is not None:
        raise ConfigError("A multirun starts its own processes: run it without torchrun.")
    with composer("train", options.config_dirs) as hydra:
        jobs, base = make_jobs(hydra, options.overrides)
        if options.has("--cfg") or options.has("--dry-run"):
            return _answer(hydra, jobs, yaml=options.has("--cfg"))
        if base.run_dir is not None:
            raise ConfigError(
                f"run_dir={base.run_dir}: the runs of a sweep cannot share one; leave it out, and "
                "they are kept in sweeps/<experiment_name>/."
            )
        folder = make_run_dir(default_sweep_dir(base.experiment_name), logs=False)
        show_note(f"{counted(len(jobs), 'job')} in {folder}")
        if chosen_launcher(hydra, jobs) == "slurm":
            return _submit(hydra, jobs, folder)
        code = _run_jobs(hydra, jobs, folder)
    show_table(jobs)
    return code


def chosen_launcher(hydra: Composer, jobs: Sequence[Job]) -> str:
    """Return the launcher of the first job that can be composed; "": none can."""
    for job in jobs:
        with contextlib.suppress(UserError):
            return hydra.compose(job.overrides).config.launcher.name
    return ""


def _submit(hydra: Composer, jobs: Sequence[Job], folder: Path) -> int:
    """Freeze all jobs and submit them as one array; return the exit code."""
    runs: dict[int, ArrayRun] = {}
    for job in jobs:
        try:
            run, plan = _prepare(hydra, job, folder)
            runs[job.number] = ArrayRun(run, plan, job.overrides)
        except UserError as error:
            job.status, job.error = "refused", str(error)
            show_user_error(error)
    _save(jobs, folder)
    if not runs:
        return EXIT_USER
    submitted = submit_array(folder, runs)
    tell_array(folder, submitted, len(runs))
    launcher = launcher_of(next(iter(runs.values())).run)
    if not launcher.wait:
        return EXIT_OK
    code = wait_for_array(folder, list(runs), launcher.poll_s)
    for number in runs:
        _read_result(jobs[number])
    _save(jobs, folder)
    show_table(jobs)
    refused = any(job.status == "refused" for job in jobs)
    return EXIT_BUG if refused and code == EXIT_OK else code


def make_jobs(hydra: Composer, overrides: Sequence[str]) -> tuple[list[Job], SweepBase]:
    """Return the jobs of a sweep, and what they share.

    Raises:
        ConfigError: when an override cannot be read, or nothing is swept.
    """
    parsed = hydra.parse(overrides, multirun=True)
    base = hydra.sweep_base([str(o.input_line) for o in parsed if not o.is_sweep_override()])
    params = hydra.parse([f"{k}={v}" for k, v in base.params.items()], multirun=True)
    # What is typed wins over what the sweep's YAML says.
    typed = {o.get_key_element() for o in parsed}
    everything = [*(o for o in params if o.get_key_element() not in typed), *parsed]
    swept = {o.get_key_element() for o in everything if o.is_sweep_override()}
    jobs = []
    for number, words in enumerate(_product(everything)):
        refuse_secrets(dict(word.partition("=")[::2] for word in words))  # sweep.json names them
        given = [word for word in words if word.partition("=")[0] in swept]
        jobs.append(Job(number, words, given or words))
    return jobs, base


def _product(overrides: Iterable[Override]) -> list[list[str]]:
    """Return every combination of the swept values, as Hydra's own sweeper makes them.

    Raises:
        ConfigError: for interval() and other sweeps without an end.
    """
    listed = list(overrides)
    for override in listed:
        if override.is_sweep_override() and not override.is_discrete_sweep():
            raise ConfigError(
                f"{override.input_line}: only lists, range(), choice() and glob() can be swept."
            )
    [batch] = BasicSweeper.split_arguments(listed, max_batch_size=None)
    return [list(words) for words in batch]


def _answer(hydra: Composer, jobs: Sequence[Job], *, yaml: bool) -> int:
    """Print what every job would be, and start none."""
    for job in jobs:
        print(f"# job {job.number}: {' '.join(job.given)}", flush=True)
        run = hydra.compose(job.overrides).config
        if yaml:
            print(to_yaml(run))
        else:
            print_plan(run, plan_run(run))
    return EXIT_OK


def _run_jobs(hydra: Composer, jobs: Sequence[Job], folder: Path) -> int:
    """Run the jobs one after another; return the exit code of the whole."""
    for number, job in enumerate(jobs):
        show_note(f"\njob {job.number} of {len(jobs)}: {' '.join(job.given)}")
        began = time.monotonic()
        try:
            run, plan = _prepare(hydra, job, folder)
            job.exit_code = start(run, plan, job.overrides)
            _read_result(job)
        except UserError as error:
            job.status, job.error = "refused", str(error)
            if number == 0 or job.error != jobs[number - 1].error:
                show_user_error(error)
        except KeyboardInterrupt:
            job.status, job.exit_code = "stopped", EXIT_SIGINT
        job.wall_s = time.monotonic() - began
        _save(jobs, folder)
        if job.exit_code in (EXIT_SIGINT, EXIT_SIGTERM):
            return job.exit_code
    if all(job.status == "refused" for job in jobs):
        return EXIT_USER
    return EXIT_OK if all(job.status == "completed" for job in jobs) else EXIT_BUG


def _prepare(hydra: Composer, job: Job, folder: Path) -> tuple[RunConfig, Plan]:
    run = hydra.compose(job.overrides).config
    job.run_dir = str(folder / str(job.number))
    run = dataclasses.replace(run, run_dir=job.run_dir)
    return run, plan_run(run)


def _read_result(job: Job) -> None:
    """Complete the job by its result.json."""
    assert job.run_dir is not None
    try:
        result = json.loads((Path(job.run_dir) / RESULT).read_text())
    except (OSError, ValueError):
        result = {}
    ended = "completed" if job.exit_code == EXIT_OK else "failed"
    job.status = str(result.get("status", ended))
    job.train_loss, job.val_loss = result.get("train_loss"), result.get("val_loss")
    job.error = result.get("error")


def _save(jobs: Sequence[Job], folder: Path) -> None:
    records = [{k: v for k, v in dataclasses.asdict(job).items() if k != "given"} for job in jobs]
    partial = folder / f"{SUMMARY}.tmp"
    partial.write_text(json.dumps({"jobs": records}, indent=2) + "\n")
    partial.replace(folder / SUMMARY)


def show_table(jobs: Sequence[Job]) -> None:
    """Print the jobs and their final losses; the best validation loss stands out."""
    losses = [job.val_loss for job in jobs if job.val_loss is not None]
    best = min(losses, default=None)
    table = plain_table(">job", "overrides", "status", ">train loss", ">val loss", ">wall")
    for job in jobs:
        val = Text(_loss(job.val_loss), "bold green" if job.val_loss == best else "")
        status = Text(job.status, STYLES.get(job.status, "yellow"))
        table.add_row(
            str(job.number), " ".join(job.given), status,
            _loss(job.train_loss), val, format_duration(job.wall_s) if job.wall_s else "",
        )  # fmt: skip
    make_console().print(table)


def _loss(value: float | None) -> str:
    return f"{value:.4f}" if value is not None else ""
