"""From a frozen configuration to a `Trainer`'s parts: the one long list of imports."""

import dataclasses
import logging
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from llmtrain import __version__
from llmtrain.checkpoint.collection import CheckpointCollection
from llmtrain.checkpoint.compatible import require_resumable
from llmtrain.checkpoint.manager import CheckpointManager
from llmtrain.checkpoint.manifest import Manifest, read_manifest
from llmtrain.checkpoint.retention import Retention
from llmtrain.config import paths
from llmtrain.config.groups.sync import SyncConfig
from llmtrain.config.meetings import advice
from llmtrain.config.plan import Plan
from llmtrain.config.schema import RunConfig
from llmtrain.data.loader import Batch, Loader, ValidationBatches
from llmtrain.data.opening import Dataset, open_dataset, open_training
from llmtrain.distributed.env import RankInfo
from llmtrain.distributed.mesh import Mesh, build_mesh
from llmtrain.errors import CheckpointError, ConfigError
from llmtrain.models.build import build_model, count_parameters, flops_per_token
from llmtrain.models.transformer import Transformer
from llmtrain.optim.optimizer import build_optimizers
from llmtrain.optim.scheduler import make_schedule
from llmtrain.parallel.apply import ParallelModel, apply_parallel
from llmtrain.parallel.precision import Precision
from llmtrain.sync.build import build_sync, reduces_gradients
from llmtrain.sync.interface import Setting, SyncStrategy
from llmtrain.sync.served import Served
from llmtrain.train.audience import build_audience
from llmtrain.train.audit import AuditLog
from llmtrain.train.progress import show_plan
from llmtrain.train.resume import load_training, mode_change
from llmtrain.train.state import TrainState
from llmtrain.train.step import SequentialStep, TrainStep
from llmtrain.train.trainer import Parts, S

log = logging.getLogger(__name__)


def build_parts(
    run: RunConfig, plan: Plan, run_dir: Path, prepared: Path, info: RankInfo, console: Console
) -> Parts[SyncStrategy]:
    """Build everything a `Trainer` needs, and restore the newest checkpoint of `run_dir`.

    Collective over the world. Arguments and errors are those of `build_replica`.
    """

    def make_sync(config: SyncConfig, setting: Setting) -> SyncStrategy:
        return _recorded(run, run_dir, build_sync(config, setting), setting)

    parts = _assemble(run, plan, run_dir, prepared, info, console, make_sync)
    if run.metrics.trace:
        _add_tracer(parts, run_dir, console)
    if info.is_main:
        _add_audience(parts, run_dir, console)
        parts.audit.resume(parts.state.bad.count)
    return parts


def build_replica(
    run: RunConfig, plan: Plan, run_dir: Path, prepared: Path, info: RankInfo, console: Console
) -> Parts[Served]:
    """Build what a replica of a run with a server needs, and restore the newest checkpoint.

    Collective over the replica, which is the world of this process.

    Args:
        run: The configuration.
        plan: The plan, not yet completed by the data.
        run_dir: The run directory.
        prepared: The prepared data.
        info: This process.
        console: Where rank 0 speaks to people.

    Raises:
        UserError: when data, model, checkpoint and plan do not fit together.
    """
    return _assemble(run, plan, run_dir, prepared, info, console, Served)


def _assemble(
    run: RunConfig,
    plan: Plan,
    run_dir: Path,
    prepared: Path,
    info: RankInfo,
    console: Console,
    make_sync: Callable[[Any, Setting], S],
) -> Parts[S]:
    train_set = open_training(prepared, run.data)
    val_set = open_dataset(prepared, "validation", truncate=run.data.truncate)
    vocab_size = resolve_vocab_size(run, train_set)
    run = dataclasses.replace(run, model=dataclasses.replace(run.model, vocab_size=vocab_size))
    shapes = build_model(run.model, vocab_size)
    plan = _complete_plan(plan, run, shapes, train_set)
    own = plan if info.replica is None else plan.one_replica()
    mesh = build_mesh(own, info.device.type)
    if info.is_main and info.restart == 0:
        plan.save(run_dir / paths.PLAN)
        _tell(console, run, plan, f"{_described(run, train_set, val_set)}, {prepared}", run_dir)
    model = apply_parallel(
        lambda: build_model(run.model, vocab_size), run, own, mesh, info.device,
        reduces_gradients=reduces_gradients(run.sync),
    )  # fmt: skip
    optimizers = build_optimizers(
        run.optimizer, model.module, no_decay=shapes.NO_DECAY, hidden=shapes.HIDDEN
    )
    setting = _setting(run, plan, mesh, model, optimizers, shapes, info)
    parts = Parts(
        run=run,
        plan=plan,
        info=info,
        mesh=mesh,
        model=model,
        step=_step(run, own, mesh, model, info),
        sync=make_sync(run.sync, setting),
        optimizers=optimizers,
        schedule=make_schedule(run.scheduler, plan.total_steps),
        loader=_loader(run, plan, mesh, train_set, info),
        validation=lambda: _validation(run, plan, mesh, val_set, info),
        checkpoints=_checkpoints(run, run_dir, console),
        manifest=partial(_manifest, run, train_set.tokenizer().hash(), prepared.name),
        audit=AuditLog(run_dir / paths.BAD_STEPS),
    )
    restore(parts, console)
    return parts


