"""What `llmtrain logs` shows of a run, and says where there is nothing to show."""

import dataclasses
import json
from pathlib import Path

import pytest

from llmtrain.cli import main
from llmtrain.config.plan import make_plan
from tests.support.runs import compose_run


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run that was frozen, and has logged nothing."""
    (tmp_path / "run" / "logs").mkdir(parents=True)
    (tmp_path / "run" / "config.yaml").touch()
    return tmp_path / "run"


@pytest.mark.parametrize("words", [[], ["-f"]])
def test_the_end_of_a_run_that_never_began_is_told(
    run_dir: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    error = "launcher.nnodes=2 hosts were waited for"
    (run_dir / "result.json").write_text(json.dumps({"status": "failed", "error": error}))
    assert main(["logs", str(run_dir), *words]) == 2
    said = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert "has no log of rank 0; its folder has none" in said
    assert f"The run has ended, failed: {error}" in said


def test_the_log_of_a_server_stands_beside_rank_0s(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = make_plan(
        compose_run("strategy=data", "sync=async", "launcher.nproc_per_node=2"), gpus=0
    )
    assert (plan.world_size, plan.servers) == (2, 1)
    (run_dir / "plan.json").write_text(json.dumps(dataclasses.asdict(plan)))
    for number in range(3):
        (run_dir / "logs" / f"rank_{number}.log").write_text(f"of {number}\n")
    assert main(["logs", str(run_dir)]) == 0
    said = capsys.readouterr().out
    assert "of 0\n" in said and "of 2\n" in said and "of 1\n" not in said
