"""The recorder: the whole gradients and weights of every step, for `llmtrain verify` to compare.

It stands around the sync strategy, whose calls come at the moments that matter:

    before_step (first)   the weights that training starts from       records/step_00000_rank_R
    reduce_grads          the gradients as the clipping sees them   } records/step_0000K_rank_R
    after_step            the weights after the optimizer           }

What is sharded is gathered; of the ranks that hold the same tensor one writes it, after all of them
have agreed how far their copies lie apart (`spread`, 0 where replicas are equal).
"""

import contextlib
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor, nn

from llmtrain.config.paths import RECORDS
from llmtrain.distributed.mesh import Mesh
from llmtrain.sync.interface import SyncReport, SyncStrategy

GRADIENT, WEIGHT = "gradient", "weight"
KINDS = (GRADIENT, WEIGHT)
SPREAD = "spread"
"""Keys of a record are `<kind>/<parameter>` and `<kind>.spread/<parameter>`."""


def record_path(run_dir: Path, step: int, rank: int) -> Path:
    """Return the file that `rank` writes after `step` steps; 0: before the first."""
    return run_dir / RECORDS / f"step_{step:05d}_rank_{rank}.safetensors"


class RecordingSync:
    """A sync strategy that writes down what passes it, and changes nothing."""

    def __init__(self, inner: SyncStrategy, module: nn.Module, mesh: Mesh, run_dir: Path) -> None:
        """Set up the recorder. Collective over the world.

        Args:
            inner: The strategy that does the work.
            module: The model, already parallel.
            mesh: The mesh.
            run_dir: The run directory.
        """
        self._inner = inner
        self.reduces_gradients = inner.reduces_gradients
        self.replica = inner.replica
        self._module = module
        self._run_dir = run_dir
        self._rank = dist.get_rank()
        copies = mesh.device_mesh["dp_replicate", "dp_shard", "cp", "tp"]._flatten("copies")
        self._copies = copies.get_group()
        self._writes = copies.get_local_rank() == 0
        self._gradients: dict[str, Tensor] = {}
        self._started = False
        (run_dir / RECORDS).mkdir(parents=True, exist_ok=True)

    def together(self, step: int) -> bool:
        """Pass on."""
        return self._inner.together(step)

    def exchanges(self, step: int) -> bool:
        """Pass on."""
        return self._inner.exchanges(step)

    def meets(self, step: int) -> bool:
        """Pass on."""
        return self._inner.meets(step)

    def before_step(self, step: int) -> None:
        """Record the weights that training starts from. Collective over all axes but pp."""
        if not self._started:
            self._started = True
            self._write(step, self._weights())
        self._inner.before_step(step)

    def reduce_grads(self, step: int) -> None:
        """Record the gradients, unclipped. Collective over all axes but pp."""
        self._inner.reduce_grads(step)
        named = self._module.named_parameters()
        # A gradient that is missing is recorded as NaN: every rank then takes part all the same.
        grads = {
            name: torch.full_like(p, torch.nan) if p.grad is None else p.grad for name, p in named
        }
        self._gradients = self._whole(GRADIENT, grads)
        # Written before the weights are there: a norm that is not finite ends the run in between.
        self._write(step + 1, self._gradients)

    def after_step(self, step: int) -> SyncReport:
        """Record the weights after the optimizer. Collective over all axes but pp."""
        report = self._inner.after_step(step)
        self._write(step + 1, {**self._gradients, **self._weights()})
        return report

    def eval_context(self) -> contextlib.AbstractContextManager[object]:
        """Pass on."""
        return self._inner.eval_context()

    def describe(self) -> dict[str, Any]:
        """Pass on."""
        return self._inner.describe()

    def blank(self, saved: dict[str, Any]) -> dict[str, torch.Tensor]:
        """Pass on."""
        return self._inner.blank(saved)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Pass on."""
        return self._inner.state_dict()

    def load_state_dict(self, state: dict[str, torch.Tensor], step: int) -> None:
        """Pass on."""
        self._inner.load_state_dict(state, step)

    def _weights(self) -> dict[str, Tensor]:
        return self._whole(WEIGHT, dict(self._module.named_parameters()))

    @torch.no_grad()
    def _whole(self, kind: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return `tensors` unsharded, and how far the copies of each lie apart, on the CPU."""
        whole = {
            name: (t.full_tensor() if hasattr(t, "full_tensor") else t).detach()
            for name, t in tensors.items()
        }
        found = {f"{kind}/{name}": t.cpu().clone().contiguous() for name, t in whole.items()}
        for name, spread in zip(whole, self._spreads(list(whole.values())), strict=True):
            found[f"{kind}.{SPREAD}/{name}"] = spread
        return found

    def _spreads(self, whole: list[Tensor]) -> list[Tensor]:
        """Return the largest difference between two ranks' copies of each, scalars on the CPU."""
        if dist.get_world_size(self._copies) == 1:
            return [torch.zeros(()) for _ in whole]
        flat = torch.cat([tensor.flatten() for tensor in whole])
        # The greatest and, by its negative, the least of all copies in one message.
        both = torch.stack([flat.nan_to_num(nan=torch.inf), -flat.nan_to_num(nan=-torch.inf)])
        dist.all_reduce(both, op=dist.ReduceOp.MAX, group=self._copies)
        apart = (both[0] + both[1]).cpu().split([tensor.numel() for tensor in whole])
        return [part.max() if part.numel() else torch.zeros(()) for part in apart]

    def _write(self, step: int, tensors: dict[str, Tensor]) -> None:
        """Write a record, whole or not at all."""
        if not self._writes:
            return
        path = record_path(self._run_dir, step, self._rank)
        staging = path.with_suffix(".tmp")
        save_file(tensors, staging)
        staging.replace(path)
