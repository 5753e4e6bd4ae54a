"""What launcher=skypilot renders: valid by SkyPilot's schema, and what its hosts run."""

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from llmtrain.cli import main
from llmtrain.config.groups.cloud import SkyPilotLauncherConfig
from llmtrain.config.plan import make_plan
from llmtrain.launch.skypilot import render_task
from tests.support.runs import compose_run, environment
from tests.unit.launch.test_kubernetes import HOSTILE, refused, rendered

ROOT = Path(__file__).resolve().parents[3]
SCHEMA = json.loads((ROOT / "tests/support/schemas/skypilot_task.json").read_text())
GOLDEN = Path(__file__).with_name("task.golden.yaml")

FULL = (
    "launcher=skypilot", "launcher.job_name=books", "launcher.nnodes=2", "launcher.volume=shared",
    "launcher.gpu_type=H100", "launcher.gpus_per_node=2", "launcher.cpus_per_node=16+",
    "launcher.mem=64+", "launcher.disk_gb=200", "launcher.use_spot=true", "launcher.infra=k8s",
    "strategy=data", "train.sample_prompt=to be",
)  # fmt: skip


def assert_valid(task: dict[str, Any]) -> None:
    jsonschema.validate(task, SCHEMA)


def test_the_text_is_as_agreed_and_valid(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *FULL, "--dry-run"]) == 0
    told = capsys.readouterr()
    assert told.out == GOLDEN.read_text()
    assert "4 on 2 hosts = dp_replicate 4" in told.err
    assert_valid(yaml.safe_load(told.out))


def test_one_host_has_a_bucket(capsys: pytest.CaptureFixture[str]) -> None:
    task = rendered(capsys, "launcher=skypilot", "launcher.bucket=runs")
    assert_valid(task)
    assert task["file_mounts"] == {"/shared": {"name": "runs", "mode": "MOUNT_CACHED"}}
    assert "launcher=local" in task["run"]


@pytest.mark.parametrize(
    ("path", "key", "value"),
    [
        ((), "num_node", 2),
        ((), "num_nodes", "2"),
        (("resources",), "spot", True),
        (("resources",), "infra", "amazon"),
        (("resources", "job_recovery"), "max_restarts", 3),
        (("volumes",), "/data", {"name": "x"}),
    ],
)
def test_what_is_wrong_is_found(path: tuple[str, ...], key: str, value: Any) -> None:
    task = yaml.safe_load(GOLDEN.read_text())
    assert_valid(copy.deepcopy(task))
    inner = task
    for step in path:
        inner = inner[step]
    inner[key] = value
    with pytest.raises(jsonschema.ValidationError):
        assert_valid(task)


def test_hosts_run_what_was_typed(tmp_path: Path) -> None:
    run = compose_run(
        "launcher=skypilot", "launcher.volume=shared", "launcher.nnodes=2", "strategy=data"
    )
    assert isinstance(run.launcher, SkyPilotLauncherConfig)
    typed = [f"train.sample_prompt={value}" for value in HOSTILE]
    plan = make_plan(run, gpus=0)
    task = yaml.safe_load(render_task(run, run.launcher, plan, typed)[0])
    assert_valid(task)
    program = tmp_path / ".llmtrain" / "bin" / "llmtrain"
    program.parent.mkdir(parents=True)
    program.write_text(f"#!{sys.executable}\nimport json, sys\nprint(json.dumps(sys.argv[1:]))\n")
    program.chmod(0o755)
    told = subprocess.run(
        ["bash", "-c", task["run"]], capture_output=True, text=True, check=True,
        env=environment(HOME=str(tmp_path), SKYPILOT_NODE_IPS="10.0.0.7\n10.0.0.8"),
    )  # fmt: skip
    words = json.loads(told.stdout)
    assert words[: len(typed) + 1] == ["train", *typed]
    assert words[-1] == "launcher.rdzv_endpoint=10.0.0.7:29500"


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ([], "launcher.volume=NAME (any number of hosts) or launcher.bucket=NAME (one host)"),
        (["launcher.bucket=a", "launcher.volume=b"], "give one of them"),
        (["launcher.bucket=a", "launcher.nnodes=2"], "launcher.volume=NAME"),
        (["launcher.bucket=a", "launcher.gpu_type=H100"], "belong together"),
        (["launcher.bucket=a", "launcher.mem=64Gi"], "launcher.mem=16+"),
    ],
)
def test_what_cannot_work_is_refused(
    overrides: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert says in refused(capsys, "launcher=skypilot", *overrides)


def test_it_starts_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    told = refused(capsys, "launcher=skypilot", "launcher.bucket=a", dry_run=False)
    assert "--dry-run > task.yaml && sky jobs launch task.yaml" in told
    # No line to type is given that would be refused.
    words = ("launcher=skypilot", "launcher.bucket=a", "train.device=cuda")
    assert "task.yaml" not in refused(capsys, *words, dry_run=False)
