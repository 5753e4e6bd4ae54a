"""Whose fault it was, for a host whose ranks only lost a peer."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from llmtrain.launch import elsewhere
from llmtrain.launch.elsewhere import leave_word, report_host
from llmtrain.launch.failure import Failure, failure_path, read_failures

NOW = time.time()


def echo(rank: int) -> Failure:
    report = {"type": "RuntimeError", "message": "Connection closed by peer", "lost_peer": True}
    return Failure(rank, 1, NOW, {**report, "rank": rank, "time": NOW, "user_error": False})


@pytest.fixture
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(elsewhere, "WORD_S", 0.0)
    (tmp_path / "logs").mkdir()
    return tmp_path


def result(run_dir: Path, status: str, when: float) -> None:
    path = run_dir / "result.json"
    path.write_text(json.dumps({"status": status}))
    os.utime(path, (when, when))


def saved(run_dir: Path) -> dict[str, Any]:
    return dict(json.loads((run_dir / "result.json").read_text()))


def test_a_rank_that_was_killed_elsewhere_is_named(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    leave_word(run_dir, [Failure(3, -signal.SIGKILL, NOW)])
    assert report_host(run_dir, [echo(0)], since=NOW, began=NOW) == 1
    assert "rank 3 on " in capsys.readouterr().err
    assert "killed by SIGKILL" in saved(run_dir)["error"]
    # For its own host these words are no report of the rank's.
    assert read_failures(run_dir, {3: (-9, NOW)})[0].report is None


def test_what_an_earlier_attempt_said_explains_nothing(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    leave_word(run_dir, [Failure(3, -signal.SIGKILL, NOW - 60)])
    assert report_host(run_dir, [echo(0)], since=NOW, began=NOW - 100) == 1
    assert "rank 3" not in capsys.readouterr().err
    failure_path(run_dir, 1).write_text(json.dumps({"time": NOW - 60, "type": "old"}))
    assert read_failures(run_dir, {1: (-9, NOW)}, since=NOW)[0].report is None


def test_a_mistake_elsewhere_is_a_mistake_here(run_dir: Path) -> None:
    report = {"rank": 2, "time": NOW, "exit_code": 2, "user_error": True, "message": "no such data"}
    failure_path(run_dir, 2).write_text(json.dumps(report))
    assert report_host(run_dir, [], since=NOW, began=NOW, lost="a:1") == 2


@pytest.mark.parametrize(("status", "code"), [("preempted", 143), ("stopped", 130), ("failed", 1)])
def test_a_stop_elsewhere_is_a_stop_here(run_dir: Path, status: str, code: int) -> None:
    result(run_dir, status, NOW + 1)
    assert report_host(run_dir, [], since=NOW, began=NOW, lost="a:1") == code


def test_a_stop_of_an_earlier_start_is_none(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result(run_dir, "preempted", NOW - 30)
    assert report_host(run_dir, [], since=NOW, began=NOW, lost="a:1") == 1
    assert "The first host, a:1, is gone" in " ".join(capsys.readouterr().err.split())
