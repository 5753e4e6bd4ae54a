"""Which rank failed first, and what is said of it."""

import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from llmtrain.config.paths import RESULT, place_path
from llmtrain.launch.failure import (
    Failure,
    complete_result,
    failure_path,
    first_failure,
    read_failures,
    report_failure,
)

NOW = 1_800_000_000.0


def report(when: float, **more: Any) -> dict[str, Any]:
    return {"time": when, "type": "RuntimeError", "message": "boom", "lost_peer": False, **more}


@pytest.mark.parametrize(
    ("failures", "first"),
    [
        # Killed by the kernel: the peer's broken connection is reported a moment earlier.
        (
            [Failure(0, 1, NOW, report(NOW - 0.1, lost_peer=True)), Failure(1, -9, NOW)],
            1,
        ),
        # The same where the peer's error was not recognised as a broken connection.
        ([Failure(0, 1, NOW, report(NOW - 0.1)), Failure(1, -11, NOW)], 1),
        # Two errors: the earlier one.
        ([Failure(0, 1, NOW, report(NOW - 1)), Failure(1, 1, NOW, report(NOW - 2))], 1),
        # An abort of C++ is the echo of another rank's error.
        ([Failure(0, -6, NOW), Failure(1, 1, NOW, report(NOW))], 1),
        # Ranks that were told to end, or had to be killed half a minute later, did not begin it.
        (
            [Failure(0, 143, NOW), Failure(1, 1, NOW, report(NOW)), Failure(2, -9, NOW + 30)],
            1,
        ),
        ([Failure(0, -15, NOW), Failure(1, 3, NOW)], 1),
        # Only broken connections: the first to see one.
        (
            [
                Failure(0, 1, NOW, report(NOW, lost_peer=True)),
                Failure(1, 1, NOW, report(NOW - 1, lost_peer=True)),
            ],
            1,
        ),
    ],
)
def test_the_first(failures: list[Failure], first: int) -> None:
    assert first_failure(failures).rank == first
    assert first_failure(failures[::-1]).rank == first


def folder(tmp_path: Path) -> Path:
    (tmp_path / "logs").mkdir()
    return tmp_path


def test_a_panel_with_the_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = folder(tmp_path)
    (run_dir / "logs" / "rank_1.log").write_text("".join(f"line {n}\n" for n in range(40)))
    failure_path(run_dir, 1).write_text(json.dumps(report(NOW, exit_code=1, user_error=False)))
    failures = read_failures(run_dir, {0: (143, NOW), 1: (1, NOW)})
    assert report_failure(run_dir, failures, since=NOW) == 1
    err = capsys.readouterr().err
    assert err.count("╭") == 1
    for part in ("rank 1 failed", "RuntimeError: boom", "exit code 1", "line 39", "rank_1.log"):
        assert part in err
    assert "line 20" not in err and "Traceback" not in err
    result = json.loads((run_dir / RESULT).read_text())
    assert result["status"] == "failed" and "boom" in result["error"]


def test_an_out_of_memory_kill_is_explained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = folder(tmp_path)
    assert report_failure(run_dir, [Failure(2, -signal.SIGKILL, NOW)], since=NOW) == 1
    err = capsys.readouterr().err
    assert "rank 2" in err and "SIGKILL" in err and "out-of-memory" in err


def shown(tmp_path: Path, capsys: pytest.CaptureFixture[str], failure: Failure) -> str:
    """Return the panel of `failure`."""
    assert report_failure(folder(tmp_path), [failure], since=NOW - 60) == 1
    err = capsys.readouterr().err
    assert err.count("╭") == 1
    return " ".join(err.replace("│", " ").split())


