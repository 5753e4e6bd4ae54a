"""Whether a run that died is started again, and what is kept of it."""

import json
import signal
import time
from pathlib import Path

import pytest

from llmtrain.launch.attempts import FUTILE, Attempts
from llmtrain.launch.failure import Failure, put_by

KILLED = Failure(1, -signal.SIGKILL, time.time())
MISTAKE = Failure(0, 2, time.time(), {"user_error": True, "type": "DataError", "message": "no"})


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    (tmp_path / "logs").mkdir()
    return tmp_path


def reach(run_dir: Path, step: int) -> None:
    with (run_dir / "metrics.jsonl").open("a") as stream:
        stream.write(json.dumps({"step": step, "loss": 1.0}) + "\n" + '{"step": 99, "lo')


def outcomes(run_dir: Path) -> list[str]:
    lines = (run_dir / "logs" / "attempts.jsonl").read_text().splitlines()
    return [json.loads(line)["outcome"] for line in lines]


def test_as_often_as_it_may(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    attempts = Attempts(run_dir, 2)
    for step, again in ((5, True), (9, True), (12, False)):
        (run_dir / "metrics.jsonl").unlink(missing_ok=True)
        reach(run_dir, step)
        assert attempts.again([KILLED]) is again
    assert outcomes(run_dir)[1] == "started again, 2 of 2 times"
    assert "launcher.max_restarts=2" in outcomes(run_dir)[2]
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 3 and "rank 1 ended (killed by SIGKILL)" in told[0]
    assert "the last step logged is 5:" in told[0]


def test_without_restarts_nothing_is_said(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not Attempts(run_dir, 0).again([KILLED])
    assert capsys.readouterr().err == "" and not (run_dir / "logs" / "attempts.jsonl").exists()


def test_a_mistake_is_not_tried_again(run_dir: Path) -> None:
    assert not Attempts(run_dir, 5).again([MISTAKE])
    assert not Attempts(run_dir, 5).again([KILLED, MISTAKE])
    assert "not started again: a mistake" in outcomes(run_dir)[-1]


def test_dying_at_the_same_step_is_in_vain(run_dir: Path) -> None:
    attempts = Attempts(run_dir, 100)
    reach(run_dir, 7)
    for _ in range(FUTILE):
        assert attempts.again([KILLED])
    assert not attempts.again([KILLED])
    assert "at the same step" in outcomes(run_dir)[-1]


def test_a_newer_checkpoint_is_progress(run_dir: Path) -> None:
    attempts = Attempts(run_dir, 100)
    reach(run_dir, 7)
    for step in range(2 * FUTILE + 1):
        (run_dir / "checkpoints" / f"step_{step:08d}").mkdir(parents=True)
        assert attempts.again([KILLED])


def test_what_an_attempt_left_is_kept(run_dir: Path) -> None:
    logs = run_dir / "logs"
    for number in (1, 2):
        (logs / "failure_rank_1.json").write_text(f"{number}")
        (logs / "rank_1.err").write_text("last words")
        (logs / "rank_1.out").write_text("")
        (logs / "rank_1.log").write_text("goes on")
        put_by(run_dir)
    put_by(run_dir)
    kept = {str(path.relative_to(logs)) for path in logs.rglob("*") if path.is_file()}
    each = ("failure_rank_1.json", "rank_1.err")
    assert kept == {"rank_1.log", *(f"attempt_{n}/{name}" for n in (1, 2) for name in each)}
    assert (logs / "attempt_2" / "failure_rank_1.json").read_text() == "2"
