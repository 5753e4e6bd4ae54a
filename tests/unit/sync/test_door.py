"""The server's door: who knocks gets in, whoever else has died at it."""

import threading
import time

import torch
import torch.distributed as dist

from llmtrain.sync.transport.frame import Frame
from llmtrain.sync.transport.hub import Answers, Hub
from llmtrain.sync.transport.session import Caller, call
from llmtrain.tasks.serve import watch_door

PATIENCE_S = 30.0


class Echo:
    """A desk that answers at once."""

    def handle(self, worker: int, frame: Frame) -> Answers:
        return [(worker, Frame("heard", frame.fields, frame.tensors))]

    def lost(self, worker: int) -> Answers:
        return []


def test_one_that_dies_at_the_door_keeps_nobody_out() -> None:
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    hub = Hub(Echo(), places=1)
    watch_door(hub, store)
    number = store.add("door/0/knocks", 1)
    store.set(f"door/0/{number}", '{"worker": 0, "place": 0, "restart": 0}')  # and dies
    answers: list[Frame] = []

    def come_in() -> None:
        own = dist.TCPStore("127.0.0.1", store.port, is_master=False)
        session = call(own, Caller(worker=1, place=0, restart=0))
        session.send(Frame("hello", {}, {"0/w": torch.ones(2)}))
        answers.append(session.receive())

    caller = threading.Thread(target=come_in, daemon=True)
    caller.start()
    caller.join(PATIENCE_S)
    assert answers and answers[0].kind == "heard"
    assert torch.equal(answers[0].tensors["0/w"], torch.ones(2))


def test_a_line_may_be_silent_for_longer_than_its_ends_wait_for_each_other() -> None:
    from llmtrain.sync.transport import session as module

    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    usual, module.CONNECT = module.CONNECT, type(module.CONNECT)(seconds=1)
    try:
        hub = Hub(Echo(), places=1)
        watch_door(hub, store)
        own = dist.TCPStore("127.0.0.1", store.port, is_master=False)
        session = call(own, Caller(worker=1, place=0, restart=0))
        time.sleep(2.5)
        session.send(Frame("hello"))
        assert session.receive().kind == "heard"
    finally:
        module.CONNECT = usual
