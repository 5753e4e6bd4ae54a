"""The command of a rendered pod, run as the pod would: with its arguments and variables."""

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.expansion import expanded
from tests.support.runs import SYNTHETIC, TINY, environment, metric_lines

pytestmark = [pytest.mark.integration, pytest.mark.slow]

DEADLINE_S = 240


def render(mount: Path, *overrides: str) -> dict[str, Any]:
    """Return the JobSet of a tiny run whose volume is `mount`."""
    words = [
        *TINY, *SYNTHETIC, "train.steps=6", "launcher=kubernetes", "launcher.image=llmtrain",
        "launcher.claim=shared", f"launcher.mount_path={mount}", *overrides,
    ]  # fmt: skip
    answered = subprocess.run(
        [sys.executable, "-m", "llmtrain", "train", *words, "--dry-run"],
        env=environment(), capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert answered.returncode == 0, answered.stderr
    jobset: dict[str, Any] = yaml.safe_load(answered.stdout)
    return jobset


def start_pod(jobset: dict[str, Any], index: int, hosts: dict[str, str]) -> subprocess.Popen[str]:
    """Start what pod `index` runs; `hosts` are the addresses of names that only a cluster has."""
    spec = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    container = spec["containers"][0]
    variables = {entry["name"]: entry["value"] for entry in container["env"]}
    variables["JOB_COMPLETION_INDEX"] = str(index)
    assert container["command"] == ["llmtrain"]
    arguments = [expanded(argument, variables) for argument in container["args"]]
    for name, address in hosts.items():
        arguments = [argument.replace(name, address) for argument in arguments]
    return subprocess.Popen(
        [sys.executable, "-m", "llmtrain", *arguments],
        env=environment(**variables), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def assert_completed(run_dir: Path, world_size: int) -> None:
    assert json.loads((run_dir / "result.json").read_text())["status"] == "completed"
    assert json.loads((run_dir / "plan.json").read_text())["world_size"] == world_size
    assert [line["step"] for line in metric_lines(run_dir)] == [1, 2, 3, 4, 5, 6]


def test_one_pod_trains_and_a_new_one_goes_on(tmp_path: Path) -> None:
    prompt = "$(HOME) 'or' \"not\"\n to be"
    jobset = render(tmp_path, "launcher.job_name=alone", f"train.sample_prompt={prompt}")
    for _ in range(2):  # the second as after an eviction that came too late
        pod = start_pod(jobset, 0, {})
        _, told = pod.communicate(timeout=DEADLINE_S)
        assert pod.returncode == 0, told
        run_dir = tmp_path / "runs" / "default" / "alone"
        assert_completed(run_dir, 1)
    assert f"resuming {run_dir}" in told
    config = yaml.safe_load((run_dir / "config.yaml").read_text())
    assert config["train"]["sample_prompt"] == prompt
    assert list((tmp_path / "cache").iterdir()), "the data is kept on the volume"


def test_two_pods_meet_and_train(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    jobset = render(
        tmp_path, "launcher.job_name=pair", "launcher.nnodes=2", "launcher.nproc_per_node=1",
        "strategy=data", f"launcher.port={port}", "launcher.join_timeout_s=120",
    )  # fmt: skip
    hosts = {"pair-node-0-0.pair": "127.0.0.1"}
    pods = [start_pod(jobset, index, hosts) for index in (1, 0)]
    try:
        ends = [pod.communicate(timeout=DEADLINE_S) for pod in pods]
    finally:
        for pod in pods:
            pod.kill()
    assert [pod.returncode for pod in pods] == [0, 0], ends
    assert_completed(tmp_path / "runs" / "default" / "pair", 2)
