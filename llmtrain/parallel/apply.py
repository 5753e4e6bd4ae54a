"""THE order in which a model is built up from shapes into a parallel one.

    shapes (meta) -> for each stage of this rank:  cut out its blocks -> context -> tensor
                       -> for each block:  memory and weights -> checkpointing -> compile -> FSDP
                       -> for the rest:    memory and weights -> FSDP
                  -> the whole:  DDP, or a pipeline's schedule around the stages

A traced graph (`parallel.graph`) takes the place of the first three lines where it is asked for.
Blocks get their memory one at a time and are sharded at once, so no rank ever holds more than one
whole block.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from llmtrain.config.plan import Plan
from llmtrain.config.schema import RunConfig
from llmtrain.distributed.mesh import Mesh
from llmtrain.distributed.shards import settle_grads
from llmtrain.models.init import init_weights, seed_dropout
from llmtrain.models.transformer import SequencePart, Transformer
from llmtrain.parallel.activations import apply_checkpointing
from llmtrain.parallel.compiled import compile_block
from llmtrain.parallel.data import (
    Microbatch,
    apply_ddp,
    apply_fsdp,
    fsdp_microbatch,
    no_microbatch_context,
    reshard,
    shard_mesh,
)
from llmtrain.parallel.gradients import average_grads
from llmtrain.parallel.precision import Precision
from llmtrain.parallel.stages import (
    StagePlace,
    cut_stages,
    exchange_tied_gradient,
    join_stages,
    local_stages,
)
from llmtrain.parallel.vocab_loss import VocabPart


@dataclass(frozen=True, kw_only=True)
class ParallelModel:
    """A model spread over the mesh."""

    module: Transformer
    """What this rank holds of the model: its names, its parameters (local shards where sharded)."""
    stages: Sequence[nn.Module]
    """What of it runs, in order: this rank's stages of a pipeline, else `module` alone."""
    places: Sequence[StagePlace]
    """Where each stage stands in the pipeline."""
    forward: nn.Module
    """What to call in training without a pipeline: `module`, under DDP where there is one."""
    microbatch: Microbatch
    """The context of one micro-batch's forward and backward, without a pipeline."""
    vocab_part: VocabPart | None
    """Which columns of the logits this rank computes; None: all."""
    tied: Tensor | None
    """This rank's copy of an embedding that another rank of pp holds too, as its tied head."""
    copies: Sequence[Tensor]
    """Parameters that another rank holds too and counts in the gradient norm (a tied head)."""
    finish_grads: Callable[[], None]
    """To be called after a step's last backward; gradients are whole after it. Collective."""
    after_forward_only: Callable[[], None]
    """To be called after forwards without a backward, such as an evaluation's."""


def apply_parallel(
    build: Callable[[], Transformer],
    run: RunConfig,
    plan: Plan,
    mesh: Mesh,
    device: torch.device,
    *,
    reduces_gradients: bool,
) -> ParallelModel:
    """Give a model of shapes its weights and spread it over `mesh`. Collective over the world.

    Args:
        build: Makes the model on the meta device, each time anew.
        run: The configuration.
        plan: Its plan.
        mesh: The mesh of the plan.
        device: Where the weights go.
        reduces_gradients: Whether gradients are averaged over dp_replicate in every step, which the
            sync mode decides; sharding always stays inside a replica.
    """
    places = cut_stages(run, plan, build())
    own = [places[i] for i in local_stages(plan, run.strategy.schedule, mesh.rank("pp"))]
    team = mesh.team(together=reduces_gradients)
    shards = run.strategy.zero > 0 and team.gradient_size > 1
    fsdp = shard_mesh(mesh, with_replicas=reduces_gradients) if shards else None
    stages: Sequence[nn.Module]
    if plan.pp > 1 and run.strategy.cut == "graph":
        # Imported here: the tracer costs seconds that others need not pay.
        from llmtrain.parallel.graph import build_traced

        module, stages = build_traced(build, run, plan, [place.index for place in own], device)
    else:
        module, stages = _build_stages(build, own, run, mesh, device, fsdp)
    forward: nn.Module = module
    microbatch: Microbatch = no_microbatch_context
    averaged_over = None
    if fsdp is not None and plan.pp == 1:
        microbatch = fsdp_microbatch(module, run.strategy.zero)
    elif fsdp is None and team.gradient_size > 1:
        if plan.pp == 1 and plan.tp == 1:
            forward, microbatch = apply_ddp(module, team.gradient_group)
        else:
            averaged_over = team.gradient_group
    tied = _tied_copy(module, own, plan)

    def finish_grads() -> None:
        parameters = list(module.parameters())
        settle_grads(parameters)
        if averaged_over is not None:
            average_grads(parameters, averaged_over)
        if tied is not None:
            exchange_tied_gradient(tied, mesh.group("pp"), is_first=own[0].is_first)

    return ParallelModel(
        module=module, stages=stages, places=own, forward=forward, microbatch=microbatch,
        vocab_part=_vocab_part(plan, mesh), tied=tied,
        copies=[tied] if tied is not None and not own[0].is_first else [],
        finish_grads=finish_grads,
        after_forward_only=partial(_reshard_all, stages if fsdp is not None else ()),
    )  # fmt: skip


