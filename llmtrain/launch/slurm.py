"""Slurm's commands, and what a run keeps of its job.

RUN_DIR/slurm/job.sh      the batch script          RUN_DIR/slurm/job.json    its id
RUN_DIR/code/llmtrain/    the code as submitted     RUN_DIR/logs/slurm-*.out  what jobs print
RUN_DIR/slurm/cancelled   it is to end
"""

import contextlib
import json
import os
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from llmtrain.durable import replace_text
from llmtrain.errors import ConfigError

FOLDER = "slurm"
SCRIPT = f"{FOLDER}/job.sh"
JOB = f"{FOLDER}/job.json"
ARRAY = f"{FOLDER}/array.sh"
"""The batch script of a sweep's job array."""
CODE = "code"
CANCELLED = f"{FOLDER}/cancelled"
"""The id of the job that its script is to end, not to queue again, when its agents have saved."""

SIGNAL_S = 10.0
"""How long scancel may take to send a signal: under 22.05 it tries again for long, the signal sent,
where a task of an array has just ended."""

CALL_S = 120.0
"""How long a command of Slurm's may take: a controller that is gone is else waited for."""

PATIENCE_S = 300.0
"""How long a command that waits for jobs goes without an answer: a backup controller takes over
after SlurmctldTimeout, two minutes where nothing else is set."""

FORGOTTEN = re.compile(r"Invalid job id|Job \S+ not found")
"""How scontrol says that there is no such job, or no such task in its array (exit code 1)."""

ENDED = {
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY",
    "PREEMPTED", "TIMEOUT",
}  # fmt: skip
"""States of a job that do not change any more."""

OF_A_JOB = ("SLURM_", "PMI_", "PMIX_", "LLMTRAIN_PARENT_PID")
"""Variables of the job or step that a submission may happen in; its own job must not have them."""


LOST = re.compile(r"timed out|Zero Bytes were transmitted")
"""How a command of Slurm's says that it has asked, and an answer was not heard."""


ABSENT = re.compile(
    r"resolve_ctls_from_dns_srv|fetch_config|establish a configuration source"
    r"|Unable to contact slurm controller",
    re.IGNORECASE,
)
"""How a command of Slurm's says that it has nobody to ask: nothing was done."""


class NoAnswerError(ConfigError):
    """Slurm was asked, and may have done it, but has not said so."""


@dataclass(frozen=True)
class Submitted:
    """A run's, or a sweep's, job as it was submitted."""

    job_id: str
    """As squeue and scancel take it: 12, or 12_3 in an array."""
    submitted: float
    """Unix s."""


@dataclass(frozen=True)
class JobState:
    """What Slurm says of a job."""

    state: str
    """PENDING, RUNNING, COMPLETED ...; UNKNOWN: Slurm has forgotten it."""
    reason: str = ""
    """Why it waits."""
    requeues: int = 0

    @property
    def is_active(self) -> bool:
        """Whether it waits, runs, or is just ending."""
        return self.state not in ENDED and self.state != "UNKNOWN"


def check_folder(folder: Path) -> None:
    """Refuse a folder that PYTHONPATH or a line of a batch script cannot hold.

    Raises:
        ConfigError: its path has a colon or a line break.
    """
    if set(str(folder)) & {":", "\n", "\r"}:
        raise ConfigError(
            f"run_dir={folder}: a colon or a line break in it cannot be told to Python and Slurm; "
            "name another folder with run_dir=DIR."
        )


def snapshot(folder: Path) -> Path:
    """Copy the package into `folder`/code and return that: what is edited later changes nothing.

    Raises:
        ConfigError: when it cannot be copied.
    """
    package = Path(__file__).resolve().parents[1]
    code = folder / CODE
    try:
        shutil.rmtree(code, ignore_errors=True)
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(package, code / package.name, ignore=ignored)
    except OSError as error:
        raise ConfigError(
            f"run_dir={folder}: the code cannot be copied there ({error}); make room, or name "
            "another folder with run_dir=DIR."
        ) from None
    return code


