"""`llmtrain cancel RUN`: end a run or a sweep, wherever it runs, after a checkpoint."""

import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

from llmtrain.checkpoint.newest import goes_on
from llmtrain.commands.options import Options
from llmtrain.commands.sweep_view import count_jobs, how_to_resume
from llmtrain.commands.task import check_run
from llmtrain.config.paths import CONFIG
from llmtrain.config.result import read_result
from llmtrain.config.store import load_run_config
from llmtrain.config.sweep import SUMMARY, load_sweep
from llmtrain.console import make_console, say
from llmtrain.errors import EXIT_BUG, EXIT_OK, ConfigError
from llmtrain.launch import slurm
from llmtrain.launch.claim import Holder, holder
from llmtrain.launch.slurm_script import RESEND_S
from llmtrain.panel import show_error

AFTER_GRACE_S = 60.0
"""How long, after the time that a checkpoint may take, an end is waited for."""

LOOK_S = 0.5


def run_cancel(options: Options) -> int:
    """End the run, or the sweep, that is named and wait for it; return the exit code.

    Raises:
        ConfigError: when there is no such run, its process cannot be told from here, or Slurm
            refuses or cannot be asked.
    """
    [name] = options.folders
    folder = Path(name).expanduser()
    job = slurm.find(folder)
    if job is None and not (folder / SUMMARY).is_file():
        check_run(name)
    configs = [*folder.glob(CONFIG), *folder.glob(f"*/{CONFIG}")]  # of a sweep, those of its runs
    graces = [load_run_config(path).checkpoint.grace_s for path in configs]
    wait_s = AFTER_GRACE_S + max(graces, default=0.0)
    if job is not None and slurm.ask(job.job_id).is_active:
        what = f"Slurm job {job.job_id}"
        ended = _end_job(folder, job.job_id, wait_s)
    elif (process := holder(folder)) is not None:
        _tell(folder, process)
        what = str(process)
        ended = _wait(lambda: holder(folder) is None, wait_s)
    else:
        _say(f"{name} is not running: {_outcome(folder, 'it has not been started')}")
        return EXIT_OK
    if not ended:
        show_error("still running", f"{what} was told to end, and has not in {wait_s:.0f} s.")
        return EXIT_BUG
    after = f". {goes_on(folder)}" if (folder / CONFIG).is_file() else ""
    _say(f"{what} has ended: {_outcome(folder, 'it had not begun')}{after}")
    return EXIT_OK


def _say(text: str) -> None:
    """Say a line which may have a command in it, to be copied: one line, however long."""
    say(make_console(stderr=True), text, "dim")


def _outcome(folder: Path, nothing: str) -> str:
    """Return what has come of a run, `nothing` perhaps, or of the jobs of a sweep."""
    if not (folder / SUMMARY).is_file():
        return str(read_result(folder).get("status", nothing))
    sweep = load_sweep(folder.absolute())
    sweep.settle()
    return count_jobs(sweep) if sweep.is_done else f"{count_jobs(sweep)}. {how_to_resume(sweep)}"


def _end_job(folder: Path, job_id: str, wait_s: float) -> bool:
    """End a job when it has saved, or when `wait_s` is over; return whether it has ended."""
    watch = slurm.Watch(job_id)

    def has_ended() -> bool:
        watch.look()
        return watch.ended

    slurm.cancel_saved(folder, job_id)
    until = time.monotonic() + wait_s
    while (left := until - time.monotonic()) > 0:
        slurm.signal_agents(job_id)
        if _wait(has_ended, min(left, RESEND_S)):
            return True
    slurm.cancel(job_id)
    return _wait(has_ended, AFTER_GRACE_S)


def _tell(folder: Path, process: Holder) -> None:
    """Tell the process that trains in a folder to end.

    Raises:
        ConfigError: when that cannot be done from here, or by this user.
    """
    there = f"{folder} is in use by {process}"
    if not process.is_here:
        raise ConfigError(
            f"{there}, and this is {socket.gethostname()}. Run there: "
            f"llmtrain cancel {folder.absolute()}"
        )
    try:
        os.kill(process.pid, signal.SIGTERM)
    except ProcessLookupError:
        if holder(folder) == process:  # it has not ended just now
            raise ConfigError(
                f"{there}, which cannot be seen from here: it runs in another container of this "
                "machine. Run llmtrain cancel in that one."
            ) from None
    except PermissionError:
        raise ConfigError(
            f"{there}, which belongs to another user. Only they, or root, can end it."
        ) from None


def _wait(has_ended: Callable[[], bool], wait_s: float) -> bool:
    until = time.monotonic() + wait_s
    while not has_ended():
        if time.monotonic() > until:
            return False
        time.sleep(LOOK_S)
    return True
