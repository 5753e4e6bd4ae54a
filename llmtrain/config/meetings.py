"""Whether replicas can meet as `sync` asks, and what is unwise about it."""

from collections.abc import Mapping

from llmtrain.config.groups.gossip import GossipConfig
from llmtrain.config.groups.served import QuorumDiLoCoConfig, ServedConfig, as_served
from llmtrain.config.groups.sync import (
    AllReduceConfig,
    DiLoCoConfig,
    HierarchicalConfig,
    SyncConfig,
)
from llmtrain.config.schema import RunConfig
from llmtrain.errors import require

ELEMENTWISE = ("sgd", "momentum", "adam", "adamw", "lion")
"""Optimizers that may be given any part of a tensor."""

FEW_ROUNDS = 100
"""Outer steps under which an outer momentum that starts from nothing has lost, where measured."""


def check_meetings(run: RunConfig, axes: Mapping[str, int], steps: int | None) -> None:
    """Refuse a mode that the layout or the length of the run does not allow.

    Args:
        run: The configuration.
        axes: The size of every mesh axis.
        steps: Steps of the run, where known.

    Raises:
        ConfigError: names keys, values and a fix.
    """
    sync, replicas = run.sync, axes["dp_replicate"]
    if sync.simulate.workers is not None:
        sync = as_served(sync)
    if isinstance(sync, ServedConfig):
        _check_served(run, sync, replicas, axes["pp"])
        return
    if isinstance(sync, HierarchicalConfig):
        _check_levels(sync, replicas)
    if isinstance(sync, AllReduceConfig):
        _check_compression(run, sync, axes, steps)
        return
    others = {axis: size for axis, size in axes.items() if size > 1 and axis != "dp_replicate"}
    require(
        replicas > 1 or not others,
        f"sync={sync.name} is between replicas, and strategy={run.strategy.name} "
        f"({' x '.join(f'{axis}={size}' for axis, size in others.items())}) makes one replica of "
        "all processes; use strategy=hybrid strategy.dp_replicate=2 with them, or sync=allreduce.",
    )
    require(
        steps is None or sync.warmup_steps < steps,
        f"sync.warmup_sync_steps={sync.warmup_steps} leaves no step of train.steps={steps} in "
        f"which replicas train apart; lower it, train longer, or use sync=allreduce.",
    )
    if isinstance(sync, DiLoCoConfig):
        units = run.model.n_layers + 1
        require(
            sync.fragments <= units,
            f"sync.fragments={sync.fragments} of a model with model.n_layers="
            f"{run.model.n_layers}: a fragment has a block, or the embedding, at least; try "
            f"sync.fragments={units} or fewer.",
        )


def check_simulation(run: RunConfig, processes: int) -> None:
    """Refuse a simulation of more than one process.

    Raises:
        ConfigError: names the keys and a fix.
    """
    require(
        processes == 1,
        f"sync.simulate.workers={run.sync.simulate.workers} are virtual replicas in one process, "
        f"and strategy={run.strategy.name} starts {processes}; use strategy=single, or leave "
        "sync.simulate.workers out.",
    )


