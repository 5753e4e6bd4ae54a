"""A problem small enough for many workers: one tanh layer in fp64, batches by (worker, step)."""

from collections.abc import Callable

import torch
from torch.optim import SGD, Optimizer

from llmtrain.distributed.rng import derive_seed
from llmtrain.sync.server.core import ServerCore
from llmtrain.sync.server.messages import Hello, Push, Replies, Weights
from llmtrain.sync.server.rules import OptimizerRule
from llmtrain.sync.server.settings import ServerSettings
from llmtrain.sync.server.tensors import Tensors, clone
from llmtrain.sync.virtual.cluster import Cluster, Compute, Event, joins
from llmtrain.sync.virtual.durations import Durations, constant

Build = Callable[[Tensors], Optimizer]


def start() -> Tensors:
    """Return the weights that every run starts from."""
    generator = torch.Generator().manual_seed(5)
    shapes = {"matrix": (3, 2), "bias": (2,)}
    return {
        name: torch.randn(shape, dtype=torch.float64, generator=generator)
        for name, shape in shapes.items()
    }


def sgd(**options: object) -> Build:
    return lambda named: SGD(named.values(), lr=0.0, **options)  # type: ignore[arg-type]


def adamw(named: Tensors) -> Optimizer:
    return torch.optim.AdamW(named.values(), lr=0.0, weight_decay=0.1)


def gradient(worker: int, step: int, local_steps: int, weights: Tensors) -> Tensors:
    """Return the gradient of the worker's batch of this step."""
    assert local_steps == 1
    generator = torch.Generator().manual_seed(derive_seed("toy", worker, step))
    x = torch.randn(4, 3, dtype=torch.float64, generator=generator)
    y = torch.randn(4, 2, dtype=torch.float64, generator=generator)
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in weights.items()}
    loss = (torch.tanh(x @ leaves["matrix"] + leaves["bias"]) - y).square().mean()
    loss.backward()
    return {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}


def reached(worker: int, step: int, local_steps: int, weights: Tensors) -> Tensors:
    """Return the weights after `local_steps` steps of plain SGD."""
    own = clone(weights)
    for inner in range(step, step + local_steps):
        for name, tensor in gradient(worker, inner, 1, own).items():
            own[name].sub_(0.1 * tensor)
    return own


def delta(worker: int, step: int, local_steps: int, weights: Tensors) -> Tensors:
    """Return how far the local steps went, as a direction to descend."""
    own = reached(worker, step, local_steps, weights)
    return {name: tensor - own[name] for name, tensor in weights.items()}


def make_core(
    build: Build | None = None, lr: Callable[[int], float] | float = 0.1, **settings: object
) -> ServerCore:
    """Return a server with a torch optimizer, plain SGD unless told otherwise."""
    schedule = lr if callable(lr) else lambda tokens: lr
    rule = OptimizerRule(start(), build or sgd())
    return ServerCore(rule, ServerSettings(**settings), schedule)  # type: ignore[arg-type]


def weights_of(core: ServerCore) -> Tensors:
    tensors: Tensors = core.state_dict()["rule"]["weights"]
    return tensors


def trained(
    core: ServerCore,
    compute: Compute = gradient,
    durations: Durations | None = None,
    workers: int = 3,
) -> Tensors:
    """Return the weights after `workers` virtual workers have run until they were told to stop."""
    Cluster(core, compute, durations or constant(), schedule=joins(workers)).run()
    assert core.stopped
    return weights_of(core)


def in_order(core: ServerCore, compute: Compute, workers: int, order: list[int]) -> Tensors:
    """Return the weights after pushes in just this order."""
    pushes = [Event(float(i + 1), "push", worker) for i, worker in enumerate(order)]
    Cluster(core, compute).replay([*joins(workers), *pushes])
    return weights_of(core)


def difference(one: Tensors, other: Tensors) -> float:
    """Return the largest absolute difference; 0.0 says that every bit is equal, NaN aside."""
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def hello(core: ServerCore, worker: int, incarnation: int = 0, now: float = 0.0) -> Replies:
    return core.handle(Hello(worker=worker, incarnation=incarnation), now)


def push(
    core: ServerCore, worker: int, seq: int, base_version: int, *, now: float = 1.0,
    incarnation: int = 0, tokens: int = 1,
) -> Replies:  # fmt: skip
    """Push ones, with a number that tells this push from others."""
    payload = {name: torch.full_like(t, 1.0 + worker + seq / 8) for name, t in start().items()}
    message = Push(
        worker=worker, incarnation=incarnation, seq=seq, base_version=base_version,
        local_steps=1, tokens=tokens, payload=payload,
    )  # fmt: skip
    return core.handle(message, now)


def granted(replies: Replies) -> list[int]:
    """Return who was given weights to compute from."""
    return [worker for worker, reply in replies if isinstance(reply, Weights)]