def _build_stages(
    build: Callable[[], Transformer],
    own: Sequence[StagePlace],
    run: RunConfig,
    mesh: Mesh,
    device: torch.device,
    fsdp: DeviceMesh | None,
) -> tuple[Transformer, list[Transformer]]:
    """Return what this rank holds of the model, and its stages, of whole blocks, with weights."""
    stages = [_stage(build(), place, run, mesh) for place in own]
    if len(own) > 1 and own[0].is_first and own[-1].is_last and stages[0].tie_embeddings:
        stages[-1].embed = stages[0].embed  # the ends of a V: one weight, not two copies
    for stage in stages:
        _materialise(stage, run, device, partial(_shard, mesh=fsdp, zero=run.strategy.zero))
    return (join_stages(build(), stages) if own[0].n_stages > 1 else stages[0]), stages


def _stage(model: Transformer, place: StagePlace, run: RunConfig, mesh: Mesh) -> Transformer:
    """Make `model` the stage at `place`, and cut it along the sequence and along features."""
    seed_dropout(model, run.train.seed)
    if place.n_stages > 1:
        model.keep([str(i) for i in place.blocks], first=place.is_first, last=place.is_last)
    _split(model, run, mesh)
    return model


def _vocab_part(plan: Plan, mesh: Mesh) -> VocabPart | None:
    if plan.tp == 1:
        return None
    assert plan.vocab_size is not None
    return VocabPart(mesh.group("tp"), plan.vocab_size)


def _split(stage: Transformer, run: RunConfig, mesh: Mesh) -> None:
    """Cut a stage of shapes along the sequence (cp) and along features (tp)."""
    cp, tp = mesh.size("cp"), mesh.size("tp")
    stage.to(Precision(run.train.precision).parameter_dtype)
    sequence = tp > 1 and run.strategy.sequence_parallel
    stage.part = SequencePart(
        mesh.rank("cp"), cp, mesh.rank("tp") if sequence else 0, tp if sequence else 1
    )
    if cp > 1:
        from llmtrain.parallel.context import apply_context_parallel

        apply_context_parallel(stage, mesh.group("cp"), run.model.n_heads // tp)
    if tp > 1:
        from llmtrain.parallel.tensor import apply_tensor_parallel

        apply_tensor_parallel(
            stage, mesh.device_mesh["tp"], n_heads=run.model.n_heads, sequence_parallel=sequence
        )
    stage.tie()


def _materialise(
    stage: Transformer,
    run: RunConfig,
    device: torch.device,
    shard: Callable[[nn.Module], None],
) -> None:
    """Give a stage of shapes memory and weights, block by block, and shard each at once."""

    def fill(module: nn.Module, prefix: str) -> None:
        if any(p.is_meta for p in module.parameters()):
            module.to_empty(device=device)
            init_weights(
                module, run.model, prefix=prefix, residual=stage.RESIDUAL, seed=run.train.seed
            )

    for name, block in stage.blocks.items():
        fill(block, f"blocks.{name}.")
        apply_checkpointing(block, run.train.activation_checkpointing)
        if run.train.compile:
            compile_block(block)
        shard(block)
    for name, part in stage.named_children():
        # A tied head gets no weights of its own: `tie` gives it the embedding's.
        if part is not stage.blocks and not (part is stage.head and stage.tie_embeddings):
            fill(part, f"{name}.")
    stage.tie()
    shard(stage)


def _shard(module: nn.Module, *, mesh: DeviceMesh | None, zero: int) -> None:
    if mesh is not None:
        apply_fsdp(module, mesh, zero)


def _reshard_all(stages: Sequence[nn.Module]) -> None:
    for stage in stages:
        reshard(stage)


def _tied_copy(module: Transformer, own: Sequence[StagePlace], plan: Plan) -> Tensor | None:
    """Return this rank's copy of an embedding that another rank of pp holds too."""
    ends = (own[0].is_first, own[-1].is_last)
    if plan.pp == 1 or not module.tie_embeddings or all(ends) or not any(ends):
        return None
    weight: Tensor = module.embed.weight
    return weight
