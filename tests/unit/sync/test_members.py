"""Who works: joining, leaving, dying, and messages that come twice, late or from elsewhere."""

import pytest
import torch

from llmtrain.sync.server.messages import (
    Bye,
    Checkpoint,
    Heartbeat,
    Pull,
    Push,
    Rejected,
    Save,
    Saved,
    Stop,
    Weights,
)
from llmtrain.sync.virtual.cluster import Cluster, Event, joins
from llmtrain.sync.virtual.durations import constant
from tests.unit.sync.toy import (
    difference,
    gradient,
    granted,
    hello,
    make_core,
    push,
    start,
    weights_of,
)


def test_a_push_that_is_sent_again_counts_once_and_is_answered_again() -> None:
    core = make_core()
    hello(core, 0)
    push(core, 0, 1, 0)
    after = weights_of(core)
    ((_, reply),) = push(core, 0, 1, 0)
    assert isinstance(reply, Weights) and reply.version == core.version == 1
    assert difference(weights_of(core), after) == difference(reply.weights, after) == 0.0
    counts = core.statistics()[0]
    assert (counts.pushes, counts.duplicates, core.tokens, core.ticket) == (1, 1, 1, 1)


@pytest.mark.parametrize("settings", [{"max_staleness": 0}, {"apply": "per_clock"}])
def test_a_push_that_is_sent_again_does_not_pass_the_gate(settings: dict[str, object]) -> None:
    core = make_core(**settings)  # type: ignore[arg-type]
    hello(core, 0), hello(core, 1)
    assert push(core, 0, 1, 0) == []
    assert push(core, 0, 1, 0) == []
    base = core.version
    assert granted(push(core, 1, 1, 0)) == [0, 1]
    assert core.version == (2 if base else 1)


def test_an_old_incarnation_is_refused_and_the_new_one_starts_from_the_weights_of_now() -> None:
    core = make_core()
    hello(core, 0), hello(core, 1)
    push(core, 1, 1, 0)
    ((_, welcome),) = hello(core, 0, incarnation=1)
    assert isinstance(welcome, Weights) and welcome.version == 1
    before = weights_of(core)
    for late in (push(core, 0, 1, 0, incarnation=0), hello(core, 0, incarnation=0)):
        ((_, reply),) = late
        assert isinstance(reply, Rejected) and reply.fresh is None
    assert difference(weights_of(core), before) == 0.0
    assert granted(push(core, 0, 1, 1, incarnation=1)) == [0], "its numbers begin anew"
    assert core.version == 2


def test_a_push_from_the_future_gets_the_weights_of_now() -> None:
    """The server was restarted from an older state."""
    core = make_core()
    hello(core, 0)
    for seq in range(1, 4):
        push(core, 0, seq, seq - 1)
        if seq == 2:
            state = core.state_dict()
    restarted = make_core()
    restarted.load_state_dict(state)
    ((_, reply),) = push(restarted, 0, 4, 3, tokens=9)
    assert isinstance(reply, Rejected) and "ahead" in reply.reason
    assert reply.fresh is not None and reply.fresh.version == restarted.version == 2
    assert restarted.statistics()[0].wasted_tokens == 9
    assert granted(push(restarted, 0, 5, 2)) == [0]


def test_strangers_and_what_does_not_fit_are_refused_without_harm() -> None:
    core = make_core()
    ((_, reply),) = push(core, 7, 1, 0)
    assert isinstance(reply, Rejected) and reply.fresh is None
    hello(core, 0)
    before = weights_of(core)
    right = start()
    wrong = [
        {"matrix": right["matrix"]},
        {**right, "bias": torch.zeros(3, dtype=torch.float64)},
        {**right, "bias": right["bias"].float()},
    ]
    for payload in wrong:
        message = Push(worker=0, incarnation=0, seq=1, base_version=0, local_steps=1, tokens=1,
                       payload=payload)  # fmt: skip
        ((_, reply),) = core.handle(message, 1.0)
        assert isinstance(reply, Rejected) and "bias" in reply.reason
    assert core.version == 0 and difference(weights_of(core), before) == 0.0