def submit(script: Path) -> str:
    """Submit a batch script; return the job's id.

    Raises:
        NoAnswerError: the job may have been accepted.
        ConfigError: sbatch is not there, or refuses, in its words.
    """
    try:
        done = _call(["sbatch", "--parsable", str(script)])
        if done.returncode != 0 and LOST.search(_words(done)):
            raise NoAnswerError(f"sbatch:{_quoted(done)}")
    except NoAnswerError as error:
        raise NoAnswerError(
            f"{error}\nThe job may be queued all the same, so its folder stays. Look for it before "
            f"you submit again, by its script {script}: squeue --me --format='%i %T %o'"
        ) from None
    if done.returncode != 0 and ABSENT.search(_words(done)):
        raise ConfigError(
            f"sbatch (exit code {done.returncode}):{_quoted(done)}\n"
            "Slurm is not configured on this machine, or its controller does not answer "
            "(`scontrol ping`). Submit from a login node of the cluster, or use launcher=local."
        )
    if done.returncode != 0:
        raise ConfigError(
            f"sbatch refuses the job (exit code {done.returncode}):{_quoted(done)}\n"
            "Partitions and limits: sinfo, scontrol show partition; what was asked for: "
            "llmtrain train ... --dry-run."
        )
    return done.stdout.strip().partition(";")[0]


def check_commands() -> None:
    """Refuse to submit where there is nothing to submit to.

    Raises:
        ConfigError: sbatch is not on the PATH.
    """
    if shutil.which("sbatch") is None:
        raise ConfigError(
            "launcher=slurm: there is no `sbatch` on the PATH. Submit from a login node of the "
            "cluster (`module load slurm` on some), or use launcher=local."
        )


def ask(job_id: str) -> JobState:
    """Return what Slurm says of a job now.

    Raises:
        ConfigError: in scontrol's words, where it cannot tell: that is not the job's end.
    """
    done = _call(["scontrol", "show", "job", "--oneliner", job_id])
    states = [_state(line) for line in done.stdout.splitlines() if "JobState=" in line]
    if done.returncode == 0 and states:
        # An array has a line for each task.
        return next((state for state in states if state.is_active), states[0])
    if FORGOTTEN.search(_words(done)):
        return JobState("UNKNOWN")
    raise ConfigError(
        f"scontrol show job {job_id} (exit code {done.returncode}):{_quoted(done)}\n"
        "Whether the job runs cannot be told; try again when `scontrol ping` finds a controller."
    )


class Watch:
    """A job that is asked after again and again, until it has ended."""

    def __init__(self, job_id: str) -> None:
        """Set up.

        Args:
            job_id: The job, the array, or its task.
        """
        self._job_id = job_id
        self._answered = time.monotonic()
        self._ended = False

    def look(self) -> JobState:
        """Return what Slurm says of the job now; UNKNOWN without an answer, which is no end.

        Raises:
            ConfigError: in scontrol's words, where there was no answer for `PATIENCE_S`.
        """
        try:
            now = ask(self._job_id)
        except ConfigError:
            if time.monotonic() - self._answered > PATIENCE_S:
                raise
            return JobState("UNKNOWN")
        self._answered = time.monotonic()
        self._ended = not now.is_active
        return now

    @property
    def ended(self) -> bool:
        """Whether Slurm has said that it has ended, or that it knows nothing of it."""
        return self._ended


def _state(line: str) -> JobState:
    """Return the state in a line of `scontrol show job`: words of KEY=VALUE, the first counts."""
    found: dict[str, str] = {}
    for word in line.split():
        key, _, value = word.partition("=")
        found.setdefault(key, value)
    reason = found.get("Reason", "")
    return JobState(
        found.get("JobState", "UNKNOWN"),
        "" if reason == "None" else reason,
        int(found.get("Restarts", "0") or 0),
    )


