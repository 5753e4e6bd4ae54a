"""FiniteNorms: training stops at a gradient that is not finite, and no GPU waits to be asked."""

import math

import torch

ADVICE = (
    "Lower optimizer.lr, raise scheduler.warmup_steps or lower train.max_grad_norm; the same "
    "run_dir goes on from its newest checkpoint."
)


class NotFiniteError(FloatingPointError):
    """The norm of the whole gradient of a step is not finite."""

    def __init__(self, norm: float, step: int) -> None:
        """Say so.

        Args:
            norm: The norm.
            step: Steps done before.
        """
        super().__init__(f"{self.tell(norm, step)} {ADVICE}")
        self.norm, self.step = norm, step

    @staticmethod
    def tell(norm: float, step: int) -> str:
        """Return the sentence that says what happened."""
        return (
            f"the gradient norm of step {step + 1} is {norm}: nothing of it has reached a "
            "checkpoint."
        )


def require_finite(norm: float, step: int) -> None:
    """Stop where the norm of the whole gradient says so, equally on all ranks.

    Args:
        norm: The norm.
        step: Steps done.

    Raises:
        NotFiniteError: says what may help.
    """
    if not math.isfinite(norm):
        raise NotFiniteError(norm, step)


class FiniteNorms:
    """Looks at the norm of every step before anything of it is kept.

    On a GPU reading a number waits for all that was asked of it before, and it then idles until the
    next kernels come (measured: 5 % of a step of 124 M parameters). So a norm is copied where it
    was computed and read a step later, when the copy has long arrived, or when `settle` is called.
    """

    def __init__(self) -> None:
        self._late: tuple[torch.Tensor, torch.cuda.Event, int] | None = None
        """The norm of a step as it arrives, when it has, and the steps done before."""

    def add(self, norm: torch.Tensor, step: int) -> None:
        """Look at `norm` (0-D), on a GPU at the one before.

        Raises:
            NotFiniteError: when it is not finite.
        """
        if norm.device.type != "cuda":
            require_finite(float(norm), step)
            return
        host = torch.empty((), dtype=norm.dtype, pin_memory=True)
        host.copy_(norm.detach(), non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record()
        self.settle()
        self._late = (host, arrived, step)

    def settle(self) -> None:
        """Look at what has not been looked at: to be called before weights are used or kept.

        Raises:
            NotFiniteError: when it is not finite.
        """
        if self._late is None:
            return
        host, arrived, step = self._late
        self._late = None
        arrived.synchronize()
        require_finite(float(host), step)