def _checkpoints(run: RunConfig, run_dir: Path, console: Console) -> CheckpointManager:
    settings = run.checkpoint
    return CheckpointManager(
        CheckpointCollection(run_dir / paths.CHECKPOINTS, warn=partial(_warn, console)),
        Retention(settings.keep_last, settings.keep_best, settings.keep_every_steps),
        settings.hash,
    )


def _described(run: RunConfig, train_set: Dataset, val_set: Dataset) -> str:
    """Return in a line what is trained on."""
    words = train_set.describe(run.model.seq_len, run.data.samples)
    cuts = val_set.describe_cuts(run.model.seq_len, run.data.samples)
    return f"{run.data.name}, {words}; {val_set.n_tokens:,} for validation{cuts}"


def _tell(console: Console, run: RunConfig, plan: Plan, data: str, run_dir: Path) -> None:
    """Tell a person what is about to be trained, and what is unwise about it."""
    show_plan(console, run, plan, data, str(run_dir))
    continued = any((run_dir / paths.CHECKPOINTS).glob("step_*"))
    if note := advice(run, plan.total_steps, plan.dp_replicate, is_continued=continued):
        _warn(console, note)


def _warn(console: Console, message: str) -> None:
    """Tell the log and the person."""
    log.warning(message)
    console.print(f"warning: {message}", highlight=False, markup=False, soft_wrap=True)


def _step(
    run: RunConfig, plan: Plan, mesh: Mesh, model: ParallelModel, info: RankInfo
) -> TrainStep:
    precision = Precision(run.train.precision)
    if plan.pp > 1:
        # Imported here: the pipeline's machinery costs a start-up that others need not pay.
        from llmtrain.train.pipeline_step import PipelineStep

        assert plan.vocab_size is not None
        return PipelineStep(
            model, run, plan, mesh=mesh, precision=precision, device=info.device,
            vocab_size=plan.vocab_size,
        )  # fmt: skip
    return SequentialStep(
        model,
        mesh=mesh,
        precision=precision,
        device=info.device,
        label_smoothing=run.train.label_smoothing,
    )


def _setting(
    run: RunConfig,
    plan: Plan,
    mesh: Mesh,
    model: ParallelModel,
    optimizers: Sequence[torch.optim.Optimizer],
    shapes: Transformer,
    info: RankInfo,
) -> Setting:
    return Setting(
        module=model.module, forward=model.forward, optimizers=optimizers, mesh=mesh,
        zero=run.strategy.zero, micro_batches=plan.gradient_accumulation_steps,
        total_steps=plan.total_steps,
        sizes={name: parameter.numel() for name, parameter in shapes.named_parameters()},
        replicas=plan.dp_replicate,
        replica=mesh.rank("dp_replicate") if info.replica is None else info.replica,
        tied=model.tied, is_first=model.places[0].is_first,
    )  # fmt: skip


def _recorded(run: RunConfig, run_dir: Path, sync: SyncStrategy, setting: Setting) -> SyncStrategy:
    if not run.metrics.record:
        return sync
    # Imported here: only `llmtrain verify` asks for it.
    from llmtrain.train.record import RecordingSync

    return RecordingSync(sync, setting.module, setting.mesh, run_dir)


def _complete_plan(plan: Plan, run: RunConfig, shapes: Transformer, dataset: Dataset) -> Plan:
    return plan.with_data(
        run,
        samples=dataset.sampler(run.model.seq_len, run.data.samples, run.train.seed).n_samples,
        vocab_size=shapes.embed.num_embeddings,
        n_parameters=count_parameters(shapes),
        flops_per_token=flops_per_token(shapes),
    )


def _manifest(
    run: RunConfig,
    tokenizer_hash: str,
    data: str,
    state: TrainState,
    val_loss: float | None,
    sync: dict[str, Any],
) -> Manifest:
    return Manifest(
        step=state.step,
        train_state=state.to_dict(),
        val_loss=val_loss,
        sync=sync,
        model=dataclasses.asdict(run.model),
        optimizer=run.optimizer.name,
        tokenizer=run.tokenizer.name,
        tokenizer_hash=tokenizer_hash,
        data=data,
        llmtrain_version=__version__,
    )


