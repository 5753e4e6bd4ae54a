"""The command lines of docs/launch.md for launchers that only some machines have."""

import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmtrain.cli import main

DOCS = Path(__file__).parents[3] / "docs" / "launch.md"
LAUNCHERS = ("launcher=kubernetes", "launcher=skypilot", "launcher=slurm")


def documented() -> Iterator[list[str]]:
    """Yield the words after `llmtrain train` of every line in a block of code that is whole."""
    code = "\n".join(line[4:] for line in DOCS.read_text().splitlines() if line[:4] == "    ")
    for line in code.replace("\\\n", " ").splitlines():
        if line.startswith("llmtrain train ") and " ... " not in line:
            command = re.split(r" [|>] ", os.path.expandvars(line))[0]
            yield [word for word in shlex.split(command, comments=True)[2:] if word != "--dry-run"]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the lines take from a user's shell."""
    monkeypatch.setenv("SCRATCH", str(tmp_path))
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_documented_command_composes_and_plans(
    launcher: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found = [words for words in documented() if launcher in words]
    assert found
    for words in found:
        assert main(["train", *words, "--dry-run"]) == 0, (words, capsys.readouterr().err)
