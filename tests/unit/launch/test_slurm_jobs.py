"""What is made of Slurm's answers, and of none, with stand-ins for its commands; and of a claim.

Real answers are in tests/integration/test_slurm.py.
"""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmtrain.cli import run
from llmtrain.commands import cancel, submit
from llmtrain.commands.logs import is_running
from llmtrain.config import store
from llmtrain.config.plan import make_plan
from llmtrain.config.schema import RunConfig
from llmtrain.errors import ConfigError
from llmtrain.launch import slurm
from llmtrain.launch.claim import LAUNCHER, claimed, holder
from llmtrain.tasks import doctor
from tests.support.runs import SYNTHETIC, TINY, compose_run

GONE = "slurm_load_jobs error: Unable to contact slurm controller (connect failure)"


class Controller:
    """Slurm's commands on the PATH, which answer as they are told and note how they are called."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def answers(self, name: str, body: str) -> None:
        path = self.folder / name
        note = f'echo "{name} $*" >>"{self.folder}/calls"'
        path.write_text(f"#!/bin/bash\n{note}\n{body}\n")
        path.chmod(0o755)

    def shows(self, *states: str) -> None:
        """Have scontrol show these states in turn, the last for ever; "": none answers."""
        (self.folder / "states").write_text("".join(f"{state}\n" for state in states))
        self.answers("scontrol", f"""
            cd "{self.folder}"
            state=$(head -n 1 states)
            [ "$(wc -l <states)" -eq 1 ] || sed -i 1d states
            case $state in
                "") echo "{GONE}" >&2; exit 1 ;;
                FORGOTTEN) echo "slurm_load_jobs error: Invalid job id specified" >&2; exit 1 ;;
                NO_TASK) echo "Job 7_9 not found"; exit 1 ;;
            esac
            echo "JobId=7 JobState=$state Reason=None Restarts=0" """)  # fmt: skip

    def calls(self, name: str) -> list[str]:
        try:
            lines = (self.folder / "calls").read_text().splitlines()
        except OSError:
            return []
        return [line for line in lines if line.split()[0] == name]


@pytest.fixture
def controller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Controller:
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    return Controller(folder)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run that was submitted as job 7."""
    path = tmp_path / "run"
    (path / "logs").mkdir(parents=True)
    slurm.keep(path, "7")
    return path


# No answer is not the end of a job.


def test_only_a_job_that_slurm_has_forgotten_is_unknown(controller: Controller) -> None:
    controller.shows("FORGOTTEN", "NO_TASK", "COMPLETED", "")
    assert slurm.ask("7").state == "UNKNOWN"
    assert slurm.ask("7_9").state == "UNKNOWN"
    assert slurm.ask("7").state == "COMPLETED"
    with pytest.raises(ConfigError, match="Unable to contact slurm controller"):
        slurm.ask("7")


def test_a_run_is_not_started_twice_while_slurm_cannot_be_asked(
    controller: Controller, run_dir: Path
) -> None:
    controller.shows("", "FORGOTTEN")
    with pytest.raises(ConfigError, match="may be in use: it was submitted as Slurm job 7") as no:
        slurm.refuse_active(run_dir)
    assert f"rm {run_dir}/slurm/job.json" in str(no.value)
    slurm.refuse_active(run_dir)


