"""The virtual clock: equal runs, replays, and how long each mode takes on the same machines."""

import json
from dataclasses import asdict

import pytest
import torch

from llmtrain.sync.server.core import ServerCore
from llmtrain.sync.server.rules import OptimizerRule
from llmtrain.sync.server.settings import ServerSettings
from llmtrain.sync.server.tensors import Tensors
from llmtrain.sync.virtual.cluster import Cluster, Event, joins
from llmtrain.sync.virtual.durations import Durations, constant, lockstep_s, straggler, transient
from tests.unit.sync.toy import adamw, difference, gradient, in_order, make_core, sgd, weights_of

WORKERS = 4
CHURN = [Event(6.5, "kill", 1), Event(14.5, "join", 1), Event(17.2, "leave", 3)]
SETTINGS: dict[str, dict[str, object]] = {
    "free": {},
    "bounded": {"max_staleness": 2},
    "rounds": {"apply": "per_clock"},
    "quorum": {"apply": "per_clock", "quorum": 2, "grace_s": 1.5},
}


def live_run(name: str, seed: int = 3) -> Cluster:
    """Run uneven workers that die, leave and come back."""
    core = make_core(adamw, dead_after_s=3.0, stop_tokens=60, **SETTINGS[name])
    cluster = Cluster(
        core, gradient, transient(0.3, 4.0, seed), schedule=[*joins(WORKERS), *CHURN], tick_s=0.9
    )
    cluster.run(until_s=200.0)
    assert core.stopped
    return cluster


@pytest.mark.parametrize("name", SETTINGS)
def test_equal_runs_have_equal_bits_and_a_log_replays(name: str) -> None:
    first, second = live_run(name), live_run(name)
    assert first.log == second.log
    assert difference(weights_of(first.core), weights_of(second.core)) == 0.0
    assert live_run(name, seed=4).log != first.log
    written = [Event(**json.loads(json.dumps(asdict(event)))) for event in first.log]
    again = Cluster(make_core(adamw, dead_after_s=3.0, stop_tokens=60, **SETTINGS[name]), gradient)
    again.replay(written)
    assert again.log == first.log
    assert difference(weights_of(again.core), weights_of(first.core)) == 0.0
    assert again.core.statistics() == first.core.statistics()


def test_tickets_number_the_pushes_in_their_order() -> None:
    cluster = live_run("bounded")
    tickets = [event.ticket for event in cluster.log if event.kind == "push"]
    assert tickets == list(range(1, len(tickets) + 1))


def test_a_log_of_another_run_is_refused() -> None:
    core = make_core(stop_tokens=60)
    wrong = [*joins(2), Event(1.0, "push", 0), Event(2.0, "push", 1, 2, 1)]
    with pytest.raises(ValueError, match="version 0"):
        Cluster(core, gradient).replay(wrong)
    early = [*joins(2), Event(1.0, "push", 0), Event(1.0, "push", 0)]
    with pytest.raises(ValueError, match="waits"):
        Cluster(make_core(max_staleness=0), gradient).replay(early)


def test_the_order_of_the_pushes_is_what_decides() -> None:
    one = in_order(make_core(sgd(momentum=0.9)), gradient, 2, [0, 1, 0, 1])
    same = in_order(make_core(sgd(momentum=0.9)), gradient, 2, [0, 1, 0, 1])
    other = in_order(make_core(sgd(momentum=0.9)), gradient, 2, [0, 0, 1, 1])
    assert difference(one, same) == 0.0 < difference(one, other)


STEPS = 256


def seconds(durations: Durations, **settings: object) -> float:
    """Return the virtual seconds until WORKERS * STEPS steps are in, under a server."""
    rule = OptimizerRule({"x": torch.zeros(1)}, sgd())
    stop = {"stop_tokens": WORKERS * STEPS, "min_workers": WORKERS}
    core = ServerCore(rule, ServerSettings(**stop, **settings), lambda tokens: 0.1)  # type: ignore[arg-type]

    def nothing(worker: int, step: int, local_steps: int, weights: Tensors) -> Tensors:
        return {"x": torch.zeros(1)}

    cluster = Cluster(core, nothing, durations, schedule=joins(WORKERS))
    cluster.run()
    assert core.stopped
    pushed = [event.now for event in cluster.log if event.kind == "push"]
    return pushed[sum(counts.pushes for counts in core.statistics().values()) - 1]


def lockstep(durations: Durations, local_steps: int) -> float:
    return lockstep_s(durations, workers=WORKERS, steps=STEPS, sync_every_steps=local_steps)


def test_the_server_agrees_with_lockstep() -> None:
    jitter = transient(0.05, 20.0, seed=2)
    for local_steps in (1, 8):
        found = seconds(jitter, apply="per_clock", local_steps=local_steps)
        assert found == pytest.approx(lockstep(jitter, local_steps), rel=1e-12)
    assert seconds(constant()) == lockstep(constant(), 1) == STEPS


def test_a_straggler_is_helped_by_fewer_steps_or_by_nobody_waiting() -> None:
    slow = straggler(1, 3.0)
    took = {
        "sync": lockstep(slow, 1),
        "local steps": lockstep(slow, 8),
        "bounded": seconds(slow, max_staleness=3),
        "fewer steps": seconds(slow, apply="per_clock", local_steps=8, adapt_local_steps=True),
        "quorum": seconds(slow, apply="per_clock", quorum=3),
        "async": seconds(slow),
    }
    ratio = {name: s / STEPS for name, s in took.items()}
    assert ratio["sync"] == ratio["local steps"] == 3.0
    assert 2.9 < ratio["bounded"] < 3.0, "the bound only puts the waiting off"
    assert ratio["async"] == pytest.approx(1.2, abs=0.02)
    assert ratio["async"] < ratio["fewer steps"] < 1.4


@pytest.mark.parametrize("seed", [3, 4, 5])
def test_passing_slowness_is_hidden_the_better_the_less_all_wait_for_all(seed: int) -> None:
    jitter = transient(0.05, 20.0, seed=seed)
    took = {
        "sync": lockstep(jitter, 1),
        "local steps 8": lockstep(jitter, 8),
        "bounded 3": seconds(jitter, max_staleness=3),
        "local steps 32": lockstep(jitter, 32),
        "bounded 10": seconds(jitter, max_staleness=10),
        "bounded 30": seconds(jitter, max_staleness=30),
        "async": seconds(jitter),
    }
    assert sorted(took, key=lambda name: -took[name]) == list(took)
    assert len(set(took.values())) == len(took)
