"""The batch script of a Slurm job: its text, and what it does, with stand-ins for Slurm's commands.

What Slurm itself does with it is shown by tests/integration/test_slurm.py.
"""

import contextlib
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from llmtrain.config.groups.slurm import SlurmLauncherConfig, seconds
from llmtrain.errors import ConfigError
from llmtrain.launch.slurm_script import FIRST_PORT, PAUSE_S, PORTS, TRIES, Task, render
from tests.support.waiting import wait_until

GOLDEN = Path(__file__).parent / "golden"

FULL = SlurmLauncherConfig(
    nnodes=2, nproc_per_node=8, cpus_per_node=96, gpus_per_node=8, gpu_type="h100", mem="0",
    time="2-12:00:00", partition="train,large", account="books", qos="high",
    constraint="ib&h100", sbatch_options=["--exclude=node7"], srun_options=["--cpu-bind=none"],
    modules=["cuda/12.4", "nccl"], setup=["ulimit -l unlimited", 'export HF_HOME="$SCRATCH/hf"'],
    container_image="nvcr.io#nvidia/pytorch:25.01-py3", container_mounts=["/data:/data", "/home"],
    python="/usr/bin/python3", max_restarts=3, max_requeues=20, grace_s=300, array_parallel=4,
)  # fmt: skip

HOSTILE = [
    "two words", "it's", 'a "quote"', "$(touch ran)", "`touch ran`", "; touch ran", "a\\b", "*",
    "#x", "$HOME", "100%j",
]  # fmt: skip


def script(
    launcher: SlurmLauncherConfig,
    *run_dirs: str,
    job_name: str = "books",
    agent: Sequence[str] = (),
) -> str:
    dirs = run_dirs or ("/scratch/runs/books/1",)
    tasks = {n: Task(Path(d), ["--nproc-per-node", "8", *agent]) for n, d in enumerate(dirs)}
    return render(
        launcher, tasks, job_name=job_name, code=Path(dirs[0]) / "code",
        output=Path(dirs[0]) / "logs" / "slurm-%j.out", is_array=len(dirs) > 1,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("job.sh", script(FULL)),
        ("plain.sh", script(SlurmLauncherConfig(python="/usr/bin/python3"))),
        ("array.sh", script(FULL, "/s/0", "/s/1", "/s/2")),
    ],
)
def test_the_text(name: str, text: str) -> None:
    path = GOLDEN / name
    if os.environ.get("LLMTRAIN_GOLDEN"):  # LLMTRAIN_GOLDEN=1 writes what is rendered now
        path.write_text(text)
    assert text == path.read_text()


STAND_INS = {
    "srun": """
        if [ -e "$STAGE/hold" ]; then
            touch "$STAGE/holding"
            while [ ! -e "$STAGE/stopped" ]; do sleep 0.02; done
        fi
        code=$(head -n 1 "$STAGE/codes")
        sed -i 1d "$STAGE/codes"
        exit "${code:-0}" """,
    "scancel": '[ -e "$STAGE/deaf" ] || touch "$STAGE/stopped"',
    "scontrol": """
        case "$1 $2" in
            "show hostnames") printf 'node1\\nnode2\\n'; exit ;;
        esac
        if [ -s "$STAGE/down" ]; then
            sed -i 1d "$STAGE/down"
            echo "Unable to contact slurm controller (connect failure)" >&2
            exit 1
        fi
        case "$1 $2" in
            "show job") cat "$STAGE/job" ;;
        esac""",
    "module": "true",
}


