"""Several servers that hold a shard each are one server, to the last bit."""

import dataclasses
import json
from collections.abc import Callable, Collection

import pytest

from llmtrain.sync.server.compensation import DelayCompensation
from llmtrain.sync.server.core import ServerCore
from llmtrain.sync.server.entry import Entry
from llmtrain.sync.server.lead import Lead
from llmtrain.sync.server.messages import (
    Bye,
    Hello,
    Message,
    Push,
    Rejected,
    Replies,
    Reply,
    Save,
    Weights,
)
from llmtrain.sync.server.opening import open_core
from llmtrain.sync.server.packing import (
    WEIGHTS,
    joined,
    owners,
    pack,
    paths_of,
    relaid,
    restricted,
    under,
)
from llmtrain.sync.server.rules import DelayedNesterov, Elastic, OptimizerRule, UpdateRule
from llmtrain.sync.server.settings import ServerSettings
from llmtrain.sync.server.tensors import Tensors
from llmtrain.sync.transport.frame import Frame
from llmtrain.sync.transport.lines import _whole
from llmtrain.sync.transport.shard import GIVE, GIVEN, GONE, PART, TAKEN, Shard, ShardError
from llmtrain.sync.virtual.cluster import Cluster, Compute, joins
from llmtrain.sync.virtual.durations import transient
from tests.unit.sync.toy import adamw, delta, difference, gradient, reached, sgd, start

WORKERS, SERVERS = 4, 2
MakeRule = Callable[[Tensors], UpdateRule]
MODES: dict[str, tuple[MakeRule, Compute, dict[str, object]]] = {
    "rounds": (lambda w: OptimizerRule(w, sgd(momentum=0.9)), gradient,
               {"apply": "per_clock", "quorum": 2, "grace_s": 1.5, "dead_after_s": 2.0}),
    "bounded": (lambda w: OptimizerRule(w, adamw), gradient,
                {"max_staleness": 1, "staleness_policy": "decay"}),
    "delayed": (lambda w: DelayedNesterov(w, buffer=WORKERS, momentum=0.9), delta,
                {"local_steps": 8, "adapt_local_steps": True, "lr_over_workers": False}),
    "compensated": (lambda w: OptimizerRule(w, sgd()), gradient,
                    {"staleness_policy": "reject", "max_versions": 4}),
    "elastic": (lambda w: Elastic(w, alpha=0.2), reached, {"local_steps": 2}),
}  # fmt: skip


def named() -> Tensors:
    """Return the toy's weights as a replica of one process names them."""
    return {f"0/{name}": tensor for name, tensor in start().items()}


def as_placed(compute: Compute) -> Compute:
    def placed(worker: int, step: int, local_steps: int, weights: Tensors) -> Tensors:
        own = {name.removeprefix("0/"): tensor for name, tensor in weights.items()}
        return {f"0/{k}": v for k, v in compute(worker, step, local_steps, own).items()}

    return placed


def settings(mode: str) -> ServerSettings:
    return ServerSettings(stop_tokens=400, **MODES[mode][2])  # type: ignore[arg-type]


def core_of(mode: str, weights: Tensors) -> ServerCore:
    compensation = None
    if mode == "compensated":
        compensation = DelayCompensation(weights, strength=0.5, mean_square_decay=0.9)
    rule = MODES[mode][0](weights)
    return ServerCore(rule, settings(mode), lambda tokens: 0.4 / (1 + 0.05 * tokens), compensation)


