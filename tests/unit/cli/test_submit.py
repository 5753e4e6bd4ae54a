"""What is submitted to Slurm and waited for, with stand-ins for Slurm's commands."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from llmtrain.commands.submit import wait
from llmtrain.commands.submit_array import wait_for_array
from llmtrain.launch import slurm

Commands = Callable[..., None]

SCONTROL = """#!/bin/sh
# Answers about job $4 with the next line of answers.$4; "-": not at all.
read -r state < {folder}/answers.$4
sed -i 1d {folder}/answers.$4
[ "$state" = - ] && exit 1
echo "JobId=$4 JobState=$state Reason=None"
"""


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    """Puts programs on the PATH."""
    programs = tmp_path / "bin"
    programs.mkdir()
    monkeypatch.setenv("PATH", str(programs), prepend=os.pathsep)

    def put(**scripts: str) -> None:
        for name, text in scripts.items():
            (programs / name).write_text(text.replace("{folder}", str(tmp_path)))
            (programs / name).chmod(0o755)

    return put


def answers(folder: Path, **states: str) -> None:
    for job, words in states.items():
        (folder / f"answers.{job}").write_text("\n".join(words.split()) + "\n")


def left(folder: Path, job: str) -> list[str]:
    return (folder / f"answers.{job}").read_text().split()


def result(run_dir: Path, status: str) -> None:
    run_dir.mkdir(exist_ok=True)
    (run_dir / "result.json").write_text(json.dumps({"status": status}))


def test_an_array_is_waited_for_through_looks_without_an_answer(
    commands: Commands, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    commands(scontrol=SCONTROL)
    for number in (0, 1):
        result(tmp_path / str(number), "completed")
        slurm.keep(tmp_path / str(number), f"a{number}")
    answers(tmp_path, a0="PENDING - - RUNNING - COMPLETED never", a1="RUNNING FAILED never")
    assert wait_for_array(tmp_path, [0, 1], 0.01) == 0
    assert left(tmp_path, "a0") == left(tmp_path, "a1") == ["never"]
    told = capsys.readouterr().err.splitlines()
    assert told == ["1 pending, 1 running", "1 unknown, 1 ended", "1 running, 1 ended",
                    "1 unknown, 1 ended", "2 ended"]  # fmt: skip


def test_a_run_and_an_array_that_slurm_has_forgotten_have_ended(
    commands: Commands, tmp_path: Path
) -> None:
    commands(scontrol=SCONTROL)
    result(tmp_path / "0", "completed")
    job = slurm.keep(tmp_path / "0", "a0")
    for waited in (lambda: wait(tmp_path / "0", job, 0.01),
                   lambda: wait_for_array(tmp_path, [0], 0.01)):  # fmt: skip
        answers(tmp_path, a0="RUNNING - - RUNNING - - - never")
        result(tmp_path / "0", "completed")
        assert waited() == 0
        assert left(tmp_path, "a0") == ["never"]
