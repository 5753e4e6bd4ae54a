"""A user's own YAML: what the documentation shows works, and what is wrong with a file is said."""

from pathlib import Path

import pytest

from llmtrain.cli import main
from llmtrain.commands.compose import composer
from llmtrain.errors import ConfigError

DOCS = Path(__file__).parents[3] / "docs" / "cli.md"


def own(folder: Path, text: str, name: str = "experiment/books") -> Path:
    path = folder / f"{name}.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


def refusal(folder: Path, *overrides: str) -> str:
    with composer("train", [folder]) as hydra, pytest.raises(ConfigError) as refused:
        hydra.compose(overrides)
    return str(refused.value)


def test_the_file_in_the_documentation(tmp_path: Path) -> None:
    lines = DOCS.read_text().splitlines()
    block = lines[lines.index("    # @package _global_") :]
    end = next(i for i, line in enumerate(block) if line and not line.startswith("    "))
    own(tmp_path, "\n".join(line[4:] for line in block[:end]))
    with composer("train", [tmp_path]) as hydra:
        run = hydra.compose(["experiment=books", "train.steps=7"]).config
    assert (run.experiment_name, run.model.name, run.tokenizer.name) == ("books", "llama", "char")
    assert (run.data.path, run.model.seq_len) == ("books/", 128)
    assert (run.optimizer.name, run.optimizer.lr, run.train.steps) == ("lion", 3e-4, 7)


def test_a_choice_of_ones_own_builds_on_a_shipped_one(tmp_path: Path) -> None:
    own(tmp_path, "defaults: [gpt_tiny, _self_]\nseq_len: 32\n", "model/small")
    with composer("train", [tmp_path]) as hydra:
        model = hydra.compose(["model=small"]).config.model
    assert (model.name, model.seq_len) == ("gpt", 32)


@pytest.mark.parametrize(
    "text",
    [
        "train:\n  steps: 3\n",
        "# A recipe\ndefaults:\n  - override /model: llama_tiny\n",
        "train:\n  steps: 3\n# @package _global_\n",
        "# A recipe\n# @package _global_\ntrain:\n  steps: 3\n",
        "",
    ],
)
def test_a_recipe_without_its_package_line(text: str, tmp_path: Path) -> None:
    path = own(tmp_path, text)
    message = refusal(tmp_path, "experiment=books")
    assert str(path) in message and "# @package _global_" in message
    assert "experiment_name" not in message and "Did you mean" not in message


@pytest.mark.parametrize("head", ["#@package _global_", "\n \n  # @package   _global_ "])
def test_a_package_line_as_hydra_reads_it(head: str, tmp_path: Path) -> None:
    own(tmp_path, f"{head}\ntrain:\n  steps: 3\n")
    with composer("train", [tmp_path]) as hydra:
        assert hydra.compose(["experiment=books"]).config.train.steps == 3


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("train:\n  steps: 3\n bad: [1\n", 4, "expected <block end>"),
        ("train:\n\tsteps: 3\n", 3, "cannot start any token"),
        ("train:\n  steps: 3\n  steps: 4\n", 4, "duplicate key steps"),
        ("train:\n  steps: '3\n", 4, "begins in line 3"),
    ],
)
def test_a_slip_in_ones_own_yaml(
    text: str, line: int, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = own(tmp_path, f"# @package _global_\n{text}")
    message = refusal(tmp_path, "experiment=books")
    assert f"{path}, line {line}: this is not YAML" in message and said in message
    assert main(["train", "-n", "--config-dir", str(tmp_path), "experiment=books"]) == 2
    assert "Traceback" not in capsys.readouterr().err
