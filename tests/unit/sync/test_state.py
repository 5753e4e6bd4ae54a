"""A server that is saved and restored goes on with the same bits, and needs all that it saves."""

import copy
import json
from collections.abc import Callable
from io import BytesIO

import pytest
import torch

from llmtrain.sync.server.compensation import DelayCompensation
from llmtrain.sync.server.core import ServerCore
from llmtrain.sync.server.members import Member
from llmtrain.sync.server.messages import Push, Rejected, Reply, Save
from llmtrain.sync.server.rules import DelayedNesterov, Elastic, OptimizerRule, State
from llmtrain.sync.server.settings import ServerSettings
from llmtrain.sync.virtual.cluster import Cluster, Compute, VirtualWorker, joins
from llmtrain.sync.virtual.durations import transient
from tests.unit.sync.toy import (
    adamw,
    delta,
    difference,
    gradient,
    hello,
    make_core,
    push,
    reached,
    sgd,
    start,
    weights_of,
)

WORKERS = 4


def by_tokens(tokens: int) -> float:
    return 0.4 / (1 + 0.05 * tokens)


def rounds() -> ServerCore:
    settings = ServerSettings(apply="per_clock", quorum=2, grace_s=1.5, min_workers=WORKERS)
    return ServerCore(OptimizerRule(start(), sgd(momentum=0.9)), settings, by_tokens)


def bounded() -> ServerCore:
    settings = ServerSettings(max_staleness=1, min_workers=WORKERS, staleness_policy="decay")
    return ServerCore(OptimizerRule(start(), adamw), settings, by_tokens)


def delayed() -> ServerCore:
    rule = DelayedNesterov(start(), buffer=WORKERS, momentum=0.9, spread=0.1)
    settings = ServerSettings(local_steps=8, adapt_local_steps=True, lr_over_workers=False)
    return ServerCore(rule, settings, by_tokens)


def compensated() -> ServerCore:
    dc = DelayCompensation(start(), strength=0.5, mean_square_decay=0.9)
    settings = ServerSettings(staleness_policy="reject", max_versions=4)
    return ServerCore(OptimizerRule(start(), sgd()), settings, by_tokens, dc)


def elastic() -> ServerCore:
    settings = ServerSettings(max_staleness=0, local_steps=2, min_workers=WORKERS)
    return ServerCore(Elastic(start(), alpha=0.2), settings, by_tokens)


MODES: dict[str, tuple[Callable[[], ServerCore], Compute]] = {
    "rounds": (rounds, gradient),
    "bounded": (bounded, gradient),
    "delayed": (delayed, delta),
    "compensated": (compensated, gradient),
    "elastic": (elastic, reached),
}
BEFORE, AFTER = 25, 30
"""Pushes until just before the server is saved, in the middle of a clock, and after that."""


class Heard(Cluster):
    """A cluster that remembers what its workers were told."""

    def __init__(self, mode: str) -> None:
        make, compute = MODES[mode]
        durations = transient(0.4, 3.3, seed=11)
        super().__init__(make(), compute, durations, schedule=joins(WORKERS), tick_s=0.7)
        self.replies: list[str] = []

    def _receive(self, worker: VirtualWorker, reply: Reply) -> None:
        self.replies.append(f"{worker.worker} {reply}")
        super()._receive(worker, reply)

    def second_half(self) -> None:
        """Send once again what was sent last, as after a lost connection, and run on."""
        for number, worker in sorted(self.workers.items()):
            if worker.granted is None:
                again = Push(
                    worker=number, incarnation=worker.incarnation, seq=worker.seq, base_version=0,
                    local_steps=1, tokens=1, payload=start(),
                )  # fmt: skip
                for told in self.core.handle(again, self.now):
                    self._receive(self.workers[told[0]], told[1])
        self.run(pushes=AFTER, until_s=self.now + 40)


def half_way(mode: str) -> Heard:
    cluster = Heard(mode)
    cluster.run(pushes=BEFORE)
    cluster.run(until_s=cluster.now + 0.9)
    return cluster


def go_on(mode: str, change: Callable[[State, State], State]) -> tuple[Heard, ServerCore]:
    """Run half way, put a new server with the changed state in place, and run on."""
    cluster = half_way(mode)
    fresh = MODES[mode][0]()
    state = change(cluster.core.state_dict(), fresh.state_dict())
    fresh.load_state_dict(state)
    cluster.core = fresh
    cluster.second_half()
    return cluster, fresh


