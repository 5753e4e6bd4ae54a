"""The loop. It knows *when* things happen; the step, the sync mode and the others know how."""

import logging
import math
import resource
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch

from llmtrain.checkpoint.manager import CheckpointManager
from llmtrain.checkpoint.manifest import Manifest
from llmtrain.checkpoint.tensors import training_tensors
from llmtrain.config.plan import Plan
from llmtrain.config.schema import RunConfig
from llmtrain.data.loader import Batch, Loader
from llmtrain.distributed.collectives import all_sum
from llmtrain.distributed.env import RankInfo
from llmtrain.distributed.mesh import Mesh
from llmtrain.optim.clip import clip_grads
from llmtrain.optim.scheduler import Schedule, apply_lr
from llmtrain.parallel.apply import ParallelModel
from llmtrain.sync.interface import SyncReport, SyncStrategy
from llmtrain.train.evaluate import Evaluation, evaluate
from llmtrain.train.metrics import MetricsWriter
from llmtrain.train.progress import TrainProgress
from llmtrain.train.state import TrainState
from llmtrain.train.step import StepResult, TrainStep
from llmtrain.train.stop import StopRequest

log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Parts:
    """What `train.build` puts together and the loop uses."""

    run: RunConfig
    plan: Plan
    info: RankInfo
    mesh: Mesh
    model: ParallelModel
    step: TrainStep
    sync: SyncStrategy
    optimizers: Sequence[torch.optim.Optimizer]
    schedule: Schedule
    loader: Loader
    validation: Callable[[], Iterable[Batch]]
    checkpoints: CheckpointManager
    manifest: Callable[[TrainState, float | None], Manifest]
    state: TrainState = field(default_factory=TrainState)
    writers: Sequence[MetricsWriter] = ()
    """Rank 0's; the others have none."""
    progress: TrainProgress = field(default_factory=TrainProgress.silent)
    traced: Callable[[int], AbstractContextManager[None]] = lambda step: nullcontext()
    """What a step is done in: given its number, a `Tracer`'s context where steps are traced."""
    peak_flops: float = 0.0
    """Of one device, in FLOP/s; 0 where not known."""


@dataclass
class TrainResult:
    """How training ended."""

    status: str
    """completed | stopped | preempted."""
    train_loss: float | None
    val_loss: float | None


@dataclass
class Interval:
    """What has been measured since the last logged line."""

    started: float
    tokens: int = 0
    steps: int = 0
    data_s: float = 0.0
    sync_s: float = 0.0