def _check_served(run: RunConfig, sync: ServedConfig, replicas: int, pp: int) -> None:
    """Refuse what a run with a server cannot do."""
    is_virtual = run.sync.simulate.workers is not None
    more = "sync.simulate.workers" if is_virtual else "strategy.dp_replicate"
    for key in ("min_replicas", "quorum"):
        wanted = getattr(sync, key, None) or 1
        require(
            wanted <= replicas,
            f"sync.{key}={wanted} of {replicas} replicas; lower it, or raise {more}.",
        )
    require(
        sync.payload != "gradient" or run.optimizer.name in ELEMENTWISE,
        f"optimizer={run.optimizer.name} looks at whole matrices, and under sync={sync.name} it is "
        f"the server that steps, on the shards that replicas push; use optimizer=adamw, or "
        "sync=async_local_sgd, where each replica steps itself.",
    )
    most = max(1, run.model.n_layers // pp)
    require(
        sync.servers <= most,
        f"sync.servers={sync.servers}: each holds a block at least of what a process of a replica "
        f"has, which is {most} of model.n_layers={run.model.n_layers}; try sync.servers={most} or "
        "fewer.",
    )
    require(
        not run.checkpoint.async_save,
        f"checkpoint.async_save=true: under sync={sync.name} replicas rest while a checkpoint is "
        "written; leave it out.",
    )
    require(
        run.checkpoint.on_error == "stop",
        f"checkpoint.on_error={run.checkpoint.on_error}: under sync={sync.name} a replica that "
        "cannot write its part ends; leave it out.",
    )
    for key in ("trace", "record"):
        require(
            not getattr(run.metrics, key),
            f"metrics.{key}=true is about steps that all processes take at once, and "
            f"{'a simulation' if is_virtual else f'sync={sync.name}'} has none; leave it out.",
        )


def _check_compression(
    run: RunConfig, sync: AllReduceConfig, axes: Mapping[str, int], steps: int | None
) -> None:
    require(
        sync.compression != "powersgd" or steps is None or sync.powersgd_start_step < steps,
        f"sync.powersgd_start_step={sync.powersgd_start_step} leaves no step of "
        f"train.steps={steps} to compress; try sync.powersgd_start_step={(steps or 10) // 10}.",
    )
    cuts = {"strategy.tp": axes["tp"], "strategy.pp": axes["pp"]}
    reasons = [f"{key}={size}" for key, size in cuts.items() if size > 1]
    reasons += [f"strategy.zero={run.strategy.zero}"] if run.strategy.zero else []
    require(
        sync.compression == "none" or not reasons,
        f"sync.compression={sync.compression} is a hook of DDP, and {' and '.join(reasons)} "
        "reduces gradients without it; use strategy=data strategy.zero=0, or "
        "sync.compression=none.",
    )


def _check_levels(sync: HierarchicalConfig, replicas: int) -> None:
    # A run that goes on with few replicas has levels of fewer, down to one.
    sizes = [
        min(level.replicas, replicas) if level.replicas > 0 else replicas for level in sync.levels
    ]
    require(
        sizes[-1] == replicas,
        f"sync.levels: the last level averages {sizes[-1]} of strategy.dp_replicate={replicas} "
        "replicas; set its replicas to -1, which is all.",
    )
    for i, (inner, outer) in enumerate(zip([1, *sizes], sizes, strict=False)):
        require(
            outer > 0 and outer % inner == 0 and (outer > inner or outer == replicas),
            f"sync.levels.{i}.replicas={outer} must be a multiple of the {inner} inside it and "
            f"divide strategy.dp_replicate={replicas}; try {inner * 2} or -1.",
        )
        require(
            replicas % outer == 0,
            f"sync.levels.{i}.replicas={outer} must divide strategy.dp_replicate={replicas}; try "
            f"{', '.join(str(n) for n in range(2, replicas + 1) if replicas % n == 0) or '-1'}.",
        )


def advice(run: RunConfig, steps: int, replicas: int, *, is_continued: bool = False) -> str | None:
    """Return what to tell a person before a run that may be set up to lose; None: nothing.

    Args:
        run: The configuration.
        steps: Of the run.
        replicas: Replicas.
        is_continued: Whether it goes on from a checkpoint, which is a start.
    """
    sync = run.sync
    if sync.name != "allreduce" and replicas == 1:
        return (
            f"sync={sync.name} with one replica: there is nobody to exchange weights with; "
            "raise strategy.dp_replicate, or use sync=allreduce."
        )
    if isinstance(sync, GossipConfig) and sync.graph == "complete" and replicas > 2:
        return (
            f"sync.graph=complete sends the weights {replicas - 1} times in a round; "
            f"sync=local_sgd sync.sync_every_steps={sync.sync_every_steps} computes the same and "
            "sends them less than twice."
        )
    if isinstance(sync, AllReduceConfig) and sync.compression != "none" and replicas == 1:
        return f"sync.compression={sync.compression} with one process: nothing travels."
    every = getattr(sync, "sync_every_steps", 1)
    if every > 1 and steps // every < 2:
        times = "once, at the end" if steps <= every else "once before the end"
        return (
            f"sync.sync_every_steps={every} of train.steps={steps}: replicas exchange {times}; try "
            f"sync.sync_every_steps={max(1, steps // 10)}, or train longer."
        )
    return _advice_on_momentum(sync, steps, replicas, is_continued=is_continued)


def _advice_on_momentum(
    sync: SyncConfig, steps: int, replicas: int, *, is_continued: bool
) -> str | None:
    """Return what speaks against an outer momentum as it is set up; None: nothing."""
    if not isinstance(sync, DiLoCoConfig | QuorumDiLoCoConfig) or not sync.outer_momentum:
        return None
    quorum = sync.quorum if isinstance(sync, QuorumDiLoCoConfig) and not sync.grace_s else None
    if quorum is not None and quorum < replicas:
        return (
            f"sync.quorum={quorum} of {replicas} replicas without a grace: what comes late acts "
            f"as momentum on top of sync.outer_momentum={sync.outer_momentum:g}; set sync.grace_s "
            "to what equal replicas differ by, or sync.outer_momentum=0.6 (docs/sync.md)."
        )
    rounds = steps // sync.sync_every_steps
    if rounds >= FEW_ROUNDS or is_continued:
        return None
    start = max(1, steps // 5)
    if isinstance(sync, DiLoCoConfig):
        if sync.warmup_sync_steps:
            return None
        way = f"such as sync.warmup_sync_steps={start}"
    else:
        way = f"by sync=allreduce in the same run_dir up to a checkpoint at step {start}"
    return (
        f"sync={sync.name} has {rounds} outer steps and no synchronous start: its momentum "
        f"(sync.outer_momentum={sync.outer_momentum:g}) needs about {FEW_ROUNDS}, or a start, "
        f"{way}. docs/sync.md has what that was worth."
    )
