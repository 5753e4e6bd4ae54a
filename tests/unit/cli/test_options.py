"""The command line as typed."""

from pathlib import Path

import pytest

from llmtrain.cli import HANDLERS
from llmtrain.commands.options import COMMANDS, UsageError, parse


def test_flags_and_overrides_in_any_order(tmp_path: Path) -> None:
    options = parse(["train", "-m", "a=1", "--config-dir", str(tmp_path), "b=2", "--cfg=job"])
    assert options.command == "train"
    assert options.overrides == ["a=1", "b=2"]
    assert options.has("--multirun") and options.has("--cfg")
    assert options.config_dirs == [tmp_path]


def test_a_dash_inside_a_value_is_no_flag() -> None:
    assert parse(["generate", "prompt=--hi"]).overrides == ["prompt=--hi"]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["trian"], "Did you mean 'train'?"),
        (["model=gpt_tiny"], "llmtrain train model=gpt_tiny"),
        (["train", "--hlep"], "Did you mean '--help'?"),
        (["train", "--lr", "3"], "optimizer.lr=3"),
        (["train", "--steps", "5"], "train.steps=5"),
        (["train", "--batch-size=4"], "train.global_batch_size=4"),
        (["train", "--seed", "--dry-run"], "train.seed=VALUE"),
        (["train", "data=text", "--path", "x"], "data.path=x"),
        (["train", "--model", "gpt_tiny"], "model=gpt_tiny"),
        (["generate", "--temperature=0"], "temperature=0"),
        (["train", "--frobnicate", "5"], "key=value"),
        (["evaluate", "-m"], "it is for train"),
        (["doctor", "a=1"], "takes no settings"),
        (["train", "--cfg"], "needs a value"),
        (["train", "--cfg", "all"], "only `--cfg job`"),
        (["train", "--config-dir", "/nowhere"], "no such folder"),
        (["--completion", "tcsh"], "bash, zsh, fish"),
        (["cancel", "--all", "x"], "'--all' is not a flag. Flags: --help."),
    ],
)
def test_refused_with_a_hint(argv: list[str], said: str) -> None:
    with pytest.raises(UsageError) as refusal:
        parse(argv)
    assert said in str(refusal.value)


def test_a_run_is_named_with_its_key_and_without(tmp_path: Path) -> None:
    run, odd = tmp_path / "run", tmp_path / "run=1"
    run.mkdir()
    odd.mkdir()
    for command in ("logs", "cancel"):
        assert parse([command, str(run)]).folders == parse([command, f"run={run}"]).folders
        assert parse([command, str(odd)]).folders == [str(odd)]
        assert parse([command, "run=gone"]).folders == ["gone"]
    for command in ("evaluate", "generate", "replay"):
        assert parse([command, str(run), "seed=1"]).overrides == [f"run={run}", "seed=1"]
    options = parse(["checkpoint", "list", str(run)])
    assert (options.action, options.overrides) == ("list", [f"run={run}"])


def test_every_command_has_a_handler() -> None:
    assert set(COMMANDS) == set(HANDLERS)
