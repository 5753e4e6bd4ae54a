"""Which number formats a run computes in."""

import contextlib
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Precision:
    """bf16: weights, gradients and optimizer in fp32, matrix products in bf16."""

    name: str

    @property
    def parameter_dtype(self) -> torch.dtype:
        """The dtype of weights, gradients and optimizer state."""
        return torch.float64 if self.name == "fp64" else torch.float32

    @property
    def compute_dtype(self) -> torch.dtype:
        """The dtype of matrix products."""
        return torch.bfloat16 if self.name == "bf16" else self.parameter_dtype

    def autocast(self, device: torch.device) -> contextlib.AbstractContextManager[object]:
        """Return the context a forward runs in."""
        if self.name == "bf16":
            return torch.autocast(device.type, dtype=torch.bfloat16)
        return contextlib.nullcontext()