@pytest.mark.parametrize("settings", [{"max_staleness": 1}, {"apply": "per_clock"}])
@pytest.mark.parametrize("how", ["death", "bye"])
def test_who_is_gone_blocks_no_one(settings: dict[str, object], how: str) -> None:
    core = make_core(dead_after_s=10.0, **settings)  # type: ignore[arg-type]
    for worker in range(3):
        hello(core, worker)
    replies = []
    for seq in (1, 2):
        for worker in (0, 1):
            if seq == 1 or core.settings.apply == "per_push":
                replies += push(core, worker, seq, core.version, now=5.0)
    assert all(core.handle(Heartbeat(worker=w, incarnation=0), 9.0) == [] for w in (0, 1))
    assert core.tick(10.0) == [], "silent for ten seconds, not for longer"
    if how == "death":
        assert granted(core.tick(10.5)) == [0, 1]
    else:
        assert granted(core.handle(Bye(worker=2, incarnation=0), 10.0)) == [0, 1]
    for late in (push(core, 2, 1, 0, now=11.0), hello(core, 2, now=11.0)):
        ((_, reply),) = late
        assert isinstance(reply, Rejected), "an incarnation that was given up is over"
        assert reply.fresh is None


def test_a_late_joiner_starts_at_the_slowest_clock() -> None:
    core = make_core(max_staleness=3)
    hello(core, 0), hello(core, 1)
    for seq in range(1, 6):
        push(core, 0, seq, core.version)
        push(core, 1, seq, core.version)
    push(core, 1, 6, core.version), push(core, 1, 7, core.version)
    ((_, welcome),) = hello(core, 2)
    assert isinstance(welcome, Weights) and (welcome.clock, welcome.slowest_clock) == (5, 5)
    assert welcome.version == 12
    # Nobody is thrown back: worker 1 stood two ahead and stands two ahead.
    ((_, reply),) = push(core, 1, 8, core.version)
    assert isinstance(reply, Weights) and reply.clock - reply.slowest_clock == 3


def test_a_worker_that_comes_back_is_no_slower_than_the_slowest() -> None:
    core = make_core(max_staleness=0, dead_after_s=10.0)
    for worker in range(3):
        hello(core, worker)
    for seq in (1, 2, 3):
        for worker in (0, 1):
            push(core, worker, seq, core.version, now=20.0 * seq)
        core.tick(20.0 * seq + 0.5)  # worker 2 has died
    ((_, welcome),) = hello(core, 2, incarnation=1, now=61.0)
    assert isinstance(welcome, Weights) and welcome.clock == 3


def test_what_a_dead_worker_pushed_into_a_round_counts_and_its_next_life_may_push_too() -> None:
    core = make_core(lr=1.0, apply="per_clock", dead_after_s=10.0)
    hello(core, 0), hello(core, 1)
    push(core, 0, 1, 0, now=1.0)
    core.handle(Heartbeat(worker=1, incarnation=0), 12.0)
    core.tick(12.0)
    hello(core, 0, incarnation=1, now=12.0)
    push(core, 0, 2, 0, incarnation=1, now=13.0)
    push(core, 1, 1, 0, now=13.0)
    assert core.version == 1 and core.tokens == 3
    sent = (1 + 1 / 8) + (1 + 2 / 8) + (2 + 1 / 8)
    expected = {name: tensor - sent / 3 for name, tensor in start().items()}
    assert difference(weights_of(core), expected) < 1e-14


def test_nobody_computes_before_there_are_enough() -> None:
    core = make_core(min_workers=3, dead_after_s=10.0)
    assert hello(core, 0) == hello(core, 1) == []
    assert hello(core, 1) == [], "asked twice"
    assert granted(hello(core, 2)) == [0, 1, 2]
    push(core, 0, 1, 0, now=9.0)
    push(core, 1, 1, 1, now=9.0)
    core.tick(11.0)  # worker 2 has died
    assert push(core, 0, 2, 1, now=12.0) == []
    assert granted(hello(core, 2, incarnation=1, now=13.0)) == [0, 2]


