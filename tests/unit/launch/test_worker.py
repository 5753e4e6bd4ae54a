"""The worker's way in and out, where a signal may come at any line."""

import os
import signal
import sys

import pytest

from llmtrain import worker
from llmtrain.train.stop import StopNow, StopRequest


@pytest.fixture(autouse=True)
def keep_signals(monkeypatch: pytest.MonkeyPatch) -> None:
    def leave(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.setattr(worker, "die_with_parent", lambda: None)
    monkeypatch.setattr(worker, "hold", lambda run_dir: None)
    monkeypatch.setattr(StopRequest, "install", lambda self: None)
    monkeypatch.setattr(os, "_exit", leave)
    monkeypatch.setattr(sys, "argv", ["llmtrain.worker", "run"])


@pytest.mark.parametrize("raised", [StopNow, KeyboardInterrupt])
def test_a_stop_outside_of_train_leaves_no_traceback(
    raised: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(run_dir: str, stop: StopRequest, *, server: int | None) -> int:
        stop.signum = signal.SIGINT
        raise raised

    monkeypatch.setattr(worker, "train", train)
    with pytest.raises(SystemExit) as ended:
        worker.main()
    assert ended.value.code == 130


def test_a_second_signal_does_not_interrupt_the_record_of_the_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stop, recorded = StopRequest(), []

    def interrupted(*_: object) -> None:
        stop._handle(signal.SIGTERM, None)

    def record(*_: object) -> None:
        stop._handle(signal.SIGTERM, None)
        recorded.append(stop.status)

    monkeypatch.setattr(worker, "log_path", interrupted)
    monkeypatch.setattr(worker, "_record_stop", record)
    with pytest.raises(SystemExit) as ended:
        worker.train("run", stop)
    assert ended.value.code == 143 and recorded == ["preempted"]