class Trainer:
    """Trains from `parts.state.step` to `plan.steps`, or until asked to stop."""

    def __init__(self, parts: Parts, stop: StopRequest) -> None:
        self._p = parts
        self._stop = stop
        self._state = parts.state
        self._parameters = list(parts.model.module.parameters())
        # A pipeline's stages have different weights: the norm is summed over them.
        self._norm_axes = [parts.mesh.group("pp")] if parts.plan.pp > 1 else []
        self._train_loss: float | None = None
        self._val_loss: float | None = None

    def run(self) -> TrainResult:
        """Train. Collective over the world."""
        p, state, steps = self._p, self._state, self._p.plan.total_steps
        status = "completed"
        p.loader.start(state.samples)
        try:
            if self._evaluation_is_due():
                self._evaluate_and_keep_best()
            interval = Interval(time.perf_counter())
            while state.step < steps and not self._out_of_patience():
                with p.traced(state.step + 1):
                    result, norm, report = self.one_step(interval)
                last = state.step == steps or result.stop
                if last or state.step % p.run.train.log_every_steps == 0:
                    interval = self._log(result, norm, report, interval)
                if result.stop:
                    self._save()
                    status = self._stop.status
                    break
                saved_s = time.perf_counter()
                if self._evaluation_is_due():
                    self._evaluate_and_keep_best()
                every = p.run.checkpoint.every_steps
                if every is not None and state.step % every == 0:
                    self._save()
                # Evaluating and saving is not training: it does not count as step time.
                interval.started += time.perf_counter() - saved_s
            p.sync.finish()
            if status == "completed":
                if state.step < steps:
                    p.progress.say(f"stopped early: no better in {state.evals_without_best} evals")
                self._save()
        finally:
            p.loader.close()
            p.progress.close()
        return TrainResult(status, self._train_loss, self._val_loss)

    def one_step(self, interval: Interval) -> tuple[StepResult, torch.Tensor, SyncReport]:
        """Do one optimizer step; add what it took to `interval`."""
        p, state = self._p, self._state
        t0 = time.perf_counter()
        batches = p.loader.next()
        t1 = time.perf_counter()
        apply_lr(p.optimizers, p.run.optimizer.lr, p.schedule(state.step))
        p.sync.before_step(state.step)
        t2 = time.perf_counter()
        result = p.step(batches, stop=self._stop.asked)
        t3 = time.perf_counter()
        p.sync.reduce_grads(state.step)
        t4 = time.perf_counter()
        norm = clip_grads(
            self._parameters, p.run.train.max_grad_norm, extra_axes=self._norm_axes,
            copies=p.model.copies,
        )  # fmt: skip
        self._require_finite(norm)
        for optimizer in p.optimizers:
            optimizer.step()
        t5 = time.perf_counter()
        report = p.sync.after_step(state.step)
        t6 = time.perf_counter()
        for optimizer in p.optimizers:
            optimizer.zero_grad(set_to_none=True)
        state.step += 1
        state.tokens += result.tokens
        state.samples += p.plan.global_batch_size
        interval.steps += 1
        interval.tokens += result.tokens
        interval.data_s += t1 - t0
        interval.sync_s += (t2 - t1) + (t4 - t3) + (t6 - t5)
        p.progress.step(state.step)
        return result, norm, report

    def _require_finite(self, norm: torch.Tensor) -> None:
        """Stop before a gradient that is not finite reaches the weights, equally on all ranks."""
        if math.isfinite(float(norm)):
            return
        step = self._state.step
        raise FloatingPointError(
            f"the gradient norm of step {step + 1} is {float(norm)}: nothing of it has reached the "
            "weights or a checkpoint. Lower optimizer.lr, raise scheduler.warmup_steps or lower "
            "train.max_grad_norm; the same run_dir goes on from its newest checkpoint."
        )

    def _log(
        self, result: StepResult, norm: torch.Tensor, report: SyncReport, interval: Interval
    ) -> Interval:
        """Write a line of metrics; return the next interval. Collective over `token_group`."""
        p, state = self._p, self._state
        loss = float(all_sum(result.loss_sum.clone(), p.mesh.token_group)) / max(result.tokens, 1)
        now = time.perf_counter()
        elapsed = now - interval.started
        tokens_per_s = interval.tokens / elapsed
        device_tokens_per_s = tokens_per_s / p.plan.world_size
        flops = device_tokens_per_s * (p.plan.flops_per_token or 0.0)
        line = {
            "step": state.step,
            "loss": loss,
            "grad_norm": float(norm),
            "lr": p.optimizers[0].param_groups[0]["lr"],
            "tokens": state.tokens,
            "tokens_per_s": tokens_per_s,
            "tokens_per_s_per_device": device_tokens_per_s,
            "mfu": flops / p.peak_flops if p.peak_flops else 0.0,
            "step_time_s": elapsed / interval.steps,
            "data_time_s": interval.data_s / interval.steps,
            "sync_time_s": interval.sync_s / interval.steps,
            "comm_bytes": report.comm_bytes,
            "memory_bytes": _peak_memory_bytes(p.info.device),
            "time": time.time(),
        }
        self._train_loss = loss
        self._write(line)
        p.progress.numbers(line)
        return Interval(now)

    def _out_of_patience(self) -> bool:
        patience = self._p.run.train.early_stop_evals
        return patience is not None and self._state.evals_without_best >= patience

    def _evaluation_is_due(self) -> bool:
        """Whether these weights are to be evaluated and have not been yet."""
        every, step = self._p.run.train.eval_every_steps, self._state.step
        on_time = step == self._p.plan.steps or (every is not None and step % every == 0)
        return on_time and step > self._state.evaluated_step

    def _evaluate_and_keep_best(self) -> None:
        """Evaluate, and save a new best. Collective over the world."""
        p, state = self._p, self._state
        result = self._evaluate()
        self._val_loss = result.loss
        is_best = state.record_evaluation(result.loss)
        self._write(
            {
                "step": state.step, "val_loss": result.loss, "val_ppl": result.perplexity,
                "val_tokens": result.tokens, "time": time.time(),
            }
        )  # fmt: skip
        p.progress.say(
            f"step {state.step}  val_loss {result.loss:.4f}  val_ppl {result.perplexity:.2f}"
            f"{'  best' if is_best else ''}"
        )
        if is_best and p.run.checkpoint.save_best:
            self._save()

    def _evaluate(self) -> Evaluation:
        p = self._p
        with p.sync.eval_context():
            result = evaluate(
                p.model.module,
                p.step.evaluate,
                p.validation(),
                group=p.mesh.token_group,
                counts_batch=p.mesh.rank("pp") == 0 and p.mesh.rank("cp") == 0,
            )
        p.model.after_forward_only()
        return result

    def _save(self) -> None:
        """Save a checkpoint. Collective over the world."""
        p, state = self._p, self._state
        val_loss = self._val_loss if state.evaluated_step == state.step else None
        tensors = training_tensors(p.model.module, p.optimizers, p.sync.state_dict())
        folder = p.checkpoints.save(tensors, p.manifest(state, val_loss))
        log.info("checkpoint %s", folder)

    def _write(self, line: dict[str, float]) -> None:
        for writer in self._p.writers:
            writer.write(line)


def _peak_memory_bytes(device: torch.device) -> int:
    """Return the most memory this process has held: on the GPU, or resident on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
