"""Runs under a real Slurm of two nodes: completed, preempted, out of time, cancelled, killed."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from tests.support.runs import metric_lines
from tests.support.slurm import Cluster, cluster, why_not
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).resolve().parents[2]

TINY = (
    "model.n_layers=2", "model.dim=32", "model.n_heads=2", "model.seq_len=32", "tokenizer=byte",
    "data=synthetic", "data.documents=40", "train.global_batch_size=4", "train.eval_tokens=256",
    "train.sample_tokens=0", "train.eval_every_steps=null", "train.log_every_steps=1",
    "train.steps=40", "train.device=cpu", "scheduler.warmup_steps=1", "metrics.peak_tflops=1",
    "metrics.progress=false", "checkpoint.every_steps=null", "launcher=slurm",
    "launcher.poll_s=0.5",
)  # fmt: skip

HYBRID = ("strategy=hybrid", "strategy.tp=2", "strategy.dp_replicate=2", "launcher.nnodes=2",
          "launcher.nproc_per_node=2")  # fmt: skip

SITE = """
# While `slow` stands beside this file, rank 0 takes a third of a second for every line of metrics,
# or the seconds that it holds.
import contextlib, json, pathlib, time
slow, dumps = pathlib.Path(__file__).with_name("slow"), json.dumps
def slowed(value, *args, **kwargs):
    if isinstance(value, dict) and "loss" in value:
        with contextlib.suppress(OSError):
            time.sleep(float(slow.read_text() or 0.33))
    return dumps(value, *args, **kwargs)
json.dumps = slowed
"""

STATE_S = 240.0
"""How long a state is waited for: a time limit is looked at every half a minute, a job that is
queued again waits for its credential to end, and importing torch takes long on busy cores."""


class Desk:
    """A folder from which runs are submitted."""

    def __init__(self, folder: Path, slurm: Cluster, package: Path = ROOT) -> None:
        self.folder, self.slurm = folder, slurm
        site = folder / "site"
        site.mkdir()
        (site / "sitecustomize.py").write_text(SITE)
        self.slow = site / "slow"
        self.env = {
            "PYTHONPATH": os.pathsep.join([str(package), str(site)]),
            "LLMTRAIN_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1",
        }  # fmt: skip

    def llmtrain(
        self, *words: str | Path, code: int = 0, timeout: float = 600.0
    ) -> subprocess.CompletedProcess[str]:
        command = ["env", "-C", self.folder, sys.executable, "-m", "llmtrain", *words]
        done = self.slurm.run(*command, env=self.env, check=False, timeout=timeout)
        assert done.returncode == code, f"{done.stdout}{done.stderr}{self.outputs()}"
        return done

    def submit(self, name: str, *words: str) -> "Run":
        run_dir = self.folder / name
        done = self.llmtrain("train", *TINY, *words, f"run_dir={run_dir}")
        found = re.fullmatch(r"submitted Slurm job (\d+)\n", done.stdout)
        assert found, done.stdout
        return Run(self, run_dir, found[1])

    def outputs(self) -> str:
        """Return what all jobs have printed."""
        paths = sorted(self.folder.rglob("slurm-*.out"))
        return "\n".join(f"{path}:\n{path.read_text()}" for path in paths)


class Run:
    """A submitted run."""

    def __init__(self, desk: Desk, run_dir: Path, job_id: str) -> None:
        self.desk, self.run_dir, self.job_id = desk, run_dir, job_id

    @property
    def steps(self) -> list[int]:
        try:
            return [line["step"] for line in metric_lines(self.run_dir)]
        except (OSError, ValueError):
            return []

    @property
    def result(self) -> dict[str, Any]:
        return json.loads((self.run_dir / "result.json").read_text())

    @property
    def said(self) -> str:
        return (self.run_dir / "logs" / f"slurm-{self.job_id}.out").read_text()

    def wait_for(self, *states: str) -> None:
        slurm = self.desk.slurm
        wait_until(lambda: slurm.state(self.job_id) in states, f"{states}", STATE_S)

    def wait_for_step(self, step: int) -> None:
        wait_until(lambda: self.steps[-1:] >= [step], f"step {step}", STATE_S)

    def completes(self) -> None:
        ended = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "PREEMPTED")
        self.wait_for(*ended)
        assert self.desk.slurm.state(self.job_id) == "COMPLETED", self.said
        assert self.result["status"] == "completed" and self.steps == list(range(1, 41))

    def state(self) -> dict[str, Any]:
        """Return every whole tensor of the last step: weights and the optimizer's state.

        Which rank wrote what of them, and so the files, may differ.
        """
        whole = self.run_dir / "whole.safetensors"
        words = ("checkpoint", "convert", f"run={self.run_dir}", f"out={whole}", "all=true")
        self.desk.llmtrain(*words)
        return load_file(whole)


def assert_equal(one: Run, two: Run) -> None:
    """The last checkpoints hold the same bits."""
    first, second = one.state(), two.state()
    assert len(first) > 10 and first.keys() == second.keys()
    for name, tensor in first.items():
        assert tensor.tobytes() == second[name].tobytes(), name


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if reason := why_not():
        pytest.skip(f"THE TESTS OF SLURM DID NOT RUN: {reason}")
    with cluster(tmp_path_factory.mktemp("slurm")) as slurm:
        yield slurm
        assert slurm.processes() == [], "jobs have left processes"


@pytest.fixture
def desk(slurm: Cluster, tmp_path: Path) -> Desk:
    return Desk(tmp_path, slurm)


@pytest.fixture(scope="module")
def undisturbed(slurm: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of four ranks on two nodes that nothing happened to."""
    desk = Desk(tmp_path_factory.mktemp("undisturbed"), slurm)
    run_dir = desk.folder / "run"
    words = (*HYBRID, "launcher.wait=true", f"run_dir={run_dir}")
    done = desk.llmtrain("train", *TINY, *words)
    run = Run(desk, run_dir, re.sub(r"\D", "", done.stdout))
    assert f"job {run.job_id}: COMPLETED" in done.stderr
    return run


