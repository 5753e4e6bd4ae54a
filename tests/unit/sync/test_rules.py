"""The update rules against torch, against each other, and against the reason they exist."""

import pytest
import torch
from torch.optim import SGD

from llmtrain.errors import ConfigError
from llmtrain.sync.server.compensation import EPSILON, DelayCompensation
from llmtrain.sync.server.core import ServerCore
from llmtrain.sync.server.rules import DelayedNesterov, Elastic, OptimizerRule, UpdateRule
from llmtrain.sync.server.settings import ServerSettings
from llmtrain.sync.server.tensors import Tensors, clone
from llmtrain.sync.virtual.cluster import Cluster, Event, joins
from llmtrain.sync.virtual.durations import constant, straggler
from tests.unit.sync.toy import (
    delta,
    difference,
    gradient,
    in_order,
    make_core,
    reached,
    sgd,
    start,
    trained,
    weights_of,
)


def nesterov(weights: Tensors, updates: list[Tensors], lr: float) -> Tensors:
    """Return `weights` after one torch step with each of `updates`."""
    own = clone(weights)
    optimizer = SGD(own.values(), lr=lr, momentum=0.9, nesterov=True)
    for update in updates:
        for name, weight in own.items():
            weight.grad = update[name]
        optimizer.step()
    return own


@pytest.mark.parametrize("spread", [0.0, 0.05, 0.25])
def test_pushes_from_one_point_are_one_nesterov_step_with_their_mean(spread: float) -> None:
    """With c the pushes between take c mu of the momentum of the round before, the last less."""
    n, rounds = 4, 3
    rule = DelayedNesterov(start(), buffer=n, momentum=0.9, spread=spread)
    means: list[Tensors] = []
    expected, velocity = start(), {name: torch.zeros_like(t) for name, t in start().items()}
    for number in range(rounds):
        pushes = [delta(worker, number, 1, start()) for worker in range(n)]
        means.append({k: sum(p[k] for p in pushes) / n for k in start()})  # type: ignore[misc]
        for one in pushes:
            rule.apply(one, lr=0.7)
        for name, before in velocity.items():
            velocity[name] = 0.9 * before + means[-1][name]
            momentum = (n - 1) * spread * before + (1 - (n - 1) * spread) * velocity[name]
            expected[name] = expected[name] - 0.7 * (means[-1][name] + 0.9 * momentum)
    assert difference(rule.weights, expected) < 1e-12
    assert (difference(rule.weights, nesterov(start(), means, 0.7)) < 1e-12) is (spread == 0)


def test_a_buffer_of_one_is_torch_nesterov() -> None:
    rule = DelayedNesterov(start(), buffer=1, momentum=0.9)
    pushes = [delta(0, step, 1, start()) for step in range(7)]
    for one in pushes:
        rule.apply(one, lr=0.7)
    assert difference(rule.weights, nesterov(start(), pushes, 0.7)) == 0.0


def test_the_spread_lies_within_a_push() -> None:
    with pytest.raises(ValueError, match=r"spread=0\.5"):
        DelayedNesterov(start(), buffer=4, momentum=0.9, spread=0.5)


@pytest.mark.parametrize("lr", [0.3, 0.6])
def test_momentum_in_every_push_diverges_and_delayed_does_not(lr: float) -> None:
    """Eight workers on a bowl: every push is eight versions old."""
    bowl = {"x": torch.linspace(1.0, 2.0, 4, dtype=torch.float64)}
    curvature = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)

    def run(rule: UpdateRule, **settings: object) -> float:
        core = ServerCore(rule, ServerSettings(**settings), lambda tokens: lr)  # type: ignore[arg-type]
        cluster = Cluster(
            core, lambda worker, step, n, weights: {"x": curvature * weights["x"]},
            constant(), schedule=joins(8),
        )  # fmt: skip
        cluster.run(pushes=1600)
        return float((curvature * weights_of(core)["x"].square()).sum())

    loss = float((curvature * bowl["x"].square()).sum())
    momentum = sgd(momentum=0.9, nesterov=True)
    naive = run(OptimizerRule(bowl, momentum), lr_over_workers=False)
    delayed = run(DelayedNesterov(bowl, buffer=8, momentum=0.9), lr_over_workers=False)
    synchronous = run(OptimizerRule(bowl, momentum), apply="per_clock", min_workers=8)
    assert not naive < 1e20
    assert delayed < 0.01 * loss
    assert synchronous < 0.01 * loss


@pytest.mark.parametrize("decay", [None, 0.95])
def test_compensation_is_the_formula(decay: float | None) -> None:
    base, now = start(), {name: t + 0.3 for name, t in start().items()}
    dc = DelayCompensation(start(), strength=2.0, mean_square_decay=decay)
    square = {name: torch.zeros_like(t) for name, t in start().items()}
    for step in range(3):
        g = gradient(0, step, 1, base)
        found = dc.apply(g, now, base)
        for name in g:
            strength: float | torch.Tensor = 2.0
            if decay is not None:
                square[name] = decay * square[name] + (1 - decay) * g[name] ** 2
                strength = 2.0 / torch.sqrt(square[name] + EPSILON)
            expected = g[name] + strength * g[name] * g[name] * 0.3
            assert torch.allclose(found[name], expected, rtol=1e-12, atol=1e-14)