def cancel(job_id: str, *options: str) -> None:
    """Have Slurm end a job, in KillWait (30 s).

    Args:
        job_id: The job, the array, or its task.
        options: Of scancel, that say what of it.

    Raises:
        ConfigError: in scancel's words.
    """
    done = _call(["scancel", *options, job_id])
    if done.returncode != 0:
        raise ConfigError(f"scancel {job_id}:{_quoted(done)}")


def cancel_saved(folder: Path, job_id: str) -> None:
    """End what waits of a job, and have what runs end when it has saved: ask `signal_agents` to.

    Args:
        folder: Of the run, or of the sweep whose array it is.
        job_id: Its job.

    Raises:
        ConfigError: in scancel's words.
    """
    for path in [folder / JOB, *folder.glob(f"*/{JOB}")]:
        run_dir = path.parents[1]
        submitted = find(run_dir)
        if submitted is not None and submitted.job_id in (job_id, f"{job_id}_{run_dir.name}"):
            replace_text(run_dir / CANCELLED, f"{submitted.job_id}\n")
    cancel(job_id, "--state=PENDING")


def signal_agents(job_id: str) -> None:
    """Send SIGTERM to a job's agents, which save; none may be there yet, so ask again."""
    with contextlib.suppress(ConfigError):
        _call(["scancel", "--signal=TERM", job_id], SIGNAL_S)


def keep(folder: Path, job_id: str) -> Submitted:
    """Note the job of a run, or of a sweep, in its folder."""
    submitted = Submitted(job_id, time.time())
    (folder / FOLDER).mkdir(exist_ok=True)
    (folder / CANCELLED).unlink(missing_ok=True)
    replace_text(folder / JOB, json.dumps(asdict(submitted), indent=2) + "\n")
    return submitted


def find(folder: Path) -> Submitted | None:
    """Return the job that a run, or a sweep, was submitted as last; None: it never was."""
    try:
        return Submitted(**json.loads((folder / JOB).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def refuse_active(run_dir: Path) -> None:
    """Refuse to start in a run directory whose job waits or runs.

    Raises:
        ConfigError: names the job; or Slurm cannot be asked.
    """
    submitted = find(run_dir)
    if submitted is None or os.environ.get("SLURM_JOB_ID") == submitted.job_id:
        return
    try:
        state = ask(submitted.job_id)
    except ConfigError as error:
        raise ConfigError(
            f"run_dir={run_dir} may be in use: it was submitted as Slurm job {submitted.job_id}.\n"
            f"{error}\nIf you know that it has ended: rm {run_dir / JOB}. Or name another folder "
            "with run_dir=DIR."
        ) from None
    if state.is_active:
        raise ConfigError(
            f"run_dir={run_dir} is in use: Slurm job {submitted.job_id} of it is {state.state}. "
            f"Wait for it, end it (llmtrain cancel {shlex.quote(str(run_dir))}), or name another "
            "folder with run_dir=DIR."
        )


def _call(
    command: Sequence[str], timeout_s: float | None = None
) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if not k.startswith(OF_A_JOB) or k == "SLURM_CONF"}
    timeout_s = CALL_S if timeout_s is None else timeout_s
    try:
        return subprocess.run(
            command, env=env, capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except FileNotFoundError:
        raise ConfigError(f"There is no `{command[0]}` on the PATH.") from None
    except subprocess.TimeoutExpired:
        raise NoAnswerError(
            f"`{' '.join(command)}` has not answered in {timeout_s:.0f} s: Slurm's controller "
            "cannot be reached (try `scontrol ping`)."
        ) from None


def _words(done: subprocess.CompletedProcess[str]) -> str:
    """Return what a command has said, line by line."""
    lines = (" ".join(line.split()) for line in (done.stderr or done.stdout).splitlines())
    return "\n".join(line for line in lines if line)


def _quoted(done: subprocess.CompletedProcess[str]) -> str:
    """Return a command's words to stand behind a colon: one line there, several below it."""
    words = _words(done) or "no answer"
    return f"\n{words}" if "\n" in words else f" {words}"
