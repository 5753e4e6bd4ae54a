"""`llmtrain train launcher=slurm`: freeze the run, copy the code, write the script, submit it."""

import dataclasses
import shlex
import time
from collections.abc import Sequence
from pathlib import Path

from llmtrain.commands.freeze import dropped_if_refused, freeze, is_made, run_folder
from llmtrain.config.groups.served import ServedConfig
from llmtrain.config.groups.slurm import SlurmLauncherConfig
from llmtrain.config.paths import LOGS
from llmtrain.config.plan import Plan
from llmtrain.config.result import EXIT_CODES, read_result
from llmtrain.config.schema import RunConfig
from llmtrain.errors import EXIT_BUG, EXIT_OK, EXIT_SIGINT
from llmtrain.launch import slurm
from llmtrain.launch.claim import claimed
from llmtrain.launch.slurm_script import Task, render
from llmtrain.panel import show_note

MARGIN_S = 20
"""How long before the time limit the last word on a checkpoint is."""


def launcher_of(run: RunConfig) -> SlurmLauncherConfig:
    """Return the launcher of a run that goes to Slurm."""
    assert isinstance(run.launcher, SlurmLauncherConfig)
    return run.launcher


def in_time(run: RunConfig) -> RunConfig:
    """Return `run` with checkpoint.grace_s below what Slurm leaves it before the time limit."""
    most = max(1, launcher_of(run).grace_s - MARGIN_S)
    if run.checkpoint.grace_s <= most:
        return run
    return dataclasses.replace(run, checkpoint=dataclasses.replace(run.checkpoint, grace_s=most))


def script_of(run: RunConfig, plan: Plan, run_dir: Path) -> str:
    """Return the batch script of a run."""
    output = Path(str(run_dir).replace("%", "%%")) / LOGS / "slurm-%j.out"
    return render(
        launcher_of(run), {0: task_of(run, plan, run_dir)}, job_name=run.experiment_name,
        code=run_dir / slurm.CODE, output=output, is_array=False,
    )  # fmt: skip


def task_of(run: RunConfig, plan: Plan, run_dir: Path) -> Task:
    """Return what a node's agent is told of a run."""
    words = ["--nproc-per-node", str(plan.nproc_per_node)]
    if isinstance(run.sync, ServedConfig) and plan.servers:
        words += ["--replicas", str(plan.dp_replicate)]
    return Task(run_dir, words)


def submit(run: RunConfig, plan: Plan, overrides: Sequence[str]) -> int:
    """Submit a run; return the exit code: of the submission, or, where it waits, of the run.

    Raises:
        ConfigError: when it cannot be submitted; a run directory that was made for it is removed,
            unless the job may be queued.
    """
    slurm.check_commands()
    slurm.check_folder(planned_dir(run))
    is_new = is_made(run)
    run_dir = run_folder(run)
    slurm.refuse_active(run_dir)  # first: its workers may hold the claim, on this machine
    with claimed(run_dir):
        slurm.refuse_active(run_dir)  # submitted meanwhile
        with dropped_if_refused(run_dir, is_new=is_new):
            resumed, submitted = _submit(run, plan, overrides, run_dir)
    show_note(f"{'resuming' if resumed else 'run directory'} {run_dir}")
    print(f"submitted Slurm job {submitted.job_id}", flush=True)
    if launcher_of(run).wait:
        return wait(run_dir, submitted, launcher_of(run).poll_s)
    shown = shlex.quote(str(run_dir))
    show_note(f"follow it: llmtrain logs {shown} -f\nall jobs:  llmtrain jobs\n"
              f"end it:    llmtrain cancel {shown}")  # fmt: skip
    return EXIT_OK


def _submit(
    run: RunConfig, plan: Plan, overrides: Sequence[str], run_dir: Path
) -> tuple[bool, slurm.Submitted]:
    """Freeze and submit a run; return whether it goes on, and its job.

    Raises:
        ConfigError: when it cannot be frozen or submitted.
    """
    resumed = freeze(run, plan, overrides, run_dir)
    slurm.snapshot(run_dir)
    script = run_dir / slurm.SCRIPT
    script.parent.mkdir(exist_ok=True)
    script.write_text(script_of(run, plan, run_dir))
    return resumed, slurm.keep(run_dir, slurm.submit(script))


def wait(run_dir: Path, submitted: slurm.Submitted, poll_s: float) -> int:
    """Wait for a run's job to end, telling its states; return the exit code of the run.

    Raises:
        ConfigError: when Slurm has not answered for long; the job goes on.
    """
    told, watch = "", slurm.Watch(submitted.job_id)
    try:
        while True:
            job = watch.look()
            what = f"{job.state}{f' ({job.reason})' if job.reason else ''}"
            what += f", queued again {job.requeues} times" if job.requeues else ""
            if what != told:
                show_note(f"job {submitted.job_id}: {what}")
                told = what
            if watch.ended:
                break
            time.sleep(poll_s)
    except KeyboardInterrupt:
        show_note(f"\njob {submitted.job_id} goes on without this command; to end it: "
                  f"llmtrain cancel {shlex.quote(str(run_dir))}")  # fmt: skip
        return EXIT_SIGINT
    status = read_result(run_dir, since=submitted.submitted).get("status", "")
    show_note(f"{run_dir}: {status or 'has ended without a word; see logs/slurm-*.out'}")
    return EXIT_CODES.get(status, EXIT_BUG)


def planned_dir(run: RunConfig) -> Path:
    """Return where a run would be kept, for --dry-run: nothing is made."""
    default = Path("runs") / run.experiment_name / "DATE_TIME-ID"
    return (Path(run.run_dir).expanduser() if run.run_dir else default).absolute()