@pytest.mark.parametrize(
    ("kind", "message", "fix"),
    [
        ("OutOfMemoryError", "CUDA out of memory. Tried to allocate 2 GiB", "strategy.zero=3"),
        ("MemoryError", "", "fewer processes a machine"),
        ("RuntimeError", "[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't "
         "allocate memory: you tried to allocate 8 bytes.", "fewer processes a machine"),
    ],
)  # fmt: skip
def test_full_memory_is_told_with_a_fix(
    kind: str, message: str, fix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = report(NOW, type=kind, message=message, node="node7")
    err = shown(tmp_path, capsys, Failure(1, 1, NOW, record))
    for part in (f"{kind}: {message}", "train.micro_batch_size", fix, "on node7"):
        assert part in err


def test_numbers_that_went_bad_need_no_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = report(NOW, type="FloatingPointError", message="the loss is NaN in step 3")
    run_dir = folder(tmp_path)
    (run_dir / "logs" / "rank_1.log").write_text("Traceback\nline 39: the loss is NaN in step 3\n")
    assert report_failure(run_dir, [Failure(1, 1, NOW, record)], since=NOW) == 1
    err = capsys.readouterr().err
    assert err.count("the loss is NaN in step 3") == 1
    assert "line 39" not in err and "rank_1.log" in err


def test_where_a_rank_was_last(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "logs").mkdir()
    place_path(tmp_path, 1).write_text("step 12     \n")
    failure = Failure(1, -signal.SIGSEGV, time.time())
    report_failure(tmp_path, [failure], since=time.time() - 60)
    assert ", in step 12." in capsys.readouterr().err
    report_failure(tmp_path, [failure], since=time.time() + 60)  # an earlier start's
    assert "step 12" not in capsys.readouterr().err


@pytest.mark.parametrize("exit_code", [1, -9, 143])
def test_a_hang_is_the_cause_however_its_ranks_ended(
    exit_code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = folder(tmp_path)
    lines = ["rank 1 hangs in step 6", "", *(f"line {n}" for n in range(60))]
    (run_dir / "logs" / "hang_report.txt").write_text("\n".join(lines))
    assert report_failure(run_dir, [Failure(0, exit_code, NOW)], since=time.time() - 60) == 1
    err = capsys.readouterr().err
    assert err.count("╭") == 1 and "the run hung" in err and "rank 1 hangs in step 6" in err
    assert "line 59" not in err and "hang_report.txt" in err
    result = json.loads((run_dir / RESULT).read_text())
    assert (result["status"], result["error"]) == ("failed", "rank 1 hangs in step 6")
    # That of an earlier start says nothing of this one.
    assert report_failure(run_dir, [Failure(0, -11, NOW)], since=time.time() + 60) == 1
    assert "rank 0 failed" in capsys.readouterr().err


def test_a_users_mistake_is_told_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = folder(tmp_path)
    mistake = report(NOW, user_error=True)
    told = [Failure(0, 2, NOW, mistake), Failure(1, 2, NOW, mistake)]
    assert report_failure(run_dir, told, since=NOW) == 2
    assert capsys.readouterr().err == ""
    untold = [Failure(0, 143, NOW), Failure(1, 2, NOW, mistake)]
    assert report_failure(run_dir, untold, since=NOW) == 2
    assert "boom" in capsys.readouterr().err


def test_all_were_asked_to_stop(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = folder(tmp_path)
    failures = [Failure(0, 143, NOW), Failure(1, -15, NOW)]
    assert report_failure(run_dir, failures, since=NOW) == 143
    assert capsys.readouterr().err == ""
    assert json.loads((run_dir / RESULT).read_text())["status"] == "preempted"


def test_the_workers_own_result_stands(tmp_path: Path) -> None:
    path = tmp_path / RESULT
    path.write_text(json.dumps({"status": "stopped", "step": 7}))
    complete_result(tmp_path, "failed", "x", since=time.time() - 60)
    assert json.loads(path.read_text()) == {"status": "stopped", "step": 7}


def test_an_earlier_starts_result_does_not(tmp_path: Path) -> None:
    path = tmp_path / RESULT
    path.write_text(json.dumps({"status": "completed", "step": 7}))
    complete_result(tmp_path, "failed", "x", since=time.time() + 60)
    assert json.loads(path.read_text()) == {"status": "failed", "step": 7, "error": "x"}


@pytest.mark.parametrize("status", ["failed", "preempted"])
def test_what_rank_0_died_of_gives_way_to_the_cause(status: str, tmp_path: Path) -> None:
    path = tmp_path / RESULT
    path.write_text(json.dumps({"status": status, "step": 7, "error": "connection closed"}))
    complete_result(tmp_path, "failed", "rank 1: killed", since=time.time() - 60)
    assert json.loads(path.read_text())["error"] == "rank 1: killed"
