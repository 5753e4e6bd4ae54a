"""Replicas that train apart, in one process and written out plainly: the reference for `sync`."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from llmtrain.data.loader import Loader
from tests.support.runs import tiny_run

Weights = dict[str, torch.Tensor]


class Replica:
    """One replica as a run of one process, which sees its part of every batch."""

    def __init__(self, folder: Path, number: int, replicas: int, overrides: tuple[str, ...]):
        from rich.console import Console

        from llmtrain.config import paths, store
        from llmtrain.config.plan import load_plan
        from llmtrain.data.prepare import prepare
        from llmtrain.distributed.env import rank_info
        from llmtrain.train.build import build_parts

        run_dir = tiny_run(folder / f"replica{number}", *overrides)
        run = store.load_run_config(run_dir / paths.CONFIG)
        with Console(stderr=True, quiet=True) as console:
            prepared = prepare(run.data, run.tokenizer, console=console)
            self.parts = build_parts(
                run, load_plan(run_dir), run_dir, prepared, rank_info("cpu"), console
            )
        whole, plan = self.parts.loader, self.parts.plan
        self.loader = Loader(
            whole.dataset, seq_len=run.model.seq_len, samples=run.data.samples,
            seed=run.train.seed, global_batch_size=plan.global_batch_size,
            micro_batch_size=plan.global_batch_size // replicas, dp_rank=number, dp_size=replicas,
        )  # fmt: skip
        self.loader.start(0)
        self.weights: Weights = dict(self.parts.model.module.named_parameters())

    def gradients(self, step: int) -> None:
        """Leave the gradient of the mean loss over this replica's batch."""
        from llmtrain.optim.scheduler import apply_lr

        parts = self.parts
        apply_lr(parts.optimizers, parts.run.optimizer.lr, parts.schedule(step))
        for optimizer in parts.optimizers:
            optimizer.zero_grad()
        parts.step(self.loader.next(), team=parts.mesh.everyone, stop=False)

    def update(self) -> None:
        """Do an optimizer step, the gradient clipped."""
        from llmtrain.optim.clip import clip_grads

        clip_grads(list(self.weights.values()), self.parts.run.train.max_grad_norm)
        for optimizer in self.parts.optimizers:
            optimizer.step()


def train_apart(
    folder: Path,
    overrides: tuple[str, ...],
    *,
    replicas: int,
    steps: int,
    warmup: int,
    after_step: Callable[[int, list[Weights]], None],
    begin: Callable[[Weights], None] = lambda weights: None,
    before_update: Callable[[list[Weights]], None] = lambda team: None,
) -> Weights:
    """Train `replicas` side by side in this process; return the first one's weights.

    Args:
        folder: For their run directories.
        overrides: Of each run, but for strategy and sync.
        replicas: How many.
        steps: Steps of each.
        warmup: Steps in which they average their gradients.
        after_step: What they do when that many steps are done, given the weights of each.
        begin: Given the weights when `warmup` is over.
        before_update: What they do between the gradients of a step apart and the optimizer.
    """
    import torch.distributed as dist

    if not dist.is_initialized():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        words = (*overrides, f"train.steps={steps}")
        team = [Replica(folder, number, replicas, words) for number in range(replicas)]
        for step in range(steps):
            if step == warmup:
                begin(team[0].weights)
            for replica in team:
                replica.gradients(step)
            if step < warmup:
                for parameters in zip(*(r.weights.values() for r in team), strict=True):
                    mean = sum(p.grad for p in parameters) / replicas
                    for p in parameters:
                        p.grad.copy_(mean)
            else:
                with torch.no_grad():
                    before_update([r.weights for r in team])
            for replica in team:
                replica.update()
            if step + 1 > warmup:
                with torch.no_grad():
                    after_step(step + 1, [r.weights for r in team])
        for replica in team:
            replica.loader.close()
        return {name: value.detach().clone() for name, value in team[0].weights.items()}
    finally:
        dist.destroy_process_group()


def average(every: int, warmup: int, total: int) -> Callable[[int, list[Weights]], None]:
    """Return what local SGD does after a step."""

    def after_step(step: int, team: list[Weights]) -> None:
        if (step - warmup) % every == 0 or step == total:
            for name in team[0]:
                mean = sum(weights[name] for weights in team) / len(team)
                for weights in team:
                    weights[name].copy_(mean)

    return after_step


