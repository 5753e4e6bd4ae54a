"""`llmtrain prepare --inspect` and `--samples` as typed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from llmtrain.cli import main, run
from llmtrain.commands.complete import FILES, complete
from llmtrain.commands.options import UsageError, parse
from llmtrain.config.groups.data import SyntheticDataConfig
from llmtrain.config.groups.tokenizer import ByteTokenizerConfig
from llmtrain.data.prepare import prepare
from llmtrain.errors import ConfigError
from tests.support.runs import tiny_run


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LLMTRAIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return prepare(
        SyntheticDataConfig(documents=40, words_per_document=60),
        ByteTokenizerConfig(),
    )


def test_inspect(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([f"--inspect={folder}"], ["--inspect", folder.name, "documents=3", "tokens=5"]):
        assert run(["prepare", *words, "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
        assert told["folder"] == str(folder) and told["splits"]["train"]["documents"] > 30
    assert len(told["splits"]["train"]["examples"]) == 3
    assert run(["prepare", "--inspect", folder.name, "ids=true"]) == 0
    assert "left out" in capsys.readouterr().out


def test_samples(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_run(tmp_path / "runs/books", "train.steps=9")
    assert run(["prepare", "--samples", "run=runs/books", "step=2..3", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["folder"] == str(folder)
    assert [len(step["samples"]) for step in told["steps"]] == [8, 8]
    assert run(["prepare", "step=9", "run=runs/books", "--samples"]) == 0
    assert "position 71, epoch 0" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--samples", "step=3"], "run=runs/books"),
        (["--samples", "run=runs/boks", "step=3"], "Did you mean 'books'?"),
        (["--samples", "run=runs/books"], "step=120"),
        (["--samples", "run=runs/books", "step=0"], "count from 1"),
        (["--samples", "run=runs/books", "step=4..2"], "the first comes before the last"),
        (["--samples", "run=runs/books", "step=1,2"], "step=120..122"),
        (["--samples", "run=runs/books", "stp=1"], "Did you mean 'step'?"),
        (["--samples", "run=runs/books", "step=10"], "has 9 steps"),
        (["--inspect", "synthetic"], "There is synthetic-"),
        (["--inspect", "x", "document=3"], "Did you mean 'documents'?"),
    ],
)
def test_refused_with_what_to_do(
    folder: Path, tmp_path: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_run(tmp_path / "runs/books", "train.steps=9")
    assert main(["prepare", *words]) == 2
    assert said in " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_flags_that_do_not_go_together() -> None:
    for words in (["--inspect"], ["--inspect", "--json"]):
        with pytest.raises(UsageError, match="--inspect DIR"):
            parse(["prepare", *words])
    with pytest.raises(UsageError, match="give one of them"):
        parse(["prepare", "--inspect", "x", "--samples"])
    with pytest.raises(UsageError, match="it is for prepare"):
        parse(["train", "--samples"])


def test_help_has_the_settings_of_the_flag(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["prepare", "--samples", "--help"]) == 0
    out = capsys.readouterr().out
    assert "step=null" in out and "tokenizer" not in out.partition("Settings")[2]
    assert run(["prepare", "--inspect", "x", "documents=7", "--help"]) == 0
    assert "documents=7" in capsys.readouterr().out
    with pytest.raises(ConfigError):
        run(["prepare", "--samples", "documents=7", "--help"])


def test_completion(folder: Path) -> None:
    assert complete(["prepare", "--ins"]) == ["--inspect"]
    assert complete(["prepare", "--inspect", "syn"]) == [folder.name]
    assert complete(["prepare", "--inspect", "./"]) == [FILES]
    assert complete(["prepare", "--inspect", "x", "doc"]) == ["documents="]
    assert complete(["prepare", "--samples", "s"]) == ["step="]
    assert complete(["prepare", "--samples", "run="]) == [FILES]


def test_neither_needs_torch(folder: Path, tmp_path: Path) -> None:
    tiny_run(tmp_path / "run", "train.steps=9")
    for words in (["--inspect", folder.name], ["--samples", "run=run", "step=1"]):
        code = (
            "import sys\nfrom llmtrain.cli import main\n"
            f"assert main(['prepare', *{words!r}]) == 0\nassert 'torch' not in sys.modules"
        )
        subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
