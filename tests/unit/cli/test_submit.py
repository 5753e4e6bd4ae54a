"""What is submitted to Slurm and waited for, with stand-ins for Slurm's commands."""

import json
import os
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from llmtrain.cli import main
from llmtrain.commands.submit import wait
from llmtrain.commands.submit_array import wait_for_array
from llmtrain.config.sweep import SweepRecord, load_sweep
from llmtrain.launch import slurm

Commands = Callable[..., None]

SCONTROL = """#!/bin/sh
# Answers about job $4 with the next line of answers.$4; "-": not at all;
# "gone": there is no such job.
read -r state < {folder}/answers.$4
sed -i 1d {folder}/answers.$4
[ "$state" = - ] && exit 1
[ "$state" = gone ] && echo "slurm_load_jobs error: Invalid job id specified" >&2 && exit 1
echo "JobId=$4 JobState=$state Reason=None"
"""

SBATCH = """#!/bin/sh
echo 77
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
        answers(tmp_path, a0="RUNNING - - RUNNING - - - - gone never")
        result(tmp_path / "0", "completed")
        assert waited() == 0
        assert left(tmp_path, "a0") == ["never"]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a blank in its path, as users have them."""
    place = tmp_path / "my runs"
    place.mkdir()
    monkeypatch.chdir(place)
    return place


def the_sweep(place: Path) -> SweepRecord:
    [found] = place.glob("sweeps/*/*")
    return load_sweep(found)


def commands_in(text: str) -> list[list[str]]:
    """Return the commands that a text tells, as a shell reads them."""
    lines = [line.partition("llmtrain ")[2] for line in text.splitlines() if "llmtrain " in line]
    return [shlex.split(line) for line in lines]


def test_a_sweep_is_submitted_whatever_this_machine_has(
    commands: Commands, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    commands(scontrol=SCONTROL, sbatch=SBATCH)
    words = ["launcher=slurm", "model.n_heads=3,2,4", "launcher.array_parallel=2"]
    assert main(["train", "-m", *words, "sweep.parallel=2"]) == 2
    assert "launcher.array_parallel=2" in capsys.readouterr().err
    assert not (place / "sweeps").exists()

    assert main(["train", "-m", *words]) == 1  # one is refused
    sweep = the_sweep(place)
    assert [job.status for job in sweep.jobs] == ["refused", "submitted", "submitted"]
    said = capsys.readouterr()
    assert len(re.findall(r"n_heads=\d  submitted$", said.out, re.MULTILINE)) == 2
    assert "3 jobs: 1 refused, 2 submitted" in said.err
    # All can be copied into a shell, the folder's blank or not.
    folder = str(sweep.folder)
    resume = ["train", "-m", f"sweep.resume={folder}"]
    told = commands_in(said.err)
    assert told == [["jobs", folder], ["logs", f"{folder}/1", "-f"], ["cancel", folder], resume,
                    resume]  # fmt: skip

    # Once the array has ended: one has a result, one was never begun, and that is done.
    result(sweep.folder / "1", "completed")
    answers(place.parent, **{"77": "COMPLETED " * 9})
    assert main(resume) == 1
    jobs = the_sweep(place).jobs
    assert [job.status for job in jobs] == ["refused", "completed", "submitted"]
    assert "1 refused, 1 completed, 1 not started" in capsys.readouterr().err


def test_a_job_of_an_array_that_ends_without_a_word_has_failed(
    commands: Commands, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    commands(scontrol=SCONTROL, sbatch=SBATCH)
    answers(place.parent, **{"77_0": "COMPLETED", "77_1": "NODE_FAIL"})
    words = ["launcher=slurm", "train.seed=1,2", "launcher.wait=true", "launcher.poll_s=1"]
    assert main(["train", "-m", *words]) == 1
    jobs = the_sweep(place).jobs
    assert [job.status for job in jobs] == ["failed", "failed"]
    assert "without a word" in str(jobs[0].error)


def test_a_run_that_is_submitted_says_what_can_be_copied(
    commands: Commands, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    commands(sbatch=SBATCH)
    assert main(["train", "launcher=slurm", "run_dir=a run"]) == 0
    told = commands_in(capsys.readouterr().err)
    assert told == [["logs", f"{place}/a run", "-f"], ["jobs"], ["cancel", f"{place}/a run"]]


ARRAY = ["train", "-m", "launcher=slurm", "train.seed=1,2"]


def test_a_sweep_that_is_refused_leaves_nothing(
    commands: Commands, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    commands(sbatch="#!/bin/sh\necho invalid partition >&2\nexit 1\n")
    assert main(ARRAY) == 2
    assert "invalid partition" in capsys.readouterr().err
    assert not list(place.glob("sweeps/*/*"))
    # What may be queued stays.
    commands(sbatch="#!/bin/sh\necho Socket timed out >&2\nexit 1\n")
    assert main(ARRAY) == 2
    assert (the_sweep(place).folder / "0" / "config.yaml").is_file()


def test_without_sbatch_there_is_no_folder(
    commands: Commands, place: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("PATH", str(place))
    assert main(ARRAY) == 2
    err = capsys.readouterr().err
    assert "no `sbatch` on the PATH" in err and "2 jobs in" not in err
    assert not (place / "sweeps").exists()


def test_a_sweep_that_is_not_started_shows_its_script(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*ARRAY, "model.n_heads=4,3", "-n"]) == 1
    out = capsys.readouterr().out
    assert out.count("#!/bin/bash") == 1 and "#SBATCH --array=0,2\n" in out
    assert f"{place}/sweeps/default/DATE_TIME-ID/2" in out
    assert not (place / "sweeps").exists()
