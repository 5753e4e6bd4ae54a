"""What a command line means."""

from pathlib import Path

import pytest

from llmtrain.commands.compose import Composer, composer
from llmtrain.errors import ConfigError


def test_values_arrive_typed(train: Composer) -> None:
    run = train.compose(["model=llama_tiny", "optimizer.lr=3e-4", "train.steps=7"]).config
    assert (run.model.name, run.optimizer.lr, run.train.steps) == ("llama", 3e-4, 7)


def test_plus_on_a_group_is_forgiven(train: Composer) -> None:
    run = train.compose(["+experiment=shakespeare_char_cpu"]).config
    assert run.experiment_name == "shakespeare_char_cpu"


@pytest.mark.parametrize(
    "text",
    ["a b, c (1)", "it's", "x=y", "C:\\dir\\", "wow! #1 {a} [b]", "true", "12", "~/x", "é\n"],
)
def test_free_text_needs_no_second_quotes(train: Composer, text: str) -> None:
    assert train.compose([f"run_dir={text}"]).config.run_dir == text


def test_free_text_may_be_quoted_null_or_interpolated(train: Composer) -> None:
    assert train.compose(["run_dir='a b'"]).config.run_dir == "a b"
    assert train.compose(["run_dir=null"]).config.run_dir is None
    composed = train.compose(["run_dir=runs/${experiment_name}"])
    assert composed.config.run_dir == "runs/default"


def test_own_yaml(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /model: llama_tiny\ntrain:\n  steps: 3\n"
    )
    with composer("train", [tmp_path]) as hydra:
        run = hydra.compose(["experiment=mine"]).config
    assert (run.model.name, run.train.steps) == ("llama", 3)


def test_a_wrong_key_in_own_yaml_names_key_and_file(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\ntrain:\n  stepz: 3\n")
    with composer("train", [tmp_path]) as hydra, pytest.raises(ConfigError) as refusal:
        hydra.compose(["experiment=mine"])
    message = str(refusal.value)
    assert "stepz" in message and "experiment/mine" in message
    assert "Did you mean 'train.steps'?" in message


def test_own_yaml_may_not_hide_behind_a_shipped_name(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "gpt_tiny.yaml").write_text("n_layers: 1\n")
    with pytest.raises(ConfigError, match="another name"), composer("train", [tmp_path]):
        pass


def test_what_one_command_line_sets_is_not_left_for_the_next(train: Composer) -> None:
    """Choices of groups are composed once, and copied."""
    assert train.compose(["train.steps=700", "optimizer.lr=0.5"]).config.train.steps == 700
    config = train.compose([]).config
    assert config.train.steps != 700 and config.optimizer.lr != 0.5