class Together:
    """A lead and its shards in the place of a core; all that lies between them goes as JSON."""

    def __init__(
        self, mode: str, servers: int, state: object = None, tensors: Tensors | None = None
    ):
        tensors = tensors or {f"{WEIGHTS}{name}": value for name, value in named().items()}
        sizes = {n: t.numel() for n, t in under(WEIGHTS, tensors).items()}
        self.owner, self.servers = owners(sizes, servers), servers

        def opening(frame: Frame) -> ServerCore:
            core = core_of(mode, under(WEIGHTS, frame.tensors))
            open_core(core, state, frame.tensors, 0)
            return core

        self.shards = [Shard(opening) for _ in range(servers)]
        for shard, part in zip(self.shards, self.cut(tensors), strict=True):
            shard.handle(0, Frame(PART, {}, part))
        self.lead = Lead(settings(mode), self.publish)
        open_core(self.lead, state, {}, 0)

    def cut(self, tensors: Tensors) -> list[Tensors]:
        parts: list[Tensors] = [{} for _ in range(self.servers)]
        for path, tensor in tensors.items():
            name = next(part for part in path.split("|") if part.startswith("0/"))
            parts[self.owner[name]][path] = tensor
        return parts

    def publish(self, entry: Entry) -> None:
        for shard in self.shards:
            assert shard.follow(json.loads(json.dumps(entry))) == []

    def handle(self, message: Message, now: float) -> Replies:
        if isinstance(message, Push):
            said = {"incarnation": message.incarnation, "seq": message.seq}
            for shard, part in zip(self.shards, self.cut(message.payload), strict=True):
                [(_, taken)] = shard.handle(message.worker, Frame(PART, said, part))
                assert taken.kind == TAKEN
            message = dataclasses.replace(message, payload={})
        return self.whole(self.lead.handle(message, now))

    def tick(self, now: float, alive: Collection[int] = ()) -> Replies:
        return self.whole(self.lead.tick(now, alive))

    def whole(self, replies: Replies) -> Replies:
        return [(worker, self.filled(worker, reply)) for worker, reply in replies]

    def filled(self, worker: int, reply: Reply) -> Reply:
        if isinstance(reply, Weights):
            return dataclasses.replace(reply, weights=self.fetch(worker)[1])
        if isinstance(reply, Rejected) and reply.fresh:
            fresh = dataclasses.replace(reply.fresh, weights=self.fetch(worker)[1])
            return dataclasses.replace(reply, fresh=fresh)
        return reply

    def fetch(self, worker: int) -> tuple[list[object], Tensors]:
        plains, tensors = [], {}
        for shard in self.shards:
            [(_, frame)] = shard.handle(worker, Frame(GIVE, {"stamp": self.lead.stamp}))
            assert frame.fields["version"] == self.lead.version
            plains.append(frame.fields["core"])
            tensors |= frame.tensors
        return plains, tensors

    @property
    def ticket(self) -> int:
        return self.lead.ticket

    def state(self) -> tuple[object, Tensors]:
        self.lead.show_state()
        plains, tensors = self.fetch(9)  # whoever comes
        return joined(plains), tensors


class Heard(Cluster):
    """A cluster that remembers what its workers were told."""

    def __init__(self, mode: str, core: object) -> None:
        compute = as_placed(MODES[mode][1])
        super().__init__(core, compute, transient(0.4, 3.3, seed=11),  # type: ignore[arg-type]
                         schedule=joins(WORKERS), tick_s=0.7)  # fmt: skip
        self.replies: list[str] = []

    def _receive(self, worker: object, reply: Reply) -> None:
        self.replies.append(f"{worker} {reply}")
        if isinstance(reply, Weights):
            self.replies.append(str(sorted((n, t.tolist()) for n, t in reply.weights.items())))
        super()._receive(worker, reply)  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", MODES)
def test_two_servers_are_one(mode: str) -> None:
    one, both = Heard(mode, core_of(mode, named())), Heard(mode, Together(mode, SERVERS))
    for cluster in (one, both):
        cluster.run(pushes=120)
    assert one.log == both.log and one.replies == both.replies
    assert sum("Weights" in reply for reply in one.replies) > 60
    together = both.core
    assert isinstance(together, Together) and len(set(together.owner.values())) == SERVERS
    plain, tensors = together.state()
    whole_plain, whole = pack(one.core.state_dict())
    assert plain == whole_plain
    assert difference(tensors, whole) == 0.0


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("servers", [(1, 2), (2, 1)])
def test_a_state_goes_on_with_more_servers_or_fewer(mode: str, servers: tuple[int, int]) -> None:
    before = Heard(mode, Together(mode, servers[0]))
    before.run(pushes=37)
    before.core.handle(Save(worker=0, incarnation=0), before.now)
    before.run(until_s=before.now + 20)  # all have pushed, and wait
    plain, tensors = json.loads(json.dumps(before.core.state()[0])), before.core.state()[1]
    ends = []
    for count in (servers[0], servers[1]):
        core = Together(mode, count, plain, tensors)
        assert core.tick(before.now) == [], "nobody has said Hello yet"
        after = Heard(mode, core)
        after.run(pushes=60)
        ends.append((after.replies, core.state()))
    assert ends[0][0] == ends[1][0] and len(ends[0][0]) >= 60
    assert ends[0][1][0] == ends[1][1][0]
    assert difference(ends[0][1][1], ends[1][1][1]) == 0.0


def test_a_shard_that_is_told_out_of_order_or_stands_elsewhere_says_so() -> None:
    together = Together("rounds", SERVERS)
    shard = together.shards[1]
    last = together.lead.stamp
    tick = {"kind": "tick", "now": 1.0, "alive": [], "after": [0, 0]}
    with pytest.raises(ShardError, match=f"entry {last + 2} came after entry {last}"):
        shard.follow({"stamp": last + 2, **tick})
    push = {"worker": 1, "incarnation": 0, "seq": 2}
    shard.handle(1, Frame(PART, {"incarnation": 0, "seq": 1}, {}))
    with pytest.raises(ShardError, match="no part"):
        shard.follow({**tick, "stamp": last + 1, "kind": "push", "said": push})
    shard = Together("rounds", SERVERS).shards[1]
    with pytest.raises(ShardError, match=r"version and ticket \[0, 0\]"):
        shard.follow({"stamp": last + 1, **tick, "after": [1, 1]})


