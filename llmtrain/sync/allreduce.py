"""`sync=allreduce`: gradients are averaged over all replicas in every step.

DDP and FSDP2 reduce while the backward still runs, so the hooks here have nothing left to do but
to account for it.
"""

import contextlib
from typing import Any

import torch

from llmtrain.config.groups.sync import AllReduceConfig
from llmtrain.sync.interface import Setting, SyncReport
from llmtrain.sync.traffic import gradient_bytes


class AllReduce:
    """Synchronous training: what one process would compute."""

    reduces_gradients = True
    replica = None

    def __init__(self, config: AllReduceConfig, setting: Setting) -> None:
        """Count what a step sends."""
        sent = gradient_bytes(
            setting.module, setting.mesh, zero=setting.zero, micro_batches=setting.micro_batches,
            with_replicas=True,
        )  # fmt: skip
        self._report = SyncReport(comm_bytes=sent)

    def together(self, step: int) -> bool:
        """All replicas make every step."""
        return True

    def exchanges(self, step: int) -> bool:
        """Gradients are exchanged in every step."""
        return True

    def meets(self, step: int) -> bool:
        """All replicas wait for each other in every step."""
        return True

    def before_step(self, step: int) -> None:
        """Nothing precedes a step."""

    def reduce_grads(self, step: int) -> None:
        """The wrappers have reduced the gradients in the backward."""

    def after_step(self, step: int) -> SyncReport:
        """Return what the gradients' way cost."""
        return self._report

    def finish(self) -> None:
        """Nothing is left: replicas are equal after every step."""

    def eval_context(self) -> contextlib.AbstractContextManager[object]:
        """The weights are the ones to evaluate."""
        return contextlib.nullcontext()

    def describe(self) -> dict[str, Any]:
        """Replicas are equal, whatever their number."""
        return {"name": "allreduce"}

    def state_dict(self) -> dict[str, torch.Tensor]:
        """There is no state."""
        return {}

    def blank(self, saved: dict[str, Any]) -> dict[str, torch.Tensor]:
        """There is nothing to load."""
        return {}

    def load_state_dict(self, state: dict[str, torch.Tensor], step: int) -> None:
        """There is no state."""
