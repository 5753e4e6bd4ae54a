"""What the modes are to each other: equal settings of time and order give equal weights."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.optim import SGD

from llmtrain.distributed.rng import derive_seed
from llmtrain.sync.server.core import ServerCore
from llmtrain.sync.server.messages import Push
from llmtrain.sync.server.rules import OptimizerRule
from llmtrain.sync.server.settings import ServerSettings
from llmtrain.sync.server.tensors import Tensors, clone
from llmtrain.sync.virtual.cluster import Cluster, Event, joins
from llmtrain.sync.virtual.durations import straggler, transient
from tests.unit.sync.toy import (
    Build,
    adamw,
    delta,
    difference,
    gradient,
    hello,
    in_order,
    make_core,
    push,
    sgd,
    start,
    trained,
    weights_of,
)

WORKERS, STEPS = 3, 12
UNEVEN = transient(0.4, 3.7, seed=1)
OPTIMIZERS = {"sgd": sgd(), "momentum": sgd(momentum=0.9, nesterov=True), "adamw": adamw}


def by_tokens(tokens: int) -> float:
    """A learning rate that falls, to show whose tokens it counts."""
    return 0.3 / (1 + 0.1 * tokens)


def synchronous(build: Build, workers: int, lr: Callable[[int], float]) -> Tensors:
    """Return what one process computes from all batches of each step."""
    weights = start()
    optimizer = build(weights)
    for step in range(STEPS):
        each = [gradient(worker, step, 1, weights) for worker in range(workers)]
        for name, weight in weights.items():
            weight.grad = sum((g[name] for g in each), torch.zeros_like(weight)) / workers
        optimizer.param_groups[0]["lr"] = lr(step * workers)
        optimizer.step()
    return weights


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_rounds_of_everyone_are_synchronous_training(name: str) -> None:
    core = make_core(OPTIMIZERS[name], by_tokens, apply="per_clock", min_workers=WORKERS,
                     stop_tokens=WORKERS * STEPS)  # fmt: skip
    asynchronous = trained(core, durations=UNEVEN)
    assert difference(asynchronous, synchronous(OPTIMIZERS[name], WORKERS, by_tokens)) == 0.0
    assert core.version == STEPS


def test_bound_0_push_by_push_is_synchronous_for_plain_sgd_only() -> None:
    """The gate alone makes the workers wait; momentum still sees W small steps for one."""
    for name, equal in {"sgd": True, "momentum": False}.items():
        core = make_core(OPTIMIZERS[name], 0.1, max_staleness=0, min_workers=WORKERS,
                         stop_tokens=WORKERS * STEPS)  # fmt: skip
        # In this order each clock's last push sets all free: their weights are of one version.
        order = [worker for _ in range(STEPS) for worker in (2, 0, 1)]
        apart = difference(
            in_order(core, gradient, WORKERS, order),
            synchronous(OPTIMIZERS[name], WORKERS, lambda tokens: 0.1),
        )
        assert (apart < 1e-12) is equal


@pytest.mark.parametrize("apply", ["per_push", "per_clock"])
def test_the_learning_rate_follows_the_tokens_that_went_into_the_weights(apply: str) -> None:
    asked: list[int] = []

    def lr(tokens: int) -> float:
        asked.append(tokens)
        return 0.1

    core = make_core(lr=lr, apply=apply, staleness_policy="reject", max_versions=0)
    hello(core, 0), hello(core, 1)
    push(core, 0, 1, 0, tokens=5)
    push(core, 1, 1, 0, tokens=7)  # push by push it comes too late, and its tokens are wasted
    push(core, 0, 2, 1, tokens=11)
    push(core, 1, 2, 1, tokens=13)
    assert asked == ([0, 5] if apply == "per_push" else [0, 12])
    assert core.tokens == (16 if apply == "per_push" else 36)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("apply", ["per_push", "per_clock"])
def test_one_worker_is_plain_training(name: str, apply: str) -> None:
    core = make_core(OPTIMIZERS[name], by_tokens, apply=apply, stop_tokens=STEPS)
    plain = synchronous(OPTIMIZERS[name], 1, by_tokens)
    assert difference(trained(core, workers=1), plain) == 0.0


def test_a_bound_that_is_never_met_is_no_bound() -> None:
    slow = straggler(1, 3.0)
    stop = {"stop_tokens": 40, "min_workers": WORKERS}
    free = trained(make_core(adamw, **stop), durations=slow)
    assert (
        difference(free, trained(make_core(adamw, max_staleness=10**9, **stop), durations=slow))
        == 0
    )
    assert difference(free, trained(make_core(adamw, max_staleness=1, **stop), durations=slow)) > 0


def diloco(workers: int, rounds: int, local_steps: int) -> Tensors:
    """Return synchronous DiLoCo in twenty lines less than twenty (arXiv:2311.08105)."""
    anchor = start()
    outer = SGD(anchor.values(), lr=0.7, momentum=0.9, nesterov=True)
    for number in range(rounds):
        deltas = [delta(w, number * local_steps, local_steps, anchor) for w in range(workers)]
        for name, weight in anchor.items():
            weight.grad = sum((d[name] for d in deltas), torch.zeros_like(weight)) / workers
        outer.step()
    return anchor


def test_a_quorum_of_all_without_grace_is_diloco() -> None:
    for quorum in (WORKERS, None):
        core = make_core(sgd(momentum=0.9, nesterov=True), 0.7, apply="per_clock", quorum=quorum,
                         local_steps=4, min_workers=WORKERS, stop_tokens=WORKERS * 20)  # fmt: skip
        assert difference(trained(core, delta, UNEVEN), diloco(WORKERS, 5, 4)) == 0.0


def test_a_quorum_of_one_is_asynchronous() -> None:
    common = {"local_steps": 4, "min_workers": WORKERS, "stop_tokens": 100}
    one = make_core(adamw, 0.2, apply="per_clock", quorum=1, **common)
    free = make_core(adamw, 0.2, lr_over_workers=False, **common)
    assert difference(trained(one, delta, UNEVEN), trained(free, delta, UNEVEN)) == 0.0
    counts = one.statistics()
    assert max(behind for each in counts.values() for behind in each.staleness) > 0


@pytest.mark.parametrize("rounds", [1, 6])
def test_a_round_does_not_know_who_came_first(rounds: int) -> None:
    orders = [[0, 1, 2, 3], [3, 1, 0, 2], [2, 3, 1, 0]]
    found = []
    for order in orders:
        core = make_core(sgd(momentum=0.9), apply="per_clock", min_workers=4)
        found.append(in_order(core, gradient, 4, order * rounds))
    assert difference(found[0], found[1]) == difference(found[0], found[2]) == 0.0
    # The sum itself does know: addition rounds.
    core = make_core(sgd(momentum=0.9), min_workers=4, max_staleness=0)
    other = in_order(core, gradient, 4, orders[1] * rounds)
    assert difference(found[0], other) > 0


def test_a_push_is_in_the_weights_that_answer_it() -> None:
    core = make_core(lr=1.0, max_staleness=2)
    cluster = Cluster(core, gradient)
    cluster.replay(joins(WORKERS))
    for i, worker in enumerate([0, 0, 0, 1, 2, 1, 0]):
        before = core.version
        cluster.replay([Event(float(i), "push", worker)])
        answer = cluster.workers[worker].granted
        assert answer is None or answer.version > before


def test_answers_do_not_change_after_they_were_given() -> None:
    core = make_core(sgd(momentum=0.9))
    cluster = Cluster(core, gradient)
    cluster.replay(joins(2))
    first = cluster.workers[1].granted
    assert first is not None
    before = clone(first.weights)
    cluster.replay([Event(1.0, "push", 0)])
    assert difference(first.weights, before) == 0.0
    assert difference(weights_of(core), before) > 0.0


def test_shards_that_handle_the_same_messages_stay_at_one_version() -> None:
    """Two servers with a tensor each are one server with both."""

    def shard(names: tuple[str, ...]) -> Callable[[Tensors], Tensors]:
        return lambda tensors: {name: tensors[name] for name in names}

    settings: dict[str, Any] = {"max_staleness": 1, "staleness_policy": "decay"}
    whole = make_core(adamw, **settings)
    cuts = {names: shard(names) for names in (("matrix",), ("bias",))}
    parts = {}
    for names, cut in cuts.items():
        rule = OptimizerRule(cut(start()), adamw)
        parts[names] = ServerCore(rule, ServerSettings(**settings), lambda tokens: 0.1)
    handle = whole.handle

    def everywhere(message: object, now: float) -> object:
        replies = handle(message, now)  # type: ignore[arg-type]
        for names, part in parts.items():
            mine = message
            if isinstance(message, Push):
                mine = Push(**{**vars(message), "payload": cuts[names](message.payload)})
            answered = part.handle(mine, now)  # type: ignore[arg-type]
            seen = [(w, r.version, r.ticket) for w, r in replies]  # type: ignore[union-attr]
            assert [(w, r.version, r.ticket) for w, r in answered] == seen  # type: ignore[union-attr]
        return replies

    whole.handle = everywhere  # type: ignore[method-assign, assignment]
    durations = transient(0.3, 4.0, seed=derive_seed("shards"))
    Cluster(whole, gradient, durations, schedule=joins(WORKERS)).run(pushes=40)
    together = {name: t for part in parts.values() for name, t in weights_of(part).items()}
    assert difference(weights_of(whole), together) == 0.0
