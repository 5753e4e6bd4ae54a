"""The loop. It knows *when* things happen; the step, the sync mode and the others know how."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch
from torch.distributed import Store

from llmtrain.checkpoint.manager import CheckpointManager
from llmtrain.checkpoint.manifest import Manifest
from llmtrain.config.plan import Plan
from llmtrain.config.schema import RunConfig
from llmtrain.data.loader import Batch, Loader
from llmtrain.distributed.collectives import any_rank
from llmtrain.distributed.env import RankInfo
from llmtrain.distributed.mesh import Mesh
from llmtrain.optim.clip import clip_grads
from llmtrain.optim.scheduler import Schedule, apply_lr
from llmtrain.parallel.apply import ParallelModel
from llmtrain.sync.interface import SavedSync, SyncStrategy
from llmtrain.train.audit import AuditLog
from llmtrain.train.bad_steps import BadSteps
from llmtrain.train.evaluate import Evaluation, evaluate
from llmtrain.train.ledger import Ledger, Settled
from llmtrain.train.metrics import MetricsWriter
from llmtrain.train.peak import Peak, peak_memory_bytes
from llmtrain.train.progress import TrainProgress
from llmtrain.train.saver import Saver
from llmtrain.train.state import TrainState
from llmtrain.train.step import StepResult, TrainStep
from llmtrain.train.stop import StopRequest
from llmtrain.train.vote import StopVote
from llmtrain.train.whereabouts import STEP, Whereabouts

log = logging.getLogger(__name__)


S = TypeVar("S", bound=SavedSync)


@dataclass(kw_only=True)
class Parts(Generic[S]):
    """What `train.build` puts together and the loop uses."""

    run: RunConfig
    plan: Plan
    info: RankInfo
    mesh: Mesh
    model: ParallelModel
    step: TrainStep
    sync: S
    optimizers: Sequence[torch.optim.Optimizer]
    schedule: Schedule
    loader: Loader
    validation: Callable[[], Iterable[Batch]]
    checkpoints: CheckpointManager
    manifest: Callable[[TrainState, float | None, dict[str, Any]], Manifest]
    audit: AuditLog
    state: TrainState = field(default_factory=TrainState)
    writers: Sequence[MetricsWriter] = ()
    """Rank 0's; the others have none."""
    progress: TrainProgress = field(default_factory=TrainProgress.silent)
    where: Whereabouts = field(default_factory=Whereabouts)
    """Told where the loop is, for a watchdog."""
    traced: Callable[[int], AbstractContextManager[None]] = lambda step: nullcontext()
    """What a step is done in: given its number, a `Tracer`'s context where steps are traced."""
    val_loss: float | None = None
    """Of the weights that training goes on from, where they were evaluated."""
    peak: Peak = field(default_factory=Peak)
    """Of one device."""


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
    steps: int = 0
    data_s: float = 0.0
    sync_s: float = 0.0
    comm_bytes: float = 0.0