def test_cancel_does_not_say_that_a_run_has_ended_when_it_cannot_ask(
    controller: Controller, run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    controller.shows("")
    with pytest.raises(ConfigError, match="Unable to contact slurm controller"):
        run(["cancel", str(run_dir)])
    assert "not running" not in capsys.readouterr().err
    controller.shows("FORGOTTEN")
    assert run(["cancel", str(run_dir)]) == 0
    assert "is not running" in capsys.readouterr().err


def test_who_waits_outlasts_a_failover(
    controller: Controller, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    controller.shows("RUNNING", "", "", "", "", "COMPLETED")
    job = slurm.find(run_dir)
    assert job is not None
    submit.wait(run_dir, job, 0.01)
    assert len(controller.calls("scontrol")) == 6
    controller.shows("", "RUNNING", "", "COMPLETED")
    watch = slurm.Watch("7")
    assert [is_running(run_dir, watch) for _ in range(4)] == [True, True, True, False]
    monkeypatch.setattr(slurm, "PATIENCE_S", 0.05)
    controller.shows("RUNNING", "")
    with pytest.raises(ConfigError, match="Unable to contact"):
        submit.wait(run_dir, job, 0.01)


def test_jobs_says_what_it_lists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["jobs"]) == 0
    assert "no run below runs or sweeps was submitted to Slurm" in capsys.readouterr().err


# How a job is ended.


def test_cancel_lets_a_running_job_save(controller: Controller, run_dir: Path) -> None:
    controller.shows("RUNNING", "RUNNING", "CANCELLED")
    controller.answers("scancel", "")
    assert run(["cancel", str(run_dir)]) == 0
    assert controller.calls("scancel") == ["scancel --state=PENDING 7", "scancel --signal=TERM 7"]
    assert (run_dir / slurm.CANCELLED).read_text() == "7\n"
    slurm.keep(run_dir, "8")
    assert not (run_dir / slurm.CANCELLED).exists()


def test_cancel_ends_a_job_that_does_not_save_in_time(
    controller: Controller, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cancel, "AFTER_GRACE_S", 1.2)
    monkeypatch.setattr(cancel, "RESEND_S", 0.5)
    controller.shows("RUNNING")
    controller.answers("scancel", "case $* in *TERM*) exit 1 ;; esac")
    assert run(["cancel", str(run_dir)]) == 1
    waiting, *asked, last = controller.calls("scancel")
    assert (waiting, last) == ("scancel --state=PENDING 7", "scancel 7")
    assert len(asked) >= 2 and set(asked) == {"scancel --signal=TERM 7"}


def test_cancel_of_a_sweep_tells_every_run_of_its_array(
    controller: Controller, run_dir: Path
) -> None:
    for number, job_id in enumerate(("7_0", "7_1", "6_2")):  # the last is of an earlier array
        (run_dir / str(number)).mkdir()
        slurm.keep(run_dir / str(number), job_id)
    controller.shows("RUNNING", "CANCELLED")
    controller.answers("scancel", "")
    assert run(["cancel", str(run_dir)]) == 0
    told = [run_dir / str(number) / slurm.CANCELLED for number in range(3)]
    assert [path.read_text() for path in told[:2]] == ["7_0\n", "7_1\n"] and not told[2].exists()


# What becomes of the folder of a submission.


def submit_run(run_dir: Path) -> int:
    run = compose_run(*TINY, *SYNTHETIC, "launcher=slurm", f"run_dir={run_dir}")
    return submit.submit(run, make_plan(run, gpus=0), [])


def test_a_refused_submission_leaves_only_what_was_there(
    controller: Controller, tmp_path: Path
) -> None:
    controller.answers("sbatch", "echo 'sbatch: error: invalid partition' >&2; exit 1")
    new, old = tmp_path / "deep" / "new", tmp_path / "old"
    old.mkdir()
    for folder in (new, old):
        with pytest.raises(ConfigError, match="invalid partition"):
            submit_run(folder)
    assert not new.exists() and old.is_dir()


UNCONFIGURED = """\
sbatch: error: resolve_ctls_from_dns_srv: res_nsearch error: Unknown host
sbatch: error: fetch_config: DNS SRV lookup failed
sbatch: fatal: Could not establish a configuration source"""


@pytest.mark.parametrize("said", [UNCONFIGURED, f"sbatch: error: {GONE}"])
def test_where_slurm_is_not_configured_the_hint_is_another(
    controller: Controller, tmp_path: Path, said: str
) -> None:
    controller.answers("sbatch", f"cat >&2 <<'END'\n{said}\nEND\nexit 1")
    with pytest.raises(ConfigError) as refused:
        submit_run(tmp_path / "run")
    told = str(refused.value)
    assert said in told and "Submit from a login node" in told and "sinfo" not in told
    assert not (tmp_path / "run").exists()


def test_what_sbatch_says_keeps_its_lines(controller: Controller, tmp_path: Path) -> None:
    said = "sbatch: error: invalid   partition\n\nsbatch: error: Batch job submission failed"
    controller.answers("sbatch", f"cat >&2 <<'END'\n{said}\nEND\nexit 1")
    with pytest.raises(ConfigError) as refused:
        submit_run(tmp_path / "run")
    first, *lines, last = str(refused.value).splitlines()
    assert first.endswith("(exit code 1):") and "sinfo" in last
    assert lines == [
        "sbatch: error: invalid partition",
        "sbatch: error: Batch job submission failed",
    ]


@pytest.mark.parametrize(
    ("ping", "status", "said"),
    [
        ("echo 'Slurmctld(primary) at head is UP'", "ok", "at head is UP"),
        ("echo 'Slurmctld(primary) at a is DOWN'; echo 'Slurmctld(backup) at b is UP'", "ok",
         "at b is UP"),
        ("echo 'Slurmctld(primary) at head is DOWN'; exit 1", "warning", "at head is DOWN"),
        (f"echo '{UNCONFIGURED}' >&2; exit 1", "warning", "Could not establish a configuration"),
        ("exec sleep 30", "warning", "no answer in 0.3 s"),
    ],
)  # fmt: skip
def test_the_doctor_asks_for_a_controller(
    controller: Controller, monkeypatch: pytest.MonkeyPatch, ping: str, status: str, said: str
) -> None:
    monkeypatch.setattr(doctor, "PING_S", 0.3 if "sleep" in ping else 30.0)
    controller.answers("sbatch", "")
    controller.answers("scontrol", ping)
    [found] = [finding for finding in doctor.check_launchers() if finding.name == "slurm"]
    assert found.status == status and said in found.value, found
    assert bool(found.fix) == (status == "warning")


def test_the_folder_of_a_job_that_may_be_queued_stays(
    controller: Controller, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation"
    controller.answers("sbatch", f"echo '{lost}' >&2; exit 1")
    with pytest.raises(ConfigError, match=r"Socket timed out(?s:.*)squeue"):
        submit_run(tmp_path / "one")
    controller.answers("sbatch", "exec sleep 30")
    monkeypatch.setattr(slurm, "CALL_S", 0.2)
    with pytest.raises(ConfigError, match=r"not answered(?s:.*)squeue"):
        submit_run(tmp_path / "two")
    assert all((tmp_path / name / "slurm" / "job.sh").is_file() for name in ("one", "two"))


def test_of_two_submissions_at_once_one_is_refused_and_harms_nothing(
    controller: Controller, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    controller.answers("sbatch", "echo 7")
    controller.shows("PENDING")
    folder, make = tmp_path / "run", submit.run_folder

    def overtaken(run: RunConfig) -> Path:  # the other submits after this one has found it new
        monkeypatch.setattr(submit, "run_folder", make)
        assert submit_run(folder) == 0
        return make(run)

    monkeypatch.setattr(submit, "run_folder", overtaken)
    with pytest.raises(ConfigError, match="Slurm job 7 of it is PENDING"):
        submit_run(folder)
    assert slurm.find(folder) is not None and (folder / "config.yaml").is_file()
    assert len(controller.calls("sbatch")) == 1


# Who holds a run directory.

HOLD = """
import sys, time
from pathlib import Path
from llmtrain.launch.claim import claimed
from tests.support.runs import SYNTHETIC, TINY, compose_run
with claimed(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def held(tmp_path: Path) -> Iterator[tuple[Path, subprocess.Popen[str]]]:
    """A run directory, and the process that trains in it."""
    folder = tmp_path / "held"
    (folder / "logs").mkdir(parents=True)
    (folder / "config.yaml").touch()
    command = [sys.executable, "-c", HOLD, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield folder, process
        process.kill()


def test_a_claim_names_its_host(held: tuple[Path, subprocess.Popen[str]]) -> None:
    folder, process = held
    found = holder(folder)
    assert found is not None and found.is_here and found.pid == process.pid
    refused = pytest.raises(ConfigError, match=f"process {process.pid} on {found.host} trains in")
    with refused, claimed(folder):
        pass


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("{pid} elsewhere", "on elsewhere"),
        # Above what the kernel gives out: as one of another container is, not to be seen.
        ("4194999 {host}", "runs in another container"),
    ],
)
def test_cancel_signals_nobody_but_the_one_who_trains(
    held: tuple[Path, subprocess.Popen[str]],
    written: str,
    said: str,
) -> None:
    folder, process = held
    store.save(compose_run(*TINY), folder / "config.yaml")
    host = socket.gethostname()
    text = written.format(pid=process.pid, host=host)
    (folder / "logs" / LAUNCHER).write_text(f"{text}\n")
    with pytest.raises(ConfigError, match=said):
        run(["cancel", str(folder)])
    assert process.poll() is None


def test_cancel_of_another_users_run_is_refused(
    held: tuple[Path, subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, process = held
    store.save(compose_run(*TINY), folder / "config.yaml")

    def refused(pid: int, signum: int) -> None:
        raise PermissionError

    with monkeypatch.context() as patched:  # tests run as root, whom nothing is refused
        patched.setattr(os, "kill", refused)
        with pytest.raises(ConfigError, match="belongs to another user"):
            run(["cancel", str(folder)])
    assert run(["cancel", str(folder)]) == 0
    assert process.wait(10) == -15
