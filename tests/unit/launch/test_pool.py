"""Several children at once: what reaches them, and what is left of them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llmtrain.launch.pool import Pool
from tests.support.waiting import eventually, wait_until

CHILD = """
import os, pathlib, signal, sys, time
from llmtrain.lifeline import die_with_parent
die_with_parent()
out, code, after = pathlib.Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
told = []
for name in (signal.SIGINT, signal.SIGTERM):
    signal.signal(name, lambda number, frame: told.append(number))
(out.parent / (out.name + ".pid")).write_text(str(os.getpid()))
out.write_text("ready")
while len(told) < after:
    time.sleep(0.01)
time.sleep(0.3)  # what comes twice would come now
print("told", *told, flush=True)
sys.exit(code)
"""

PARENT = """
import os, pathlib, sys, time
from llmtrain.launch.pool import Pool
folder = pathlib.Path(sys.argv[1])
with Pool(2) as pool:
    for number in (0, 1):
        pool.start(number, pool.slot, [sys.executable, folder / "child.py", folder / str(number),
                   "0", "9"], os.environ)
    while pool.children:
        pool.ended()
        time.sleep(0.02)
"""


class Stage:
    """Children that say what reached them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "child.py").write_text(CHILD)

    def start(self, pool: Pool, number: int, code: int = 0, after: int = 1) -> None:
        assert pool.slot is not None
        out = self.folder / str(number)
        command = [sys.executable, str(self.folder / "child.py"), str(out), str(code), str(after)]
        pool.start(number, pool.slot, command, os.environ, self.folder / f"{number}.log")

    def wait_for(self, *numbers: int) -> None:
        for number in numbers:
            path = self.folder / str(number)
            wait_until(lambda path=path: path.exists() and path.read_text() == "ready", str(path))

    def said(self, number: int) -> str:
        return (self.folder / f"{number}.log").read_text().strip()


def drain(pool: Pool) -> dict[int, int]:
    codes: dict[int, int] = {}
    end = time.monotonic() + 60
    while pool.children and time.monotonic() < end:
        codes |= pool.ended()
        time.sleep(0.02)
    return codes


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_each_child_gets_one_signal(stage: Stage, signum: signal.Signals) -> None:
    sent = signal.SIGINT if signum == signal.SIGINT else signal.SIGTERM
    with Pool(2) as pool:
        stage.start(pool, 0, code=3)
        stage.start(pool, 1, code=4)
        assert pool.slot is None
        stage.wait_for(0, 1)
        os.kill(os.getpid(), signum)
        assert drain(pool) == {0: 3, 1: 4}
        assert pool.slot is None  # nothing is started after a signal
    assert pool.stopped_by == sent
    assert [stage.said(number) for number in (0, 1)] == [f"told {int(sent)}"] * 2


def test_a_child_that_is_given_up_is_not_told_twice(stage: Stage) -> None:
    with Pool(2) as pool:
        stage.start(pool, 0)
        stage.start(pool, 1)
        stage.wait_for(0, 1)
        pool.stop(0)
        os.kill(os.getpid(), signal.SIGINT)
        drain(pool)
    assert stage.said(0) == f"told {int(signal.SIGTERM)}"
    assert stage.said(1) == f"told {int(signal.SIGINT)}"


def test_a_second_ctrl_c_is_passed_on_and_a_third_kills(stage: Stage) -> None:
    with Pool(2) as pool:
        stage.start(pool, 0, code=5, after=2)
        stage.start(pool, 1, after=9)
        stage.wait_for(0, 1)
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            pool.ended()
            time.sleep(0.1)
        wait_until(
            lambda: 0 not in pool.children or pool.ended(), "the one that ends at the second"
        )
        os.kill(os.getpid(), signal.SIGINT)
        assert drain(pool).get(1) == -signal.SIGKILL


def test_a_free_slot_is_taken_again(stage: Stage) -> None:
    with Pool(2) as pool:
        stage.start(pool, 0)
        stage.start(pool, 1)
        stage.wait_for(0, 1)
        pool.stop(0)
        wait_until(lambda: pool.ended(), "the first child")
        assert pool.slot == 0
        stage.start(pool, 2)
        assert {n: c.slot for n, c in pool.children.items()} == {1: 1, 2: 0}
        stage.wait_for(2)
        pool.stop(1)
        pool.stop(2)
        drain(pool)


def test_children_die_with_a_parent_that_is_killed(stage: Stage) -> None:
    (stage.folder / "parent.py").write_text(PARENT)
    parent = subprocess.Popen([sys.executable, str(stage.folder / "parent.py"), str(stage.folder)])
    stage.wait_for(0, 1)
    pids = [int((stage.folder / f"{number}.pid").read_text()) for number in (0, 1)]
    parent.kill()
    parent.wait()
    try:
        assert eventually(lambda: not any(map(_lives, pids)), 30)
    finally:
        for pid in filter(_lives, pids):
            os.kill(pid, signal.SIGKILL)


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