class Stage:
    """A folder with stand-ins that note how they are called, and do as they are told."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "bin").mkdir()
        for name, body in STAND_INS.items():
            note = f"printf '%s\\0' {name} \"$@\" '' >>\"$STAGE/calls\""
            path = folder / "bin" / name
            path.write_text(f"#!/bin/bash\n{note}\n{body}\n")
            path.chmod(0o755)
        self.told(codes=[])
        self.env = {
            **os.environ, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "STAGE": str(folder),
            "SLURM_JOB_ID": "77", "SLURM_JOB_NODELIST": "node[1-2]",
        }  # fmt: skip
        self.process: subprocess.Popen[bytes] | None = None

    def told(self, *, codes: Sequence[int], job: str = "JobState=RUNNING PreemptTime=None") -> None:
        """Have srun exit with `codes` in turn, then 0, and scontrol show `job`."""
        (self.folder / "codes").write_text("".join(f"{code}\n" for code in codes))
        (self.folder / "job").write_text(job)

    def controller_fails(self, times: int) -> None:
        """Have scontrol fail where it needs the controller, `times` times."""
        (self.folder / "down").write_text("\n" * times)

    def start(self, text: str, **env: str) -> None:
        (self.folder / "job.sh").write_text(text)
        with (self.folder / "out").open("wb") as out:
            self.process = subprocess.Popen(
                ["bash", "job.sh"], cwd=self.folder, env={**self.env, **env}, stdout=out,
                stderr=out, start_new_session=True,
            )  # fmt: skip

    def end(self) -> int:
        assert self.process is not None
        return self.process.wait(timeout=60)

    def run(self, text: str, **env: str) -> int:
        self.start(text, **env)
        return self.end()

    def calls(self, name: str = "srun") -> list[list[str]]:
        """Return the arguments of every call of a stand-in; an empty word ends each."""
        try:
            words = (self.folder / "calls").read_text().split("\0")
        except OSError:
            return []
        found: list[list[str]] = [[]]
        for word in words:
            if word:
                found[-1].append(word)
            elif found[-1]:
                found.append([])
        return [call[1:] for call in found if call and call[0] == name]

    @property
    def said(self) -> str:
        return (self.folder / "out").read_text()


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    stage = Stage(tmp_path)
    yield stage
    if stage.process is not None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(stage.process.pid, signal.SIGKILL)


# What is started.


def test_one_agent_a_node_meets_at_the_first(stage: Stage) -> None:
    assert stage.run(script(FULL)) == 0
    [call] = stage.calls()
    assert call == [
        "--ntasks-per-node=1", "--kill-on-bad-exit=1", "--cpus-per-task=96",
        "--container-image=nvcr.io#nvidia/pytorch:25.01-py3",
        "--container-mounts=/data:/data,/home", "--cpu-bind=none", "--nodes=2", "--ntasks=2",
        "/usr/bin/python3", "-P", "-m", "llmtrain.agent", "/scratch/runs/books/1",
        "--nproc-per-node", "8", "--nnodes", "2",
        "--rdzv-endpoint", f"node1:{FIRST_PORT + 77 % PORTS}", "--connect-timeout-s", "300",
    ]  # fmt: skip
    assert stage.calls("module") == [["load", "cuda/12.4"], ["load", "nccl"]]


def test_hostile_values_arrive_as_they_are(stage: Stage) -> None:
    folder = stage.folder / " ".join(HOSTILE).replace("/", "")
    launcher = SlurmLauncherConfig(
        modules=HOSTILE, command_prefix=["env", *HOSTILE],
        srun_options=[f"--x={h}" for h in HOSTILE], container_image=HOSTILE[3],
        container_mounts=HOSTILE, python=HOSTILE[3],
    )  # fmt: skip
    text = script(launcher, str(folder), job_name=" ".join(HOSTILE), agent=HOSTILE)
    assert stage.run(text + 'printf "%s" "$PYTHONPATH"', PYTHONPATH="/before") == 0
    [call] = stage.calls()
    assert call == [
        "--ntasks-per-node=1", "--kill-on-bad-exit=1", f"--container-image={HOSTILE[3]}",
        f"--container-mounts={','.join(HOSTILE)}", *(f"--x={h}" for h in HOSTILE), "--nodes=1",
        "--ntasks=1", "env", *HOSTILE, HOSTILE[3], "-P", "-m", "llmtrain.agent", str(folder),
        "--nproc-per-node", "8", *HOSTILE,
    ]  # fmt: skip
    assert stage.calls("module") == [["load", h] for h in HOSTILE]
    assert not (stage.folder / "ran").exists()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"partition": "a b"}, "launcher.partition='a b' cannot stand in a batch script"),
        ({"account": "a\n#SBATCH --uid=0"}, "launcher.account"),
        ({"qos": "$(x)"}, "launcher.qos"),
        ({"constraint": "a#b"}, "launcher.constraint"),
        ({"setup": ["true\nfalse"]}, "each entry is one line"),
        ({"sbatch_options": ["--a\n#SBATCH --b"]}, "each entry is one line"),
        ({"sbatch_options": ["exclude=n1"]}, "launcher.sbatch_options=[--exclude=n1]"),
        ({"modules": [""]}, "launcher.modules"),
        ({"time": "4h"}, "launcher.time=4h is not a time"),
        ({"time": "2"}, "launcher.grace_s=120 leaves nothing of launcher.time=2"),
        ({"mem": "64 GB"}, "launcher.mem=64G"),
        ({"gpu_type": "h100"}, "launcher.gpus_per_node=8"),
        ({"grace_s": 0}, "launcher.grace_s=0"),
        ({"port": 80}, "from 1024"),
        ({"max_requeues": -1}, "launcher.max_requeues=-1"),
    ],
)
def test_what_a_script_cannot_hold_is_refused(settings: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        SlurmLauncherConfig(**settings)  # type: ignore[arg-type]
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("time", "s"),
    [("30", 1800), ("30:05", 1805), ("4:00:01", 14401), ("2-12", 216000), ("1-0:30", 88200),
     ("1-1:01:01", 90061)],
)  # fmt: skip
def test_times_as_slurm_reads_them(time: str, s: int) -> None:
    assert seconds(time) == s


def test_a_module_that_is_not_there_ends_the_job(stage: Stage) -> None:
    (stage.folder / "bin" / "module").write_text("#!/bin/bash\nexit 3\n")
    assert stage.run(script(FULL)) == 1
    assert stage.calls() == []


def test_setup_lines_may_be_strict(stage: Stage) -> None:
    stage.told(codes=[137])
    strict = SlurmLauncherConfig(setup=["set -eu", "export WORD='a b'"], max_restarts=1)
    assert stage.run(script(strict)) == 0
    assert len(stage.calls()) == 2


# How it ends.

PLAIN = SlurmLauncherConfig(max_restarts=2, max_requeues=3)
RUN = script(PLAIN, "/r")


@pytest.mark.parametrize("code", [0, 1, 2, 130, 143])
def test_what_agents_decide_is_final(stage: Stage, code: int) -> None:
    stage.told(codes=[code])
    assert stage.run(RUN) == code
    assert len(stage.calls()) == 1
    assert not any(call[0] == "requeue" for call in stage.calls("scontrol"))


def test_killed_agents_are_started_again_a_bounded_number_of_times(stage: Stage) -> None:
    stage.told(codes=[137, 139])
    assert stage.run(RUN) == 0
    assert len(stage.calls()) == 3
    (stage.folder / "calls").unlink()
    stage.told(codes=[137, 137, 137])
    assert stage.run(RUN) == 1
    *_, last, told = stage.calls()
    assert len(stage.calls()) == 4 and "llmtrain.agent" in last
    assert told[-4:-1] == ["-m", "llmtrain.launch.outcome", "/r"]
    assert "launcher.max_restarts=2" in told[-1]


def begin(stage: Stage, text: str = RUN, **env: str) -> subprocess.Popen[bytes]:
    """Start a script whose agents train until they are stopped."""
    (stage.folder / "hold").touch()
    stage.start(text, **env)
    wait_until((stage.folder / "holding").exists, "the agents")
    assert stage.process is not None
    return stage.process


def requeues(stage: Stage) -> list[list[str]]:
    return [call for call in stage.calls("scontrol") if call[0] == "requeue"]


@pytest.mark.parametrize("code", [143, 137])
def test_time_that_runs_out_is_a_stop_and_a_requeue(stage: Stage, code: int) -> None:
    stage.told(codes=[code])
    begin(stage).send_signal(signal.SIGUSR1)
    assert stage.end() == code
    assert stage.calls("scancel") == [["--signal=TERM", "77"]]
    assert requeues(stage) == [["requeue", "77"]]


def test_a_run_that_completes_as_time_runs_out_is_not_queued_again(stage: Stage) -> None:
    begin(stage).send_signal(signal.SIGUSR1)
    assert stage.end() == 0 and requeues(stage) == []


def test_a_preemption_with_a_grace_is_told_by_the_job_alone(stage: Stage) -> None:
    stage.told(codes=[143], job="JobState=RUNNING PreemptTime=2026-01-01T00:00:00")
    assert stage.run(RUN) == 143
    assert requeues(stage) == [["requeue", "77"]]


@pytest.mark.parametrize("also", [[], [signal.SIGUSR1]])
def test_who_is_told_to_end_is_not_queued_again(stage: Stage, also: list[signal.Signals]) -> None:
    # Even where it was being preempted.
    stage.told(codes=[143], job="JobState=COMPLETING PreemptTime=2026-01-01T00:00:00")
    (stage.folder / "deaf").touch()
    process = begin(stage)
    for sent in [*also, signal.SIGTERM]:
        process.send_signal(sent)
        time.sleep(0.2)
    (stage.folder / "stopped").touch()
    assert stage.end() == 143
    assert requeues(stage) == []


BRISK = RUN.replace(f"pause_s={PAUSE_S}", "pause_s=0.02")
PREEMPTED = "JobState=RUNNING PreemptTime=2026-01-01T00:00:00"


def test_a_requeue_that_fails_at_first_is_tried_again(stage: Stage) -> None:
    stage.told(codes=[143])
    stage.controller_fails(2)
    begin(stage, BRISK).send_signal(signal.SIGUSR1)
    assert stage.end() == 143
    assert requeues(stage) == [["requeue", "77"]] * 3
    before, again, after = stage.said.partition("queued again, 1 of 3 times")
    assert again and "2 of 15 times" in before and "failed" not in after


def test_a_requeue_that_always_fails_is_a_failed_run(stage: Stage) -> None:
    stage.told(codes=[143])
    stage.controller_fails(1000)
    begin(stage, BRISK).send_signal(signal.SIGUSR1)
    assert stage.end() == 1
    assert len(requeues(stage)) == TRIES
    assert "queued again, " not in stage.said
    *_, outcome = stage.calls()
    assert "llmtrain.launch.outcome" in outcome and "scontrol requeue fails" in outcome[-1]


@pytest.mark.parametrize("code", [143, 137])
def test_no_answer_is_not_a_no_to_whether_it_was_preempted(stage: Stage, code: int) -> None:
    stage.told(codes=[code], job=PREEMPTED)
    stage.controller_fails(2)
    assert stage.run(BRISK) == code
    assert requeues(stage) == [["requeue", "77"]] and len(stage.calls()) == 1
    (stage.folder / "calls").unlink()
    stage.told(codes=[code], job=PREEMPTED)
    stage.controller_fails(1000)
    assert stage.run(BRISK) == 1
    agent, outcome = stage.calls()
    assert "llmtrain.agent" in agent and "scontrol cannot say why" in outcome[-1]


def test_who_is_told_to_end_while_it_cannot_be_queued_again_ends(stage: Stage) -> None:
    stage.told(codes=[143])
    stage.controller_fails(1000)
    process = begin(stage, RUN.replace(f"pause_s={PAUSE_S}", "pause_s=0.5"))
    process.send_signal(signal.SIGUSR1)
    wait_until(lambda: "has failed, 1 of" in stage.said, "a try")
    process.send_signal(signal.SIGTERM)
    assert stage.end() == 143
    assert len(stage.calls()) == 1 and len(requeues(stage)) <= 2


@pytest.mark.parametrize("code", [143, 137])
def test_a_cancelled_run_ends_the_job_itself_once_it_has_saved(stage: Stage, code: int) -> None:
    stage.told(codes=[code], job=PREEMPTED)
    (stage.folder / "slurm").mkdir()
    cancelled = stage.folder / "slurm" / "cancelled"
    text = script(PLAIN, str(stage.folder))
    begin(stage, text)
    cancelled.write_text("77\n")
    (stage.folder / "stopped").touch()
    assert stage.end() == code
    assert stage.calls("scancel") == [["77"]] and requeues(stage) == []
    assert len(stage.calls()) == 1 and not cancelled.exists()


def test_what_an_earlier_job_was_told_does_not_count(stage: Stage) -> None:
    stage.told(codes=[143], job=PREEMPTED)
    (stage.folder / "slurm").mkdir()
    (stage.folder / "slurm" / "cancelled").write_text("76\n")
    assert stage.run(script(PLAIN, str(stage.folder))) == 143
    assert stage.calls("scancel") == [] and requeues(stage) == [["requeue", "77"]]


def test_requeues_are_bounded(stage: Stage) -> None:
    stage.told(codes=[143])
    begin(stage, SLURM_RESTART_COUNT="3").send_signal(signal.SIGUSR1)
    assert stage.end() == 1
    assert requeues(stage) == []
    assert "launcher.max_requeues=3" in stage.calls()[-1][-1]


def test_tasks_of_an_array_never_name_the_whole(stage: Stage) -> None:
    text = script(PLAIN, "/s/0", "/s/1 x")
    stage.told(codes=[143])
    # The last task's own id is that of the array.
    begin(stage, text, SLURM_ARRAY_JOB_ID="77", SLURM_ARRAY_TASK_ID="1").send_signal(signal.SIGUSR1)
    assert stage.end() == 143
    assert stage.calls("scancel") == [["--signal=TERM", "77_1"]]
    assert requeues(stage) == [["requeue", "77_1"]]
    assert "/s/1 x" in stage.calls()[0]


def test_time_that_runs_out_before_the_agents_are_there(stage: Stage) -> None:
    late = SlurmLauncherConfig(setup=["kill -USR1 $$"])
    assert stage.run(script(late)) == 143
    assert stage.calls() == [] and requeues(stage) == [["requeue", "77"]]


def test_the_text_is_bash(tmp_path: Path) -> None:
    text = script(FULL, "/s/0", "/s/1")
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    assert shlex.quote("/s/0") in text
