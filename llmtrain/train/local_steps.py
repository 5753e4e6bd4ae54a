"""LocalSteps: what a replica computes between two words with the server."""

import time
from dataclasses import dataclass

import torch

from llmtrain.distributed.collectives import all_sum
from llmtrain.optim.clip import clip_grads
from llmtrain.optim.scheduler import apply_lr
from llmtrain.sync.served import Served
from llmtrain.train.finite import FiniteNorms
from llmtrain.train.peak import peak_memory_bytes
from llmtrain.train.trainer import Parts


@dataclass(frozen=True)
class LocalResult:
    """What came of some steps."""

    loss_sum: float
    """Loss summed over the counted tokens, in nats, of the replica."""
    grad_norm: float
    """Norm of the last gradient before clipping."""
    tokens: int
    """Counted tokens."""
    data_s: float
    """Seconds in which data was waited for."""
    memory_bytes: int


class LocalSteps:
    """Steps of one replica, from the weights in the model on."""

    def __init__(self, parts: Parts[Served]) -> None:
        """Set up; gradients stay in the model where it is the server that steps."""
        self._p = parts
        self._steps_itself = parts.run.sync.payload != "gradient"  # type: ignore[attr-defined]
        self._parameters = list(parts.model.module.parameters())
        self._norm_axes = [parts.mesh.group("pp")] if parts.plan.pp > 1 else []
        self._position: int | None = None

    def __call__(self, clock: int, count: int, position: int) -> LocalResult:
        """Compute. Collective over the replica.

        Args:
            clock: The step that learning rates are of at first.
            count: How many steps.
            position: Samples of the run before the first, over all replicas.
        """
        p, team = self._p, self._p.mesh.team(together=False)
        if position != self._position:
            p.loader.start(position)
        self._position = position + count * p.plan.global_batch_size
        losses: list[torch.Tensor] = []
        norms, norm = FiniteNorms(), torch.zeros(())
        tokens, data_s = 0, 0.0
        for step in range(clock, clock + count):
            p.model.module.zero_grad(set_to_none=True)
            started = time.perf_counter()
            batches = p.loader.next()
            data_s += time.perf_counter() - started
            last = p.plan.total_steps - 1
            apply_lr(p.optimizers, p.run.optimizer.lr, p.schedule(min(step, last)))
            result = p.step(batches, team=team, stop=False)
            norm = clip_grads(
                self._parameters, p.run.train.max_grad_norm, extra_axes=self._norm_axes,
                copies=p.model.copies,
            )  # fmt: skip
            norms.add(norm, step)
            if self._steps_itself:
                for optimizer in p.optimizers:
                    optimizer.step()
            losses.append(result.loss_sum.detach().double())
            tokens += result.tokens
        norms.settle()
        whole_loss = float(all_sum(torch.stack(losses).sum().cpu(), p.mesh.token_group))
        return LocalResult(
            whole_loss, float(norm), tokens, data_s, peak_memory_bytes(p.info.device)
        )
