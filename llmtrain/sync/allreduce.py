"""`sync=allreduce`: gradients are averaged over all replicas in every step.

DDP and FSDP2 reduce while the backward still runs, so the hooks here have nothing left to do but
to account for it, and to keep what a compression of DDP's messages remembers.
"""

import contextlib
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from llmtrain.config.groups.sync import AllReduceConfig
from llmtrain.sync.compression import CompressionSettings, GradientCompression, compress_gradients
from llmtrain.sync.interface import Setting, SyncReport
from llmtrain.sync.traffic import gradient_bytes


class AllReduce:
    """Synchronous training: what one process would compute."""

    reduces_gradients = True
    replica = None

    def __init__(self, config: AllReduceConfig, setting: Setting) -> None:
        """Set up the mode; puts the compression's hook on DDP."""
        self._sent = gradient_bytes(
            setting.module, setting.mesh, zero=setting.zero, micro_batches=setting.micro_batches,
            with_replicas=True,
        )  # fmt: skip
        self._kind = {"compression": config.compression, "rank": config.powersgd_rank}
        self._peer = dist.get_rank(setting.mesh.everyone.gradient_group)
        self._peers = setting.mesh.everyone.gradient_size
        self._compression: GradientCompression | None = None
        if config.compression != "none" and isinstance(setting.forward, DistributedDataParallel):
            settings = CompressionSettings(
                config.compression, config.powersgd_rank, config.powersgd_start_step
            )
            self._compression = compress_gradients(setting.forward, settings)

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
        if self._compression is not None:
            return SyncReport(comm_bytes=self._compression.comm_bytes(step))
        return SyncReport(comm_bytes=self._sent)

    def eval_context(self) -> contextlib.AbstractContextManager[object]:
        """The weights are the ones to evaluate."""
        return contextlib.nullcontext()

    def describe(self) -> dict[str, Any]:
        """Replicas are equal, whatever their number; PowerSGD's errors are each one's own."""
        state = {"kind": self._kind, "peers": self._peers} if self._compression else {}
        return {"name": "allreduce", **state}

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return what PowerSGD remembers."""
        state = {} if self._compression is None else self._compression.state_dict()
        return {self._saved_name(name): value for name, value in state.items()}

    def blank(self, saved: dict[str, Any]) -> dict[str, torch.Tensor]:
        """Return what PowerSGD remembers; errors only where they were of as many processes."""
        if saved.get("kind") != self._kind:
            return {}
        errors = saved["peers"] == self._peers
        return {n: v for n, v in self.state_dict().items() if errors or "error." not in n}

    def load_state_dict(self, state: dict[str, torch.Tensor], step: int) -> None:
        """Take back what PowerSGD remembers."""
        if self._compression is not None:
            own = {n.removeprefix(f"peer{self._peer}."): value for n, value in state.items()}
            self._compression.load_state_dict(own)

    def _saved_name(self, name: str) -> str:
        return f"peer{self._peer}.{name}" if name.startswith("error.") else name
