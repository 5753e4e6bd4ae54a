"""The notice board, over real stores."""

import datetime
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest
from torch.distributed import PrefixStore, Store, TCPStore

import llmtrain.distributed.board as board_module
from llmtrain.distributed.board import Board
from tests.support.waiting import eventually


@pytest.fixture
def store() -> Iterator[Store]:
    server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    yield PrefixStore("attempt_0", server)


def boards(store: Store, count: int) -> list[Board]:
    return [Board(store, rank=r, world_size=count, every_s=0.02) for r in range(count)]


def test_each_reads_what_the_others_say_last(store: Store) -> None:
    first, second, third = boards(store, 3)
    first.reads = True
    assert eventually(lambda: first.answers > 2, 20) and first.others == {}
    second.say({"looks": 1})
    second.say({"looks": 2})
    assert eventually(lambda: first.others == {1: {"looks": 2}}, 20)
    third.say({"looks": 7})
    third.close()  # its last notice stays
    assert eventually(lambda: first.others.get(2) == {"looks": 7}, 20)
    for board in (first, second):
        board.close()


def test_one_speaks_for_all(store: Store) -> None:
    first, second, third = all_three = boards(store, 3)
    assert [second.take_word(), first.take_word(), third.take_word()] == [True, False, False]
    assert eventually(lambda: first.is_over and third.is_over, 20)
    assert first.verdict is None
    second.speak("rank 2 hangs")
    assert eventually(lambda: [b.verdict for b in all_three] == ["rank 2 hangs"] * 3, 20)
    for board in all_three:
        board.close()


def test_a_wait_of_another_thread_on_the_same_store_does_not_block_it(store: Store) -> None:
    first, second = boards(store, 2)
    waits = threading.Thread(
        target=lambda: store.wait(["late"], datetime.timedelta(seconds=20)), daemon=True
    )
    waits.start()
    first.reads = True
    second.say({"looks": 1})
    assert eventually(lambda: first.others == {1: {"looks": 1}}, 10)
    assert waits.is_alive()
    store.clone().set("late", "")  # type: ignore[attr-defined]
    waits.join(20)
    first.close()
    second.close()


SERVER = """
import time
from torch.distributed import TCPStore
store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
print(store.port, flush=True)
time.sleep(60)
"""


def test_a_store_that_has_gone_silent_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(board_module, "ANSWER_S", 0.5)
    server = subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        port = int(server.stdout.readline())
        board = Board(TCPStore("127.0.0.1", port), rank=0, world_size=2, every_s=0.02)
        assert eventually(lambda: board.answers > 0, 20)
        server.send_signal(signal.SIGSTOP)  # as a machine that loses its power: no word more
        time.sleep(0.2)
        heard = board.answers
        assert board.take_word()  # nobody answers: this rank speaks for itself
        board.speak("in vain")
        board.close()
        assert board.answers == heard
    finally:
        server.kill()
        server.wait()
