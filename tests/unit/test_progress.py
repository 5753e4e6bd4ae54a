"""What the terminal and rank 0's log are told of training."""

import contextlib
import io
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from llmtrain.log import setup_log
from llmtrain.train.progress import TrainProgress

LINE = {"loss": 4.25, "tokens_per_s": 1300.0, "mfu": 0.026, "step_time_s": 0.5}


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    """The root logger, whose handlers and level are put back."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    root.handlers = []
    yield root
    for handler in root.handlers:
        with contextlib.suppress(OSError):  # of a disk that is full to the end
            handler.close()
    root.handlers, root.level = handlers, level
    logging.captureWarnings(False)


def told(path: Path, *, shown: bool = True, silent: bool = False) -> tuple[str, str]:
    """Return what stands on the terminal and in the log after three lines and an evaluation."""
    setup_log(path, 0)
    out = io.StringIO()
    console = Console(file=out, width=200)
    progress = TrainProgress(console, steps=30, start=0, shown=shown)
    if silent:
        progress = TrainProgress.silent()
    for step in (10, 20, 30):
        progress.numbers({**LINE, "step": step})
    progress.say("step 30  val_loss 4.1")
    progress.say("bad step", logged=False)
    progress.close()
    return out.getvalue(), path.read_text()


def test_the_log_has_every_line_and_the_terminal_what_it_had(
    root: logging.Logger, tmp_path: Path
) -> None:
    shown, logged = told(tmp_path / "rank_0.log")
    first = "step 10/30  loss 4.2500  1.3k tok/s  mfu 2.6%  eta 10s"
    assert shown.splitlines() == [first, "step 30  val_loss 4.1", "bad step"]  # one in 5 s
    lines = [line.partition("progress: ")[2] for line in logged.splitlines()]
    assert lines[0] == first and lines[3:] == ["step 30  val_loss 4.1"]
    assert [line.split("  ")[0] for line in lines[:3]] == ["step 10/30", "step 20/30", "step 30/30"]


def test_a_terminal_that_is_to_be_silent_leaves_the_log(
    root: logging.Logger, tmp_path: Path
) -> None:
    shown, logged = told(tmp_path / "rank_0.log", shown=False)
    assert shown == "" and len(logged.splitlines()) == 4
    assert told(tmp_path / "rank_1.log", silent=True) == ("", "")


def test_a_full_disk_fills_no_terminal(
    root: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    setup_log(Path("/dev/full"), 0)
    logging.info("a line")
    assert capsys.readouterr().err == ""
