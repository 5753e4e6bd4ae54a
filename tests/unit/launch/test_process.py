"""One child: signalled once, never orphaned. Real processes, small ones."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llmtrain.errors import ConfigError
from llmtrain.launch.claim import claimed
from llmtrain.launch.process import Ended, supervise
from tests.support.waiting import eventually

PARENT = """
import signal, sys
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # `nohup make test` has it ignored
from llmtrain.launch.process import supervise
ended = supervise([sys.executable, "-c", sys.argv[1]], dict(__import__("os").environ))
sys.exit(ended.exit_code)
"""

CHILD = """
import os, signal, sys, time
from llmtrain.lifeline import die_with_parent
die_with_parent()
seen = []
signal.signal(signal.SIGINT, lambda *_: seen.append("INT"))
signal.signal(signal.SIGTERM, lambda *_: seen.append("TERM"))
print(os.getpid(), flush=True)
while not seen or {stubborn}:
    time.sleep(0.02)
time.sleep(0.2)
print(" ".join(seen), flush=True)
sys.exit(130 if seen[0] == "INT" else 143)
"""


def start(stubborn: bool = False) -> tuple[subprocess.Popen[str], int]:
    """Start a parent that supervises a child; return it and the child's process id."""
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, CHILD.format(stubborn=stubborn)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    return parent, int(parent.stdout.readline())


def gone(pid: int) -> bool:
    """Whether the process has ended: it is not there, or only waits to be reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@pytest.mark.parametrize(
    ("sent", "seen", "code"),
    [(signal.SIGINT, "INT", 130), (signal.SIGTERM, "TERM", 143), (signal.SIGHUP, "TERM", 143)],
)
def test_a_signal_arrives_once(sent: signal.Signals, seen: str, code: int) -> None:
    parent, child = start()
    parent.send_signal(sent)
    out, _ = parent.communicate(timeout=60)
    assert out.split() == [seen]
    assert parent.returncode == code
    assert gone(child)


def test_a_second_interrupt_kills() -> None:
    parent, child = start(stubborn=True)
    parent.send_signal(signal.SIGINT)
    time.sleep(0.2)
    assert parent.poll() is None
    parent.send_signal(signal.SIGINT)
    parent.communicate(timeout=60)
    assert parent.returncode == 130
    assert gone(child)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="PR_SET_PDEATHSIG")
def test_no_orphan_when_the_parent_is_killed() -> None:
    parent, child = start(stubborn=True)
    parent.kill()
    parent.communicate(timeout=60)
    assert eventually(lambda: gone(child))


def test_exit_codes() -> None:
    env = dict(os.environ)
    assert supervise([sys.executable, "-c", "raise SystemExit(7)"], env).exit_code == 7
    killed = supervise([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"], env)
    assert (killed.code, killed.exit_code) == (-9, 137)
    assert Ended(1, signal.SIGINT, False).exit_code == 1  # it crashed on the way out
    assert Ended(0, signal.SIGINT, False).exit_code == 0  # it was done already
    assert Ended(-9, signal.SIGINT, True).exit_code == 130


def test_a_run_directory_is_held_by_one(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    refused = pytest.raises(ConfigError, match=f"in use: process {os.getpid()}")
    with claimed(tmp_path), refused, claimed(tmp_path):
        pass
    with claimed(tmp_path):
        pass