@dataclasses.dataclass
class Streaming:
    """What (Streaming) DiLoCo does after a step, as its papers write it."""

    every: int
    warmup: int
    total: int
    lr: float
    momentum: float
    fragments: list[list[str]]
    overlap: int = 0
    alpha: float = 0.0
    anchor: Weights = dataclasses.field(default_factory=dict)
    velocity: Weights = dataclasses.field(default_factory=dict)
    under_way: list[Any] = dataclasses.field(default_factory=list)

    def start(self, weights: Weights) -> None:
        """Set the anchors."""
        self.anchor = {name: value.detach().clone() for name, value in weights.items()}
        self.velocity = {name: torch.zeros_like(value) for name, value in self.anchor.items()}
        self.under_way = [None] * len(self.fragments)

    def __call__(self, step: int, team: list[Weights]) -> None:
        """Exchange what is due."""
        count = len(self.fragments)
        for p in range(count):
            if self.under_way[p] is not None and self.under_way[p][0] == step:
                self._arrive(p, team, self.alpha)
        for p, names in enumerate(self.fragments):
            at = (p + 1) * self.every // count
            is_whole = (step - self.warmup - at) % self.every == 0
            if is_whole or step == self.total:
                delta = {
                    n: sum(self.anchor[n] - w[n] for w in team) / len(team) for n in names
                }  # fmt: skip
                due = min(step + self.overlap, self.total)
                self.under_way[p] = (due, delta)
                if due == step:
                    alpha = 0.0 if step == self.total else self.alpha
                    self._arrive(p, team, alpha, is_whole)

    def _arrive(self, p: int, team: list[Weights], alpha: float, is_whole: bool = True) -> None:
        _, delta = self.under_way[p]
        self.under_way[p] = None
        for name, mean in delta.items():
            if not is_whole:  # the run's end cuts it short: all go to their mean
                self.anchor[name] = self.anchor[name] - mean
                for weights in team:
                    weights[name].copy_(self.anchor[name])
                continue
            # v <- mu v + delta; anchor <- anchor - lr (delta + mu v), each rounded once.
            self.velocity[name] = self.momentum * self.velocity[name] + mean
            ahead = mean.add(self.velocity[name], alpha=self.momentum)
            self.anchor[name] = self.anchor[name].sub(ahead, alpha=self.lr)
            for weights in team:
                mixed = alpha * weights[name] + (1 - alpha) * self.anchor[name]
                weights[name].copy_(self.anchor[name] if alpha == 0.0 else mixed)


@dataclasses.dataclass
class PushSum:
    """Stochastic gradient push as its paper writes it; with peers that hear each other, D-PSGD."""

    every: int
    warmup: int
    total: int
    targets: Callable[[int], list[list[int]]]
    """Round, from 0 -> whom each replica sends to."""
    x: list[Weights] = dataclasses.field(default_factory=list)
    y: list[float] = dataclasses.field(default_factory=list)

    def before_update(self, team: list[Weights]) -> None:
        """Have the optimizer work on x, given the gradient at z."""
        for weights, x in zip(team, self.x, strict=False):
            for name, value in x.items():
                weights[name].copy_(value)

    def __call__(self, step: int, team: list[Weights]) -> None:
        """Push what is due; z = x / y."""
        y = self.y or [1.0] * len(team)
        x = [{name: value.detach().clone() for name, value in each.items()} for each in team]
        if step == self.total:
            mean = {name: sum(each[name] for each in x) / len(x) for name in x[0]}
            x, y = [mean] * len(x), [1.0] * len(x)
        elif (step - self.warmup) % self.every == 0:
            x, y = self._pushed(x, y, self.targets((step - self.warmup) // self.every - 1))
        self.x, self.y = x, y
        for weights, own, size in zip(team, x, y, strict=True):
            for name, value in own.items():
                weights[name].copy_(value / size)

    def _pushed(
        self, x: list[Weights], y: list[float], targets: list[list[int]]
    ) -> tuple[list[Weights], list[float]]:
        new_x = [{name: torch.zeros_like(value) for name, value in each.items()} for each in x]
        new_y = [0.0] * len(y)
        for i, peers in enumerate(targets):
            share = 1.0 / (len(peers) + 1)
            for j in (i, *peers):
                new_y[j] += share * y[i]
                for name, value in x[i].items():
                    new_x[j][name] += share * value
        return new_x, new_y
