"""stdout: a reader that leaves early, a disk that is full, a log that is no terminal."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from llmtrain.console import EXIT_PIPE, answering, make_console

COMMANDS = (
    ["--help"], ["train", "--help"], ["--version"], ["--completion", "bash"],
    ["--complete", "train", "model="], ["train", "--cfg", "job"], ["train", "-n"],
    ["train", "sweep=optimizers", "-n"],
)  # fmt: skip


def llmtrain(words: list[str], stdout: int, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "llmtrain", *words], stdout=stdout, stderr=subprocess.PIPE,
        text=True, env={**os.environ, **env}, timeout=60, check=False,
    )  # fmt: skip


def closed_pipe() -> int:
    read, write = os.pipe()
    os.close(read)
    return write


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_reader_that_leaves_ends_it_quietly(words: list[str]) -> None:
    write = closed_pipe()
    ended = llmtrain(words, write)
    os.close(write)
    assert (ended.returncode, ended.stderr) == (EXIT_PIPE, "")


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", [["train", "--help"], ["train", "--cfg", "job"]], ids=" ".join)
def test_a_full_disk_is_told_once(words: list[str], unbuffered: str) -> None:
    with open("/dev/full", "w") as full:
        ended = llmtrain(words, full.fileno(), PYTHONUNBUFFERED=unbuffered)
    assert ended.returncode == 1
    assert ended.stderr == "error: the answer cannot be written: No space left on device\n"


def in_child(work: Callable[[], int], stdout: int) -> tuple[int, str]:
    """Return the exit code and stderr of a forked process that answers on `stdout`."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(stdout, 1)
        os.dup2(write, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        code = 99
        try:
            code = answering(work)
            sys.stdout.flush()
        finally:
            sys.stderr.flush()
            os._exit(code)
    os.close(write)
    with os.fdopen(read) as stream:
        said = stream.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), said


def test_a_text_that_is_streamed_to_a_reader_that_leaves() -> None:
    def streams() -> int:
        for _ in range(3):
            sys.stdout.write("word ")
            sys.stdout.flush()
        return 0

    write = closed_pipe()
    assert in_child(streams, write) == (EXIT_PIPE, "")
    os.close(write)


def test_an_error_that_is_not_stdouts_keeps_its_traceback(tmp_path: Path) -> None:
    def fails() -> int:
        raise OSError(28, "No space left on device", str(tmp_path))

    with pytest.raises(OSError, match="No space left"):
        answering(fails)


def test_no_blanks_at_line_ends_and_nothing_cut_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    from rich.table import Table

    table = Table(box=None, show_header=False)
    table.add_row("run", "/a/" + "very-" * 60 + "long/folder")
    table.add_row("model", "gpt")
    make_console(stderr=True).print(table)
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 2 and "…" not in err
    assert all(line == line.rstrip() for line in err.splitlines())


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["train", "-n"]], ids=" ".join)
def test_answers_have_no_trailing_blanks(words: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "llmtrain", *words], capture_output=True, text=True, check=True
    )
    assert not [line for line in done.stdout.splitlines() if line != line.rstrip()]
    assert "…" not in done.stdout
