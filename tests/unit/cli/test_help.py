"""--help and completion: right, and light."""

import re
import subprocess
import sys

import pytest

from llmtrain.cli import run
from llmtrain.commands.complete import FILES, complete
from llmtrain.commands.compose import Composer
from llmtrain.commands.groups import groups
from llmtrain.commands.options import COMMANDS, Options
from llmtrain.commands.settings import keys
from llmtrain.config.schema import TrainCommandConfig
from llmtrain.errors import ConfigError


def test_help_names_commands_groups_choices_and_examples(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["--help"]) == 0
    out = capsys.readouterr().out
    for word in (*COMMANDS, "--multirun", "gpt_tiny*", "llama_8b", "shakespeare_char_cpu"):
        assert word in out
    assert "schema" not in out


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_each_command(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([command, "--help"]) == 0
    out = capsys.readouterr().out
    for example in COMMANDS[command].examples:
        assert f"llmtrain {example}" in out
    if COMMANDS[command].overrides:
        for key in keys(Options(command).root or command):
            if not key.name.endswith(".name"):
                assert re.search(rf"^\s+{re.escape(key.name)}=", out, re.MULTILINE), key
                assert key.doc, f"{key.name} has no docstring"


def test_help_shows_the_settings_of_what_is_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", "data=text", "optimizer=momentum", "optimizer.lr=0.7", "--help"]) == 0
    out = capsys.readouterr().out
    for line in ("data.path=null", "optimizer.momentum=0.9", "optimizer.lr=0.7"):
        assert re.search(rf"^\s+{re.escape(line)}\s", out, re.MULTILINE), line
    assert "optimizer.beta1=" not in out
    assert re.search(r"\* momentum ", out) and not re.search(r"\* adamw ", out)


def test_help_needs_nothing_that_a_run_needs(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["generate", "top_k=null", "--help"]) == 0  # no run=
    assert re.search(r"^\s+top_k=null\s", capsys.readouterr().out, re.MULTILINE)
    assert run(["train", "-m", "optimizer=adam,lion", "data=jsonl", "--help"]) == 0
    assert "data.text_key=text" in capsys.readouterr().out
    assert run(["help", "train", "scheduler=wsd"]) == 0
    assert "scheduler.decay_steps" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("word", "said"), [("data=tex", "Did you mean 'text'"), ("data.pth=x", "data.pth")]
)
def test_help_refuses_what_cannot_be_chosen(word: str, said: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        run(["train", "data=text", word, "--help"])
    assert said in str(refusal.value)


def test_help_shows_lists_as_they_are_typed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", "--help"]) == 0
    out = capsys.readouterr().out
    assert "data.clean.scripts=[]" in out
    assert "data.clean.phone_regions=[US,GB," in out


def test_help_ends_no_sentence_at_an_abbreviation(capsys: pytest.CaptureFixture[str]) -> None:
    run(["train", "--help"])
    out = " ".join(capsys.readouterr().out.split())
    assert "Radford et al. 2019, section 2.3)" in out


def test_nothing_typed_shows_help_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and "Commands" in captured.err


def test_help_shows_the_defaults_that_are_composed(train: Composer) -> None:
    config = train.compose([]).config
    for key in keys("train"):
        value = TrainCommandConfig() if key.name.startswith("sweep.") else config
        for part in key.name.split("."):
            value = getattr(value, part)
        assert value == key.default or float(value) == float(key.default), key.name


@pytest.mark.parametrize(
    "argv", [["--help"], ["train", "--help"], ["--version"], ["--complete", "train", "model="]]
)
def test_answers_without_torch_and_hydra(argv: list[str]) -> None:
    code = (
        "import sys\nfrom llmtrain.cli import main\n"
        f"assert main({argv!r}) == 0\n"
        "assert not {'torch', 'hydra'} & set(sys.modules), 'heavy import'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_a_refusal_needs_no_torch() -> None:
    code = (
        "import sys\nfrom llmtrain.cli import main\n"
        "assert main(['train', 'modle=x']) == 2\nassert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stderr=subprocess.DEVNULL)


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("tr", ["train"]),
        ("--comp", ["--completion"]),
        ("train --dry", ["--dry-run"]),
        ("train model=gpt_t", ["model=gpt_tiny"]),
        ("train -m optimizer=adam,li", ["optimizer=adam,lion"]),
        ("train optimizer.b", ["optimizer.beta1=", "optimizer.beta2="]),
        ("train model=llama_tiny model.n_k", ["model.n_kv_heads="]),
        ("train model.n_k", []),
        ("train metrics.wandb=", ["metrics.wandb=true", "metrics.wandb=false"]),
        ("train data=text data.path=", [FILES]),
        ("generate top_", ["top_k=", "top_p="]),
        ("--completion f", ["fish"]),
    ],
)
def test_completion(typed: str, offered: list[str]) -> None:
    assert complete(typed.split(" ")) == offered


def test_completion_opens_a_group_at_its_dot() -> None:
    offered = complete(["train", "op"])
    assert offered == ["optimizer=", "optimizer."]


def test_groups_know_their_default() -> None:
    known = groups("train")
    assert known["model"].default == "gpt_tiny"
    assert known["model"].choices["gpt_tiny"].startswith("GPT")