def test_hybrid_over_two_nodes_completes(undisturbed: Run) -> None:
    undisturbed.completes()
    assert "2 of 2 hosts, 4 processes" in undisturbed.said
    table = json.loads(undisturbed.desk.llmtrain("jobs", "--json", ".").stdout)["jobs"]
    assert table == [{
        "run": "run", "job": undisturbed.job_id, "state": "COMPLETED", "reason": "",
        "status": "completed", "step": 40, "checkpoint": 40, "requeues": 0,
    }]  # fmt: skip
    followed = undisturbed.desk.llmtrain("logs", "run", "-f").stdout
    assert "step_00000040" in followed and "completed at step 40/40" in followed


def test_a_preempted_run_goes_on_to_the_same_weights(desk: Desk, undisturbed: Run) -> None:
    desk.slow.touch()
    run = desk.submit("run", *HYBRID)
    run.wait_for_step(5)
    urgent = ("sbatch", "--parsable", "-p", "urgent", "-N2", "--exclusive", "-o", "/dev/null")
    job = desk.slurm.run(*urgent, "--wrap", "sleep 2").stdout.strip()
    wait_until(lambda: desk.slurm.state(job) == "COMPLETED", "the urgent job", STATE_S)
    saved = run.result
    assert saved["status"] == "preempted" and 5 <= saved["step"] < 40
    desk.slow.unlink()
    run.completes()
    assert desk.slurm.job(run.job_id)["Restarts"] == "1"
    assert f"step_{saved['step']:08d}" in run.said.partition("queued again")[2]
    assert_equal(run, undisturbed)


def test_an_agent_that_is_killed_is_started_again(desk: Desk, undisturbed: Run) -> None:
    desk.slow.touch()
    run = desk.submit("run", *HYBRID, "launcher.max_restarts=1", "checkpoint.every_steps=4")
    run.wait_for_step(6)
    os.kill(agent_of(run, node=1), signal.SIGKILL)
    wait_until(lambda: "started again" in run.said, "another start", STATE_S)
    desk.slow.unlink()
    run.completes()
    assert "an agent was killed (exit code 137): started again, 1 of 1 times" in run.said
    assert_equal(run, undisturbed)


def agent_of(run: Run, node: int) -> int:
    """Return the process id of a node's agent."""
    for pid in run.desk.slurm.processes():
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        environ = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        is_agent = b"llmtrain.agent" in words and str(run.run_dir).encode() in words
        if is_agent and words[0].endswith(b"python") and f"SLURM_NODEID={node}".encode() in environ:
            return pid
    raise AssertionError("no agent")


def in_one_line(panel: str) -> str:
    """Return what a panel says, without its frame and line breaks."""
    return " ".join(panel.replace("│", " ").split())


def test_a_run_that_is_cancelled_has_saved(desk: Desk) -> None:
    desk.slow.touch()
    words = ("launcher.nproc_per_node=2", "strategy=data", "train.steps=1000")
    run = desk.submit("run", *words)
    run.wait_for_step(3)
    refused = desk.llmtrain("train", *TINY, f"run_dir={run.run_dir}", code=2)
    in_use = f"Slurm job {run.job_id} of it is RUNNING"
    assert in_use in in_one_line(refused.stderr)
    here = [word for word in TINY if not word.startswith("launcher")]
    local = desk.llmtrain("train", *here, f"run_dir={run.run_dir}", code=2)
    assert in_use in in_one_line(local.stderr)
    desk.slow.write_text("35")  # a step that takes longer than KillWait leaves for a save
    run.wait_for_step(run.steps[-1] + 1)
    desk.llmtrain("cancel", "run")
    assert "told to end by Slurm" not in run.said
    assert desk.slurm.state(run.job_id) == "CANCELLED"
    assert run.result["status"] == "preempted" and 3 <= run.result["step"] < 1000
    assert [p.name for p in (run.run_dir / "checkpoints").glob("step_*")] == [
        f"step_{run.result['step']:08d}"
    ]
    assert "preempted" in desk.llmtrain("cancel", "run").stderr
    assert desk.slurm.job(run.job_id)["Restarts"] == "0"