class Trainer:
    """Trains from `parts.state.step` to `plan.steps`, or until asked to stop."""

    def __init__(self, parts: Parts[SyncStrategy], stop: StopRequest, store: Store) -> None:
        """Set up the loop.

        Args:
            parts: What it uses.
            stop: Says when this process is asked to stop.
            store: The rendezvous store, for replicas that train apart.
        """
        self._p = parts
        self._stop = stop
        mesh = parts.mesh
        self._ledger, self._bad, self._saver = Ledger(mesh), BadSteps(parts), Saver(parts)
        self._vote = StopVote(
            store, replica=mesh.rank("dp_replicate"), replicas=mesh.size("dp_replicate"),
            speaks=all(mesh.rank(axis) == 0 for axis in ("pp", "dp_shard", "cp", "tp")),
        )  # fmt: skip
        self._state = parts.state
        self._parameters = list(parts.model.module.parameters())
        # A pipeline's stages have different weights: the norm is summed over them.
        self._norm_axes = [parts.mesh.group("pp")] if parts.plan.pp > 1 else []
        self._told_tokens = 0
        """`state.tokens` at the last logged line, or at the start."""
        self._train_loss: float | None = None
        self._val_loss = parts.val_loss

    def run(self) -> TrainResult:
        """Train. Collective over the world."""
        p, state, steps = self._p, self._state, self._p.plan.total_steps
        status = "completed"
        self._told_tokens = state.tokens
        p.loader.start(state.samples)
        try:
            stopped = False
            if self._evaluation_is_due():
                if self._evaluate_and_tell():
                    self._save()
                stopped = self._somebody_is_asked()
            interval = Interval(time.perf_counter())
            while state.step < steps and not stopped and not self._out_of_patience():
                p.where.enter(STEP, state.step + 1)
                with p.traced(state.step + 1):
                    result, norm = self.one_step(interval)
                if (restored := self._bad.go_back()) is not None:
                    interval = self._begin_again(restored)
                    continue
                meets = self._all_meet(state.step)
                # At a meeting of replicas that are apart, the vote waits until all is done that
                # needs everyone: who has not been asked would miss a replica that waits for votes.
                votes_late = meets and not p.sync.together(state.step - 1)
                stopped = not votes_late and self._stops(result)
                if stopped or meets:
                    self._bad.settle()
                if stopped or self._is_logged(state.step) or self._bad.mark:
                    interval = self._log(result, norm, interval)
                if stopped or meets:
                    self._settle()
                saved_s = time.perf_counter()
                saves = self._save_is_due(state.step)
                if self._evaluation_is_due() and not stopped:
                    saves |= self._evaluate_and_tell()
                    stopped = self._somebody_is_asked()
                if saves and not stopped:
                    self._save()
                    stopped = self._somebody_is_asked()
                if votes_late and not stopped:
                    stopped = self._stops(result)
                self._saver.look()
                # Evaluating and saving is not training: it does not count as step time.
                interval.started += time.perf_counter() - saved_s
            if stopped:
                status = self._stop.status
            elif state.step < steps:
                p.progress.say(f"stopped early: no better in {state.evals_without_best} evals")
            self._save(last=True)
        except FloatingPointError:
            self._saver.wait()  # raised by all who compute together: what is in flight is saved
            raise
        finally:
            p.where.enter("end", state.step)
            p.loader.close()
            p.progress.close()
        return TrainResult(status, self._train_loss, self._val_loss)

    def one_step(self, interval: Interval) -> tuple[StepResult, torch.Tensor]:
        """Do one optimizer step; add what it took to `interval`."""
        p, state = self._p, self._state
        together = p.sync.together(state.step)
        t0 = time.perf_counter()
        batches = p.loader.next()
        t1 = time.perf_counter()
        apply_lr(p.optimizers, p.run.optimizer.lr, p.schedule(state.step) * state.bad.lr_ratio)
        p.sync.before_step(state.step)
        t2 = time.perf_counter()
        stop = self._stop.asked or (not together and self._vote.heard())
        result = p.step(batches, team=p.mesh.team(together=together), stop=stop)
        t3 = time.perf_counter()
        p.sync.reduce_grads(state.step)
        t4 = time.perf_counter()
        norm = clip_grads(
            self._parameters, p.run.train.max_grad_norm, extra_axes=self._norm_axes,
            copies=p.model.copies,
        )  # fmt: skip
        if self._bad.passes(batches, result, norm):
            for optimizer in p.optimizers:
                optimizer.step()
        t5 = time.perf_counter()
        all_meet = self._all_meet(state.step + 1)
        if not together and (all_meet or p.sync.exchanges(state.step + 1)):
            self._vote.enter(state.step + 1, all_meet=all_meet)
        report = p.sync.after_step(state.step)
        t6 = time.perf_counter()
        for optimizer in p.optimizers:
            optimizer.zero_grad(set_to_none=True)
        state.step += 1
        state.samples += p.plan.global_batch_size
        self._ledger.add(result, together=together)
        interval.steps += 1
        interval.comm_bytes += report.comm_bytes
        interval.data_s += t1 - t0
        interval.sync_s += (t2 - t1) + (t4 - t3) + (t6 - t5)
        p.progress.step(state.step)
        return result, norm

    def _begin_again(self, restored: Manifest) -> Interval:
        """Forget what was measured past the checkpoint that the run has gone back to."""
        self._ledger = Ledger(self._p.mesh)
        self._told_tokens, self._val_loss = self._state.tokens, restored.val_loss
        if self._evaluation_is_due() and self._evaluate_and_tell():
            self._save()
        return Interval(time.perf_counter())

    def _stops(self, result: StepResult) -> bool:
        """Return whether to stop now: at once in a step of all, else where replicas agree to."""
        if not result.stop:
            return False
        self._stop.hear()
        if self._p.sync.together(self._state.step - 1):
            return True
        step = self._state.step
        ahead = (s for s in range(step + 1, self._p.plan.total_steps + 1) if self._is_exchange(s))
        exchange = next(ahead, None)
        return exchange is not None and self._vote.stops(step, exchange)

    def _somebody_is_asked(self) -> bool:
        """Return whether any rank has been asked to stop. Collective over the world."""
        asked = any_rank(self._stop.asked)
        if asked:
            self._stop.hear()
        return asked

    def _is_exchange(self, step: int) -> bool:
        return self._all_meet(step) or self._p.sync.exchanges(step)

    def _all_meet(self, step: int) -> bool:
        """Whether all replicas wait for each other when `step` steps are done."""
        is_last = step == self._p.plan.total_steps
        evaluates = self._is_evaluated(step) or self._save_is_due(step)
        return is_last or evaluates or self._p.sync.meets(step)

    def _save_is_due(self, step: int) -> bool:
        every = self._p.run.checkpoint.every_steps
        return every is not None and step % every == 0

    def _is_logged(self, step: int) -> bool:
        return step == self._p.plan.total_steps or step % self._p.run.train.log_every_steps == 0

    def _log(self, result: StepResult, norm: torch.Tensor, interval: Interval) -> Interval:
        """Have a line of metrics written when replicas meet; return the next interval."""
        p, step = self._p, self._state.step
        now = time.perf_counter()
        line = {
            "step": step,
            "lr": p.optimizers[0].param_groups[0]["lr"],
            "elapsed_s": now - interval.started,
            "step_time_s": (now - interval.started) / interval.steps,
            "data_time_s": interval.data_s / interval.steps,
            "sync_time_s": interval.sync_s / interval.steps,
            "comm_bytes": interval.comm_bytes / interval.steps,
            "memory_bytes": peak_memory_bytes(p.info.device),
            "time": time.time(),
            **self._bad.mark,
        }
        self._ledger.log(line, result, norm, together=p.sync.together(step - 1))
        return Interval(now)

    def _settle(self) -> None:
        """Write the lines that waited for this meeting. Collective over `token_group`."""
        settled, rest = self._ledger.settle()
        for entry in settled:
            self._state.tokens += entry.tokens
            self._tell(entry)
        self._state.tokens += rest

    def _tell(self, entry: Settled) -> None:
        """Write a logged step's line of metrics, and show it."""
        p = self._p
        times = dict(entry.line)
        # Not those of `entry`: steps between lines may have been settled before it.
        tokens_per_s = (self._state.tokens - self._told_tokens) / times.pop("elapsed_s")
        self._told_tokens = self._state.tokens
        device_tokens_per_s = tokens_per_s / p.plan.world_size
        # Of whole rows: what is not counted in the loss is computed all the same.
        rows_tokens_per_s = p.plan.tokens_per_step / times["step_time_s"] / p.plan.world_size
        flops = rows_tokens_per_s * (p.plan.flops_per_token or 0.0)
        line = {
            "step": times.pop("step"),
            "loss": entry.loss,
            "grad_norm": entry.grad_norm,
            "lr": times.pop("lr"),
            "tokens": self._state.tokens,
            "tokens_per_s": tokens_per_s,
            "tokens_per_s_per_device": device_tokens_per_s,
            "mfu": p.peak.utilisation(flops),
            **times,
        }
        if "bad_step" not in line:
            self._train_loss = entry.loss
        self._write(line)
        p.progress.numbers(line)

    def _out_of_patience(self) -> bool:
        patience = self._p.run.train.early_stop_evals
        return patience is not None and self._state.evals_without_best >= patience

    def _is_evaluated(self, step: int) -> bool:
        every = self._p.run.train.eval_every_steps
        return step == self._p.plan.steps or (every is not None and step % every == 0)

    def _evaluation_is_due(self) -> bool:
        """Whether these weights are to be evaluated and have not been yet."""
        step = self._state.step
        return self._is_evaluated(step) and step > self._state.evaluated_step

    def _evaluate_and_tell(self) -> bool:
        """Evaluate; return whether it is a best to be saved. Collective over the world.

        A stop that any rank is asked for leaves the evaluation: the next start does it.
        """
        p, state = self._p, self._state
        result = self._evaluate()
        if result is None:
            self._stop.hear()
            return False
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
        return is_best and p.run.checkpoint.save_best

    def _evaluate(self) -> Evaluation | None:
        p = self._p
        p.where.enter("evaluate", self._state.step)
        with p.sync.eval_context():
            result = evaluate(
                p.model.module,
                p.step.evaluate,
                self._each(p.validation()),
                group=p.mesh.token_group,
                counts_batch=p.mesh.rank("pp") == 0 and p.mesh.rank("cp") == 0,
                asked=lambda: self._stop.asked,
            )
        p.model.after_forward_only()
        return result

    def _each(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        for batch in batches:
            self._p.where.enter("evaluate", self._state.step)
            yield batch

    def _save(self, *, last: bool = False) -> None:
        """Save a checkpoint. Collective over the world."""
        self._p.where.enter("save", self._state.step)
        evaluated = self._state.evaluated_step == self._state.step
        self._saver.save(self._val_loss if evaluated else None, last=last)

    def _write(self, line: dict[str, float]) -> None:
        for writer in self._p.writers:
            writer.write(line)
