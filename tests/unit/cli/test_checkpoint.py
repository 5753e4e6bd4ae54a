"""`llmtrain checkpoint ...` as typed."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llmtrain.cli import main, run
from llmtrain.commands.complete import complete
from llmtrain.commands.options import COMMANDS
from llmtrain.config.groups.checkpoint_command import ACTIONS, CheckpointCommandConfig
from llmtrain.launch.claim import claimed
from llmtrain.tasks.convert import run_convert
from tests.support.runs import tiny_run, train_frozen


@pytest.fixture
def trained(tmp_path: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    """A run directory with checkpoints of steps 2, 4 and 6, saved in a thread; its last weights."""
    words = ("train.steps=6", "checkpoint.every_steps=2", "checkpoint.keep_last=9")
    run_dir = tiny_run(tmp_path / "run", *words, "checkpoint.async_save=true")
    return run_dir, train_frozen(run_dir)


def told(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, list[dict[str, object]]]:
    code = run(["checkpoint", *words, "--json"])
    found: list[dict[str, object]] = json.loads(capsys.readouterr().out)["checkpoints"]
    return code, found


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["checkpoint", *words]) == 2
    return " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_list_verify_and_delete(
    trained: tuple[Path, dict[str, torch.Tensor]], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, at = trained[0], f"run={trained[0]}"
    code, rows = told(capsys, "list", at)
    assert code == 0
    assert [row["step"] for row in rows] == [2, 4, 6]
    assert [row["names"] for row in rows] == [[], [], ["latest", "best"]]
    assert run(["checkpoint", "verify", at]) == 0
    assert capsys.readouterr().out.count("whole") == 3
    shard = next((folder / "checkpoints" / "step_00000006").glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1])
    code, rows = told(capsys, "verify", at)
    assert code == 1
    assert [bool(row["error"]) for row in rows] == [False, False, True]
    assert shard.name in str(rows[2]["error"])
    assert "would leave" in refusal(capsys, "delete", at, "step=2,4")
    assert run(["checkpoint", "delete", at, "step=2,6"]) == 0
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == ["latest", "step_00000004"]
    with claimed(folder):
        assert "is in use" in refusal(capsys, "delete", at, "step=4")


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_convert(
    dtype: torch.dtype, trained: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    folder, weights = trained
    asked = {torch.float64: "keep", torch.bfloat16: "bf16"}[dtype]
    out = tmp_path / "new" / "model.safetensors"
    run_convert(
        CheckpointCommandConfig(action="convert", run=str(folder), out=str(out), dtype=asked)
    )
    converted = load_file(out)
    assert weights.keys() == converted.keys()
    for name, value in weights.items():
        assert torch.equal(converted[name], value.to(dtype)), name
    everything = CheckpointCommandConfig(action="convert", run=str(folder), out=str(out), all=True)
    run_convert(everything)
    assert len(load_file(out)) > 2 * len(weights)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("lst", "run={run}"), "Did you mean 'list'?"),
        (("run={run}",), "list | verify | convert | delete"),
        (("list",), "run is missing"),
        (("list", "run={run}x"), "there is no such folder"),
        (("list", "run={run}", "stp=2"), "Did you mean 'step'?"),
        (("list", "run={run}", "step=3"), "it has steps 2, 4, 6"),
        (("list", "run={run}", "step=two"), "step=100,200"),
        (("list", "run={run}", "out=x"), "out=x is for llmtrain checkpoint convert"),
        (("delete", "run={run}"), "step is missing"),
        (("convert", "run={run}"), "out=model.safetensors"),
        (("convert", "run={run}", "out=x", "dtype=int8"), "keep, fp32, bf16"),
    ],
)
def test_refusals(
    words: tuple[str, ...],
    said: str,
    trained: tuple[Path, dict[str, torch.Tensor]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert said in refusal(capsys, *(word.format(run=trained[0]) for word in words))


def test_every_action_can_be_typed_and_completed() -> None:
    assert tuple(ACTIONS) == COMMANDS["checkpoint"].actions
    assert complete(["checkpoint", "v"]) == ["verify"]
    assert "step=" in complete(["checkpoint", "list", "st"])
