"""How a worker is asked to stop, also while its main thread is deaf."""

import signal
import subprocess
import sys
import time

import pytest

from llmtrain.train.stop import StopNow, StopRequest

BODY = """
import hashlib, os, signal, sys, time
from llmtrain.train.stop import StopRequest
stop = StopRequest()
stop.install()
stop.defer()
{body}
print("ready", flush=True)
hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)  # no signal's handler runs before it returns
"""


def deaf(body: str) -> subprocess.Popen[str]:
    """Start a process that is inside native code for minutes, as in a collective."""
    process = subprocess.Popen(
        [sys.executable, "-c", BODY.format(body=body)], text=True, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize(
    ("first", "code"), [(signal.SIGTERM, 143), (signal.SIGUSR1, 143), (signal.SIGINT, 130)]
)
def test_the_grace_ends_a_process_that_does_not(first: signal.Signals, code: int) -> None:
    process = deaf("stop.limit(1.0, lambda: print('given up', flush=True))")
    sent = time.monotonic()
    process.send_signal(first)
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)  # later ones do not prolong it, nor end it
    assert process.wait(timeout=30) == code
    assert 0.9 < time.monotonic() - sent < 5.0
    assert process.stdout is not None and process.stdout.read() == "given up\n"


def test_last_words_that_hang_do_not_keep_the_process() -> None:
    process = deaf(
        "import llmtrain.train.stop as s; s.LAST_WORDS_S = 0.5\n"
        "stop.limit(0.1, lambda: time.sleep(600))"
    )
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 143


def test_a_second_ctrl_c_ends_a_deaf_process_at_once() -> None:
    process = deaf("stop.limit(600.0, lambda: None)")
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=5) == 130


def test_another_ranks_signal_does_not_make_ones_own_the_second() -> None:
    # Rank 1's Ctrl-C may be heard of before the launcher has passed the same on to rank 0.
    process = deaf("stop.limit(2.0, lambda: None)\nstop.hear()")
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None
    assert process.wait(timeout=30) == 130


def test_a_stop_that_was_swallowed_is_asked_for_again() -> None:
    body = """
import os, signal
from llmtrain.train.stop import StopNow, StopRequest
stop = StopRequest()
stop.install()
class Careless:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGUSR1)
        for _ in range(10**6): pass  # the handler runs here, and what it raises is lost
careless = Careless()
try:
    del careless
    while True: pass
except StopNow:
    stop.defer()
    os._exit(stop.exit_code)
"""
    ended = subprocess.run(
        [sys.executable, "-c", body], timeout=20, stderr=subprocess.PIPE, text=True
    )
    assert ended.returncode == 143
    assert "Exception ignored" in ended.stderr


def test_what_another_rank_was_asked_counts_as_a_schedulers_stop() -> None:
    stop = StopRequest()
    assert not stop.asked
    stop.hear()
    assert stop.asked and (stop.status, stop.exit_code) == ("preempted", 143)
    stop.defer()
    stop._handle(signal.SIGINT, None)
    assert (stop.status, stop.exit_code) == ("stopped", 130)


def test_the_first_signal_ends_what_has_nothing_to_save() -> None:
    stop = StopRequest()
    with pytest.raises(StopNow):
        stop._handle(signal.SIGUSR1, None)
    assert (stop.status, stop.exit_code) == ("preempted", 143)