def _add_audience(parts: Parts[SyncStrategy], run_dir: Path, console: Console) -> None:
    """Give rank 0's parts those who are told how training goes."""
    audience = build_audience(
        parts.run, parts.plan, run_dir, console, parts.state, parts.info.device
    )
    parts.writers, parts.progress = audience.writers, audience.progress
    parts.peak = audience.peak


def _add_tracer(parts: Parts[SyncStrategy], run_dir: Path, console: Console) -> None:
    # Imported here: the profiler costs a start-up that others need not pay.
    from llmtrain.train.trace import Tracer

    tracer = Tracer(
        parts.run.metrics, parts.plan, parts.info, run_dir / paths.PROFILE,
        schedule=parts.run.strategy.schedule, ideal_bubble=parts.step.ideal_bubble,
        say=partial(console.print, highlight=False, markup=False, soft_wrap=True),
    )  # fmt: skip
    if parts.plan.total_steps - parts.state.step < tracer.steps_needed:
        if parts.info.is_main:
            _warn(console, "fewer steps are left than metrics.trace needs: nothing is traced")
    else:
        parts.traced = tracer.step


def resolve_vocab_size(run: RunConfig, dataset: Dataset) -> int:
    """Return the rows of the embedding: as configured, else what the tokenizer needs.

    Raises:
        ConfigError: when the configured size cannot hold the tokenizer's ids.
    """
    wanted = run.model.vocab_size
    if wanted is None:
        return dataset.vocab_size
    if wanted < dataset.vocab_size:
        raise ConfigError(
            f"model.vocab_size={wanted} is smaller than the {dataset.vocab_size} ids of "
            f"tokenizer={run.tokenizer.name}; raise it, or set model.vocab_size=null."
        )
    return wanted


def restore(parts: Parts[S], console: Console) -> None:
    """Load the newest valid checkpoint into `parts`, if there is one. Collective over the world.

    Raises:
        CheckpointError: when it is of another model, optimizer or tokenizer.
    """
    folder = parts.checkpoints.agree_on_newest()
    if folder is not None:
        restore_from(folder, parts, console)


def restore_from(folder: Path, parts: Parts[S], console: Console) -> None:
    """Load the verified checkpoint `folder` into `parts`. Collective over the world.

    Raises:
        CheckpointError: when it is of another model, optimizer or tokenizer.
    """
    own = parts.manifest(parts.state, None, parts.sync.describe())
    manifest = read_manifest(folder)
    require_resumable(
        folder, manifest, model=own.model, optimizer=own.optimizer, tokenizer=own.tokenizer
    )
    if manifest.tokenizer_hash != own.tokenizer_hash:
        raise CheckpointError(
            f"{folder} was trained with another tokenizer than this run's data has; use the same "
            "data and tokenizer, or name another run_dir."
        )
    load_training(folder, manifest, parts.model.module, parts.optimizers, parts.sync)
    parts.state = TrainState.from_dict(manifest.train_state)
    parts.val_loss = manifest.val_loss
    if parts.info.is_main:
        console.print(f"resumed from {folder}", highlight=False, markup=False, soft_wrap=True)
        if note := mode_change(manifest.sync, own.sync):
            console.print(f"note: {note}", highlight=False, markup=False, soft_wrap=True)
        if manifest.data != own.data:
            console.print(
                f"note: the data has changed since ({manifest.data} -> {own.data}): training goes "
                "on with other samples.", highlight=False, markup=False,
            )  # fmt: skip


def _loader(run: RunConfig, plan: Plan, mesh: Mesh, dataset: Dataset, info: RankInfo) -> Loader:
    return Loader(
        dataset,
        seq_len=run.model.seq_len,
        samples=run.data.samples,
        seed=run.train.seed,
        global_batch_size=plan.global_batch_size,
        micro_batch_size=plan.micro_batch_size,
        dp_rank=(info.replica or 0) * mesh.dp_size + mesh.dp_rank,
        dp_size=plan.dp,
        device=info.device,
    )


def _validation(
    run: RunConfig, plan: Plan, mesh: Mesh, dataset: Dataset, info: RankInfo
) -> Iterable[Batch]:
    return ValidationBatches(
        dataset,
        seq_len=run.model.seq_len,
        samples=run.data.samples,
        # A pipeline takes the micro-batches of a step at once.
        batch_size=plan.micro_batch_size * (plan.gradient_accumulation_steps if plan.pp > 1 else 1),
        dp_rank=mesh.dp_rank,
        dp_size=mesh.dp_size,
        max_tokens=int(run.train.eval_tokens) if run.train.eval_tokens else None,
        device=info.device,
    )