def test_signs_of_life_reach_all_servers() -> None:
    one, both = core_of("rounds", named()), Together("rounds", SERVERS)
    for core in (one, both):
        for worker in range(3):
            core.handle(Hello(worker=worker, incarnation=0), 0.0)
        for now in (1.5, 3.0):
            core.tick(now, [0, 2])
    assert one.living() == both.lead.living() == {0, 2}
    assert pack(one.state_dict())[0] == both.state()[0]


def test_a_part_is_kept_until_the_lead_counts_it_and_counted_once() -> None:
    together = Together("compensated", SERVERS)
    cluster = Heard("compensated", together)
    cluster.run(until_s=0.0)
    granted = cluster.workers[2].granted
    assert granted is not None
    payload = cluster.payload(2)
    push = Push(worker=2, incarnation=0, seq=1, base_version=granted.version, local_steps=1,
                tokens=1, payload=payload)  # fmt: skip
    # The parts are there, and the replica's word to the lead is lost with its line.
    for shard, part in zip(together.shards, together.cut(payload), strict=True):
        shard.handle(2, Frame(PART, {"incarnation": 0, "seq": 1}, part))
        shard.lost(2)
    assert together.lead.version == 0
    together.handle(push, 1.0)
    assert together.lead.version == 1
    together.handle(push, 2.0)
    assert together.lead.version == 1, "a push that is sent again counts once"


def test_an_answer_waits_for_the_entry_that_leaves_it() -> None:
    together = Together("rounds", SERVERS)
    slow = together.shards[1]
    held: list[Entry] = []
    together.lead._tell = held.append
    together.lead.show_weights()
    assert slow.handle(3, Frame(GIVE, {"stamp": together.lead.stamp})) == []
    [(worker, frame)] = slow.follow(held[0])
    assert worker == 3 and set(frame.tensors) == set(together.cut(named())[1])


def test_what_is_fetched_or_out_of_date_is_not_kept() -> None:
    together = Together("compensated", SERVERS)
    cluster = Heard("compensated", together)
    cluster.run(pushes=9)
    assert all(not shard._answers and not shard._parts for shard in together.shards)
    together.lead.show_weights()
    stamp = together.lead.stamp
    together.lead.tick(cluster.now, [])
    for shard in together.shards:
        for kind in (GIVEN, GONE):  # the second comes too late
            [(_, frame)] = shard.handle(1, Frame(GIVE, {"stamp": stamp}))
            assert frame.kind == kind
        shard.handle(1, Frame(PART, {"incarnation": 0, "seq": 99}, {}))
    together.handle(Bye(worker=1, incarnation=0), cluster.now)
    assert all(not shard._parts for shard in together.shards)
    answers = [Frame(GIVEN, {"version": 1, "core": None}), Frame(GONE)]
    assert _whole(Frame("order", {"stamp": stamp}), answers).kind == "rejected"


def test_shards_of_a_state_are_taken_apart_and_joined() -> None:
    plain, _ = pack(core_of("bounded", named()).state_dict())
    parts = [restricted(plain, {name}) for name in named()]
    assert all(len(part["rule"]["weights"]) == 1 for part in parts)
    assert joined(parts) == plain
    with pytest.raises(ValueError, match="differ"):
        joined([parts[0], {**parts[1], "version": 7}])


def test_a_state_is_laid_out_anew_for_any_places() -> None:
    """Of two places, as tensor parallelism makes them, to two stages, and back to one."""
    one, _ = pack(core_of("bounded", named()).state_dict())
    assert joined([relaid(one, 0, {"matrix"}), relaid(one, 0, {"bias"})]) == one
    halves = joined([relaid(one, place, {"matrix", "bias"}) for place in range(2)])
    assert halves["rule"]["weights"].keys() == {
        f"{p}/{n}" for p in "01" for n in ("matrix", "bias")
    }
    paths = paths_of(relaid(halves, 1, {"bias"}))
    assert "rule|weights|1/bias" in paths and all("1/bias" in path for path in paths)
    stages = joined([relaid(halves, 0, {"matrix"}), relaid(halves, 1, {"bias"})])
    assert joined([relaid(stages, 0, {"matrix"}), relaid(stages, 0, {"bias"})]) == one


def test_each_tensor_has_one_owner_and_the_load_is_even() -> None:
    sizes = {"0/embed": 1000, **{f"0/{i}": 100 for i in range(10)}, "1/head": 5}
    owner = owners(sizes, 3)
    held = [sum(sizes[n] for n in sizes if owner[n] == server) for server in range(3)]
    assert sorted(held) == [500, 505, 1000] and owner == owners(dict(reversed(sizes.items())), 3)
