"""What a person sees of a sweep, on a terminal and elsewhere."""

import contextlib
import io
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rich.console import Console

from llmtrain.commands.sweep_view import BEST_SHOWN, SweepView, show_ranked
from llmtrain.config.groups.sweep import SweepConfig
from llmtrain.config.sweep import Job, SweepRecord


def in_turn(folder: Path, jobs: int) -> SweepRecord:
    numbers = [Job(n, [f"train.seed={n}"], [f"train.seed={n}"]) for n in range(jobs)]
    return SweepRecord(folder, "x", [], [], [], str(folder), SweepConfig(), jobs=numbers)


def end(sweep: SweepRecord, view: SweepView, number: int, status: str, loss: float | None) -> None:
    """Have a job end."""
    job = sweep.jobs[number]
    job.status, job.val_loss = status, loss
    sweep.save()
    view.ended(job)


def rows(text: str) -> list[tuple[str, str]]:
    """Return rank and number of the jobs in a table."""
    plain = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", text)
    return re.findall(r"^ *(\d*) +(\d+) +train.seed=", plain, re.MULTILINE)


@contextlib.contextmanager
def terminal() -> Iterator[Callable[[], str]]:
    """Put a terminal in the place of stderr; yield what returns its text since the last call."""
    master, slave = os.openpty()
    with os.fdopen(slave, "w") as stream, contextlib.redirect_stderr(stream):

        def shown() -> str:
            print(end="\n", file=stream, flush=True)  # or a read would wait
            return os.read(master, 65536).decode().replace("\r", "")

        yield shown
    os.close(master)


def test_jobs_in_turn_have_a_table_between_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = in_turn(tmp_path, 4)
    with terminal() as shown, SweepView(sweep) as view:
        seen = []
        for number, status, loss in (
            (0, "failed", None), (1, "completed", 2.0), (2, "completed", 1.5), (3, "failed", None)
        ):  # fmt: skip
            view.began(sweep.jobs[number], again=False)
            seen.append(shown())
            end(sweep, view, number, status, loss)
            assert rows(shown()) == []  # at the end all are shown
    # A job that has failed has said so itself.
    tables = [rows(text) for text in seen]
    assert tables == [[], [], [("1", "1")], [("1", "2"), ("2", "1")]]
    assert "4 jobs: 1 failed, 2 completed, 1 not started" in seen[3]
    assert capsys.readouterr().out == ""


def test_a_long_sweep_shows_its_best(tmp_path: Path) -> None:
    sweep = in_turn(tmp_path, BEST_SHOWN + 3)
    with terminal() as shown, SweepView(sweep) as view:
        for number in range(BEST_SHOWN + 2):
            end(sweep, view, number, "completed", 10.0 - number)
        view.began(sweep.jobs[-1], again=False)
        found = rows(shown())
    assert [rank for rank, _ in found] == [str(n) for n in range(1, BEST_SHOWN + 1)]
    assert found[0] == ("1", str(BEST_SHOWN + 1))


def test_where_there_is_no_terminal_there_is_no_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = in_turn(tmp_path, 2)
    with SweepView(sweep) as view:
        end(sweep, view, 0, "completed", 1.0)
        view.began(sweep.jobs[1], again=False)
    said = capsys.readouterr()
    assert said.out == "" and said.err == "\njob 1 of 2: train.seed=1\n"


@pytest.mark.parametrize("width", [80, 100])
def test_an_override_is_not_folded_in_mid_word(tmp_path: Path, width: int) -> None:
    words = ["optimizer.lr=0.001", "optimizer.weight_decay=0.01"]
    sweep = in_turn(tmp_path, 2)
    sweep.jobs[0].given, sweep.jobs[1].status = words, "completed"
    sweep.jobs[1].train_loss = sweep.jobs[1].val_loss = 10.1234
    console = Console(width=width, file=io.StringIO())
    show_ranked(console, sweep)
    shown = console.file.getvalue().split()
    assert {*words, "train.seed=1", "10.1234", "started", "completed"} <= set(shown)
    assert max(len(line) for line in console.file.getvalue().splitlines()) <= width