def outcome(cluster: Heard, core: ServerCore) -> object:
    return cluster.log, cluster.replies, core.statistics(), core.version, core.tokens


def straight(mode: str) -> Heard:
    cluster = half_way(mode)
    cluster.second_half()
    return cluster


def through_a_file(state: State, fresh: State) -> State:
    """Write the tensors without pickles of code, and the rest as JSON."""
    tensors: list[torch.Tensor] = []

    def take(value: object) -> object:
        if isinstance(value, torch.Tensor):
            tensors.append(value)
            return {"tensor": len(tensors) - 1}
        if isinstance(value, dict):
            return {key: take(inner) for key, inner in value.items()}
        return [take(inner) for inner in value] if isinstance(value, list) else value

    def give(value: object) -> object:
        if isinstance(value, dict):
            if value.keys() == {"tensor"}:
                return loaded[value["tensor"]]
            return {key: give(inner) for key, inner in value.items()}
        return [give(inner) for inner in value] if isinstance(value, list) else value

    text, file = json.dumps(take(state)), BytesIO()
    torch.save(tensors, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    restored = give(json.loads(text))
    assert isinstance(restored, dict)
    return restored


@pytest.mark.parametrize("mode", MODES)
def test_a_restored_server_goes_on_with_the_same_bits(mode: str) -> None:
    expected = straight(mode)
    cluster, core = go_on(mode, through_a_file)
    assert outcome(cluster, core) == outcome(expected, expected.core)
    assert difference(weights_of(core), weights_of(expected.core)) == 0.0


@pytest.mark.parametrize("mode", MODES)
def test_a_state_is_a_copy(mode: str) -> None:
    cluster = half_way(mode)
    state = cluster.core.state_dict()
    before = copy.deepcopy(state)
    cluster.second_half()
    again = MODES[mode][0]()
    again.load_state_dict(state)
    assert difference(weights_of(again), before["rule"]["weights"]) == 0.0
    text = [str(s) for s in (state, before)]
    assert text[0] == text[1]


PARTS = [
    *[("rounds", part) for part in (
        "version", "tokens", "ticket", "rule.weights", "rule.optimizer", "round.pushes",
        "round.quorum_s", "members.live", "members.incarnation", "members.seq",
        "members.waiting_since_s", "members.counts", "members.ticket",
    )],
    *[("bounded", part) for part in ("rule.optimizer", "members.clock", "version", "tokens")],
    *[("delayed", part) for part in (
        "rule.count", "rule.sum", "rule.velocity", "members.speed", "members.granted_s",
    )],
    *[("compensated", part) for part in ("compensation", "members.base")],
    *[("elastic", part) for part in ("rule.weights", "members.answer")],
]  # fmt: skip


@pytest.mark.parametrize(("mode", "part"), PARTS)
def test_each_part_of_the_state_is_needed(mode: str, part: str) -> None:
    def drop(state: State, fresh: State) -> State:
        first, _, second = part.partition(".")
        if first == "members":
            for member in state["members"]:
                new = vars(Member(worker=member["worker"]))
                plain = {"staleness": [], "pushes": 0, "tokens": 0}
                member[second] = plain if second == "counts" else new[second]
        elif second:
            state[first][second] = fresh[first][second]
        else:
            state[first] = fresh[first]
        return state

    expected = straight(mode)
    cluster, core = go_on(mode, drop)
    if outcome(cluster, core) == outcome(expected, expected.core):
        assert difference(weights_of(core), weights_of(expected.core)) > 0.0


def test_a_rejection_that_a_checkpoint_held_back_is_told_after_a_restart() -> None:
    settings = {"staleness_policy": "reject", "max_versions": 0}
    core = make_core(**settings)
    hello(core, 0), hello(core, 1)
    core.handle(Save(worker=0, incarnation=0), 1.0)
    push(core, 0, 1, 0)
    push(core, 1, 1, 0)  # a version behind by now
    restarted = make_core(**settings)
    restarted.load_state_dict(through_a_file(core.state_dict(), {}))
    (_, kept), (_, refused) = restarted.tick(2.0)
    assert not isinstance(kept, Rejected)
    assert isinstance(refused, Rejected) and "behind" in refused.reason