def test_a_run_out_of_time_is_queued_again_until_it_is_done(desk: Desk) -> None:
    desk.slow.touch()
    # Slurm may send the signal half a minute early, and 40 steps of 4 s do not fit.
    limit = ("launcher.time=2", "launcher.grace_s=40", "launcher.max_requeues=5")
    sitecustomize = desk.slow.with_name("sitecustomize.py")
    sitecustomize.write_text(SITE.replace("0.33", "4"))
    run = desk.submit("run", *limit)
    wait_until(lambda: desk.slurm.job(run.job_id)["Restarts"] == "1", "a requeue", STATE_S)
    assert run.result["status"] == "preempted" and 0 < run.result["step"] < 40
    run.wait_for_step(run.result["step"] + 1)
    desk.slow.unlink()
    run.completes()
    assert "time is nearly up: saving" in run.said
    assert "queued again, 1 of 5 times" in run.said


def test_an_array_of_four_with_one_that_fails(desk: Desk) -> None:
    words = ("optimizer.lr=1e-3,1e30,3e-3,1e-2", "launcher.wait=true", "train.steps=10",
             "launcher.array_parallel=3", "launcher.nproc_per_node=1")  # fmt: skip
    done = desk.llmtrain("train", "-m", *TINY, *words, code=1)
    assert re.match(r"submitted Slurm job array \d+\n", done.stdout)
    [folder] = (desk.folder / "sweeps" / "default").iterdir()
    jobs = json.loads((folder / "sweep.json").read_text())["jobs"]
    assert [job["status"] for job in jobs] == ["completed", "failed", "completed", "completed"]
    array = json.loads((folder / "slurm" / "job.json").read_text())["job_id"]
    rows = json.loads(desk.llmtrain("jobs", "--json", "sweeps").stdout)["jobs"]
    assert {row["job"]: row["status"] for row in rows} == {
        f"{array}_{number}": job["status"] for number, job in enumerate(jobs)
    }
    assert "#SBATCH --array=0-3%3" in (folder / "slurm" / "array.sh").read_text()
    assert not any((folder / str(n) / "code").exists() for n in range(4))


def test_what_is_edited_later_does_not_change_a_queued_job(slurm: Cluster, tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    for name in ("llmtrain", "conf"):
        shutil.copytree(ROOT / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
    desk = Desk(tmp_path, slurm, package=checkout)
    run = desk.submit("run", "launcher.sbatch_options=[--hold]", "launcher.nproc_per_node=1")
    for path in checkout.rglob("*.py"):
        path.write_text("raise SystemExit('edited')")
    slurm.run("scontrol", "release", run.job_id)
    run.completes()


def test_a_submission_that_is_refused_leaves_nothing(desk: Desk) -> None:
    run_dir = desk.folder / "run"
    words = ("launcher.partition=nowhere", f"run_dir={run_dir}")
    refused = desk.llmtrain("train", *TINY, *words, code=2)
    assert "invalid partition specified: nowhere" in in_one_line(refused.stderr)
    assert not run_dir.exists()
    began = time.monotonic()
    dry = desk.llmtrain("train", *TINY, *words, "--dry-run")
    assert "#SBATCH --partition=nowhere" in dry.stdout and time.monotonic() - began < 60
    assert not run_dir.exists()


HOSTILE = 'it\'s a "run" $(touch ran) `touch ran` #1 100%j'


def test_a_hostile_folder_is_a_folder(desk: Desk) -> None:
    run = desk.submit(HOSTILE, "launcher.nproc_per_node=1", "train.steps=40")
    run.completes()
    assert "agents ended with exit code 0" in run.said
    assert not list(desk.folder.rglob("ran"))


def test_ranks_that_srun_starts_find_each_other(desk: Desk) -> None:
    run_dir = desk.folder / "ranks"
    words = [word for word in TINY if not word.startswith("launcher")]
    command = (
        "env", "-C", desk.folder, "srun", "--nodes=2", "--ntasks=4", sys.executable, "-m",
        "llmtrain", "train", *words, "strategy=data", f"run_dir={run_dir}",
    )  # fmt: skip
    done = desk.slurm.run(*command, env=desk.env, check=False, timeout=400.0)
    assert done.returncode == 0, done.stderr
    assert json.loads((run_dir / "result.json").read_text())["status"] == "completed"
    assert json.loads((run_dir / "plan.json").read_text())["world_size"] == 4
    assert done.stderr.count("completed at step 40/40") == 1
