"""What a host says while it waits for others."""

import socket
import threading
from collections.abc import Callable

import pytest

from llmtrain.distributed.hosts import Meeting, reach
from llmtrain.distributed.node import Node
from llmtrain.distributed.waiting import told
from llmtrain.elastic import are_here
from llmtrain.errors import ConfigError
from tests.support.waiting import wait_until


class Told:
    """All that stands on stderr so far."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys, self._text = capsys, ""

    def lines(self) -> list[str]:
        self._text += self._capsys.readouterr().err
        return self._text.splitlines()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def test_a_line_and_one_more_at_every_change(capsys: pytest.CaptureFixture[str]) -> None:
    said = Told(capsys)
    line = "one"
    with told(lambda: line):
        wait_until(lambda: said.lines() == ["one"], "the first line")
        line = ""
        line = "two"
        wait_until(lambda: said.lines() == ["one", "two"], "the second line")
    with told(lambda: "short"):  # is over before anything is said
        pass
    assert said.lines() == ["one", "two"]


def test_the_first_host_is_waited_for_aloud(capsys: pytest.CaptureFixture[str]) -> None:
    port = free_port()
    with pytest.raises(ConfigError, match="nothing listens"):
        reach("127.0.0.1", port, 2.0)
    where = f"127.0.0.1:{port}"
    assert Told(capsys).lines() == [f"waiting for the first host at {where} (Connection refused)"]


def test_one_rank_and_several_are_named() -> None:
    assert are_here([3]) == "here is rank 3" and are_here([4, 5, 6]) == "here are ranks 4 to 6"


def in_background(*works: Callable[[], object]) -> list[threading.Thread]:
    threads = [threading.Thread(target=work) for work in works]
    for thread in threads:
        thread.start()
    return threads


def test_who_has_come_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    said, port = Told(capsys), free_port()
    nodes = [
        Node("localhost", port, 3, 3, rank, rank == 0, join_timeout_s=60.0) for rank in range(3)
    ]
    first = Meeting(nodes[0])

    def meet() -> None:
        with told(first.waiting):
            first.handler.next_rendezvous()

    threads = in_background(meet)
    host, waiting = first.host, f"waiting at localhost:{port} for 3 hosts"
    expected = [f"{waiting}: 1 has come ({host})"]
    wait_until(lambda: said.lines() == expected, "the first line")
    others = [Meeting(node) for node in nodes[1:]]
    threads += in_background(others[0].handler.next_rendezvous)
    expected.append(f"{waiting}: 2 have come ({host}, {host})")
    wait_until(lambda: said.lines() == expected, "the second line")
    threads += in_background(others[1].handler.next_rendezvous)
    for thread in threads:
        thread.join(30)
    for meeting in (*others, first):
        meeting.leave(3)
    assert first.waiting() == "" and said.lines() == expected
