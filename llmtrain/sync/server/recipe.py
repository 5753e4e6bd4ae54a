"""From a mode of the group `sync` to the server that makes it."""

from collections.abc import Callable

import torch
from torch.optim import Optimizer

from llmtrain.config.groups.served import (
    AsyncLocalSGDConfig,
    AsyncPSConfig,
    EASGDConfig,
    QuorumDiLoCoConfig,
    ServedConfig,
    SSPConfig,
)
from llmtrain.config.groups.sync import SyncConfig
from llmtrain.sync.server.compensation import DelayCompensation
from llmtrain.sync.server.core import ServerCore
from llmtrain.sync.server.rules import DelayedNesterov, Elastic, OptimizerRule, UpdateRule
from llmtrain.sync.server.settings import ServerSettings
from llmtrain.sync.server.tensors import Tensors

BuildOptimizer = Callable[[Tensors], Optimizer]


def build_core(
    config: SyncConfig,
    weights: Tensors,
    *,
    replicas: int,
    total_tokens: int,
    step_tokens: int,
    lr: Callable[[int], float],
    optimizer: BuildOptimizer,
) -> ServerCore:
    """Return the server of the mode `config`.

    Args:
        config: The group `sync`.
        weights: Where training starts; copied.
        replicas: How many replicas there are meant to be.
        total_tokens: Tokens after which training stops.
        step_tokens: Tokens of a replica's step.
        lr: From the tokens in the weights to the learning rate of the run's optimizer.
        optimizer: Builds the run's optimizer over tensors by name, for modes in which it is the
            server that steps.
    """
    settings = core_settings(config, total_tokens=total_tokens, step_tokens=step_tokens)
    if isinstance(config, AsyncPSConfig | SSPConfig):
        rule: UpdateRule = OptimizerRule(weights, optimizer)
        return ServerCore(rule, settings, lr, _compensation(config, weights))
    outer_lr = getattr(config, "outer_lr", 1.0)
    return ServerCore(_outer_rule(config, weights, replicas), settings, lambda tokens: outer_lr)


def core_settings(config: SyncConfig, *, total_tokens: int, step_tokens: int) -> ServerSettings:
    """Return what the mode `config` does with pushes; arguments are those of `build_core`."""
    alone: dict[str, object] = {"stop_tokens": total_tokens, "step_tokens": step_tokens}
    if isinstance(config, ServedConfig):
        alone |= {"min_workers": config.min_replicas, "dead_after_s": config.dead_after_s}
    return ServerSettings(**alone, **_settings(config))  # type: ignore[arg-type]


def _settings(config: SyncConfig) -> dict[str, object]:
    """Return what the mode says of pushes."""
    local_steps = getattr(config, "local_steps", 1)
    if isinstance(config, SSPConfig):
        if config.max_staleness == 0:
            return {"apply": "per_clock"}
        return {"max_staleness": config.max_staleness}
    if isinstance(config, AsyncPSConfig):
        return {"staleness_policy": config.staleness_policy, "max_versions": config.max_versions}
    if isinstance(config, AsyncLocalSGDConfig):
        return {
            "lr_over_workers": False, "local_steps": local_steps,
            "adapt_local_steps": config.adapt_local_steps,
        }  # fmt: skip
    if isinstance(config, EASGDConfig):
        return {"lr_over_workers": False, "local_steps": local_steps}
    assert isinstance(config, QuorumDiLoCoConfig)
    return {
        "apply": "per_clock", "local_steps": local_steps, "quorum": config.quorum,
        "grace_s": config.grace_s,
    }  # fmt: skip


def _outer_rule(config: SyncConfig, weights: Tensors, replicas: int) -> UpdateRule:
    """Return what moves the weights by what replicas' own optimizers have done."""
    if isinstance(config, EASGDConfig):
        return Elastic(weights, alpha=config.beta / replicas)
    if isinstance(config, AsyncLocalSGDConfig):
        return DelayedNesterov(weights, buffer=replicas, momentum=config.outer_momentum)
    assert isinstance(config, QuorumDiLoCoConfig)
    momentum = config.outer_momentum
    return OptimizerRule(
        weights,
        lambda named: torch.optim.SGD(
            list(named.values()), lr=config.outer_lr, momentum=momentum,
            nesterov=config.outer_nesterov and momentum > 0,
        ),
    )  # fmt: skip


def _compensation(config: ServedConfig, weights: Tensors) -> DelayCompensation | None:
    if not isinstance(config, AsyncPSConfig) or config.compensation == "none":
        return None
    adaptive = config.compensation == "dc_asgd_adaptive"
    strength = config.compensation_strength
    if strength is None:
        strength = 2.0 if adaptive else 0.04
    return DelayCompensation(
        weights, strength=strength,
        mean_square_decay=config.compensation_decay if adaptive else None,
    )  # fmt: skip