def compensated(strength: float | None, workers: int, **settings: object) -> Tensors:
    """Return the weights of an asynchronous run; None has no compensation at all."""
    dc = None if strength is None else DelayCompensation(start(), strength=strength)
    rule = OptimizerRule(start(), sgd(momentum=0.5))
    core = ServerCore(rule, ServerSettings(stop_tokens=40, **settings), lambda tokens: 0.5, dc)  # type: ignore[arg-type]
    return trained(core, durations=straggler(0, 3.0), workers=workers)


def test_compensation_is_nothing_without_lambda_or_delay() -> None:
    plain, alone = compensated(None, 3), compensated(None, 1)
    assert difference(compensated(0.0, 3), plain) == 0.0
    assert difference(compensated(0.5, 1), alone) == 0.0
    assert difference(compensated(0.5, 3), plain) > 1e-6


def test_compensation_brings_a_late_gradient_nearer_to_the_one_of_now() -> None:
    """Where g g is the curvature: tanh' = 1 - tanh^2, which is tanh^2 at tanh^2 = 1/2."""
    then, now = ({"t": torch.tensor([t], dtype=torch.float64)} for t in (0.88, 0.98))
    late, fresh = then["t"].tanh(), now["t"].tanh()
    dc = DelayCompensation(now, strength=1.0)
    found = dc.apply({"t": late}, now, then)["t"]
    assert float((found - fresh).abs()) < 0.2 * float((late - fresh).abs())


def test_the_elastic_rule_keeps_the_sum_and_is_the_papers() -> None:
    alpha, centre, worker = 0.3, start(), {name: t + 1.0 for name, t in start().items()}
    rule = Elastic(centre, alpha=alpha)
    answer = rule.apply(worker, lr=123.0)
    for name, before in centre.items():
        assert torch.allclose(rule.weights[name], before + alpha * (worker[name] - before))
        assert torch.allclose(answer[name], worker[name] - alpha * (worker[name] - before))
        assert torch.allclose(rule.weights[name] + answer[name], before + worker[name])


def test_elastic_workers_stay_apart_and_the_centre_follows_all() -> None:
    rule = Elastic(start(), alpha=0.3)
    core = ServerCore(rule, ServerSettings(local_steps=2), lambda tokens: 1.0)
    cluster = Cluster(core, reached)
    cluster.replay([*joins(2), *(Event(1.0 + i, "push", i % 2) for i in range(10))])
    centre = start()
    own = [start(), start()]
    for i in range(10):
        moved = reached(i % 2, 2 * (i // 2), 2, own[i % 2])
        pulls = {name: 0.3 * (moved[name] - centre[name]) for name in centre}
        centre = {name: centre[name] + pulls[name] for name in centre}
        own[i % 2] = {name: moved[name] - pulls[name] for name in centre}
    assert difference(weights_of(core), centre) < 1e-14
    for worker in range(2):
        given = cluster.workers[worker].granted
        assert given is not None
        assert difference(given.weights, own[worker]) < 1e-14


def test_what_is_defined_push_by_push_takes_no_rounds() -> None:
    settings = ServerSettings(apply="per_clock")
    with pytest.raises(ConfigError, match="per_push"):
        ServerCore(Elastic(start(), alpha=0.1), settings, lambda tokens: 1.0)
    with pytest.raises(ConfigError, match="per_push"):
        dc = DelayCompensation(start(), strength=0.1)
        ServerCore(OptimizerRule(start(), sgd()), settings, lambda tokens: 1.0, dc)


def test_decay_divides_by_the_age_and_leaves_the_fresh_alone() -> None:
    order = [0, 1, 0, 0, 1]  # ages 0, 1, 1, 0, 2
    found = in_order(make_core(lr=2.0, staleness_policy="decay"), gradient, 2, order)
    given, weights, steps = [start(), start()], start(), [0, 0]
    for worker, age in zip(order, [0, 1, 1, 0, 2], strict=True):
        g = gradient(worker, steps[worker], 1, given[worker])
        weights = {name: t - g[name] / (1 + age) for name, t in weights.items()}
        given[worker], steps[worker] = weights, steps[worker] + 1
    assert difference(found, weights) < 1e-14
    alone = {"lr": 0.3, "stop_tokens": 8}
    plain = trained(make_core(**alone), workers=1)  # type: ignore[arg-type]
    decayed = trained(make_core(staleness_policy="decay", **alone), workers=1)  # type: ignore[arg-type]
    assert difference(plain, decayed) == 0.0