def test_a_checkpoint_is_written_when_nothing_is_in_flight() -> None:
    core = make_core()
    hello(core, 0), hello(core, 1)
    assert core.handle(Save(worker=0, incarnation=0), 1.0) == []
    assert push(core, 0, 1, 0) == []
    asked = push(core, 1, 1, 0)
    assert asked == [(0, Checkpoint(version=2)), (1, Checkpoint(version=2))]
    state = core.state_dict()
    assert core.handle(Saved(worker=0, incarnation=0), 2.0) == []
    assert push(core, 0, 1, 0) == [], "a push that is sent again does not end it"
    assert granted(core.handle(Saved(worker=1, incarnation=0), 2.0)) == [0, 1]
    assert granted(push(core, 0, 2, 2)) == [0]
    restarted = make_core()
    restarted.load_state_dict(state)
    assert granted(restarted.tick(3.0)) == [0, 1]


def test_a_checkpoint_does_not_wait_for_who_dies_while_it_writes() -> None:
    core = make_core(dead_after_s=10.0)
    hello(core, 0), hello(core, 1)
    core.handle(Save(worker=0, incarnation=0), 1.0)
    push(core, 0, 1, 0, now=5.0)
    assert [worker for worker, _ in push(core, 1, 1, 0, now=1.0)] == [0, 1]
    assert core.handle(Saved(worker=0, incarnation=0), 6.0) == []
    assert granted(core.tick(12.0)) == [0]


def test_a_checkpoint_does_not_wait_for_the_dead() -> None:
    core = make_core(dead_after_s=10.0)
    hello(core, 0), hello(core, 1)
    core.handle(Save(worker=0, incarnation=0), 1.0)
    assert push(core, 0, 1, 0, now=5.0) == []
    assert core.tick(11.0) == [(0, Checkpoint(version=1))]
    assert granted(core.handle(Saved(worker=0, incarnation=0), 12.0)) == [0]


def test_training_stops_after_its_tokens_and_nothing_counts_any_more() -> None:
    core = make_core(max_staleness=0, stop_tokens=10)
    for worker in range(3):
        hello(core, worker)
    assert push(core, 0, 1, 0, tokens=4) == []
    assert push(core, 1, 1, 0, tokens=6) == [(w, Stop(version=2, tokens=10)) for w in (0, 1)]
    before = weights_of(core)
    assert push(core, 2, 1, 0, tokens=3) == [(2, Stop(version=2, tokens=10))]
    assert difference(weights_of(core), before) == 0.0
    assert core.statistics()[2].wasted_tokens == 3
    ((_, final),) = core.handle(Pull(worker=9, incarnation=0), 3.0)
    assert isinstance(final, Weights) and difference(final.weights, before) == 0.0


def test_slow_workers_are_given_fewer_steps() -> None:
    core = make_core(local_steps=12, adapt_local_steps=True)
    for worker in range(4):
        ((_, welcome),) = hello(core, worker)
        assert isinstance(welcome, Weights) and welcome.local_steps == 12
    told = {}
    for worker, now in {0: 0.1, 1: 0.2, 2: 600.0, 3: 3 * 0.1}.items():
        message = Push(worker=worker, incarnation=0, seq=1, base_version=0, local_steps=12,
                       tokens=1, payload=start())  # fmt: skip
        ((_, reply),) = core.handle(message, now)
        assert isinstance(reply, Weights)
        told[worker] = reply.local_steps
    assert told == {0: 12, 1: 6, 2: 1, 3: 4}, "floor(12 speed / top speed), 1 at least"


def test_a_killed_worker_is_dropped_on_the_virtual_clock_and_may_come_back() -> None:
    core = make_core(max_staleness=1, dead_after_s=3.5, stop_tokens=90)
    churn = [Event(4.5, "kill", 2), Event(20.5, "join", 2)]
    cluster = Cluster(core, gradient, constant(), schedule=[*joins(3), *churn], tick_s=1.0)
    took = cluster.run()
    pushes = {
        w: [e.now for e in cluster.log if (e.kind, e.worker) == ("push", w)] for w in range(3)
    }
    assert core.stopped
    gone = [now for now in pushes[2] if 4.5 < now < 21.0]
    assert gone == [] and max(pushes[2]) > 21.0
    held = [now for now in pushes[0] if 6.0 < now < 8.0]
    assert held == [], "until its death is noticed the others wait at the bound"
    assert len([now for now in pushes[0] if 8.0 < now < 20.0]) >= 10
    assert took < 40.0
