"""Gradients that DDP reduces in every step, in fewer bytes: communication hooks.

    none      DDP's all-reduce                                        N b bytes of gradients
    fp16      cast to fp16, divided by W, summed in fp16              2 N
    powersgd  a matrix (n, m) travels as P (n, r) and Q (m, r)        (n + m) r b a matrix
              from step `start_step` on (Vogels et al., arXiv:1905.13727, algorithms 1 and 2)

fp16 is torch's hook (its bf16 one needs NCCL). PowerSGD is written here, since torch 2.13's
`powerSGD_hook` issues its later collectives from gloo's threads, in an order that differs between
ranks as soon as there are two buckets ("Received data size doesn't match"); keys what it remembers
by bucket, although DDP makes its buckets anew after a process's first step, so that a resumed run
would give errors to the wrong parameters; and forgets a parameter whose gradient was once zeros.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import (
    allreduce_hook,
    fp16_compress_hook,
)
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

MIN_COMPRESSION_RATIO = 2
"""A matrix travels whole unless P and Q have fewer than half its elements; torch's default."""


@dataclass(frozen=True)
class CompressionSettings:
    """How gradients are compressed."""

    compression: str = "none"
    """none, fp16 or powersgd."""
    powersgd_rank: int = 4
    """Columns of P and Q."""
    powersgd_start_step: int = 1000
    """Steps whose gradients travel whole; the noisiest, by
    the paper those of the warm-up."""


class GradientCompression:
    """What `compress_gradients` has put on a module: its bytes, and its state."""

    def __init__(self, ddp: DistributedDataParallel, settings: CompressionSettings) -> None:
        """Look at the parameters; see `compress_gradients`."""
        self._settings = settings
        self._group = ddp.process_group
        self._world_size = dist.get_world_size(self._group)
        self._parameters = {n: p for n, p in ddp.module.named_parameters() if p.requires_grad}
        self._names = {id(parameter): name for name, parameter in self._parameters.items()}
        self._steps = 0
        self._errors: dict[str, Tensor] = {}
        self._qs: dict[str, Tensor] = {}
        if settings.compression == "powersgd":
            for place, (name, parameter) in enumerate(self._parameters.items()):
                _, m, rank = self._factors(parameter)
                if rank:
                    # Drawn by the parameter's place: equal on all ranks, whatever the buckets.
                    generator = torch.Generator().manual_seed(place)
                    self._qs[name] = torch.randn(m, rank, generator=generator).to(parameter)
                    self._errors[name] = torch.zeros_like(parameter, requires_grad=False)

    def comm_bytes(self, step: int) -> float:
        """Return the bytes this rank sends to reduce the gradients of step `step` (from 0).

        2 (W-1)/W times the numbers that are summed (ring all-reduce; Patarasuk and Yuan 2009).
        """
        compression = self._settings.compression
        total = 0.0
        for parameter in self._parameters.values():
            item_bytes = 2 if compression == "fp16" else parameter.element_size()
            numel = parameter.numel()
            if compression == "powersgd" and step >= self._settings.powersgd_start_step:
                n, m, rank = self._factors(parameter)
                numel = (n + m) * rank if rank else numel
            total += numel * item_bytes
        return 2 * (self._world_size - 1) / self._world_size * total

    def state_dict(self) -> dict[str, Tensor]:
        """Return copies of what PowerSGD remembers; empty for what remembers nothing.

        `steps` (steps reduced), and of every compressed parameter `error.NAME` (shaped as it is;
        differs between ranks) and `q.NAME` ((m, r), equal on all ranks); P follows from Q. Errors
        count through their mean: where the number of ranks changes, leaving them out costs those
        of one step.
        """
        if self._settings.compression != "powersgd":
            return {}
        state = {"steps": torch.tensor(self._steps)}
        state |= {f"error.{name}": error.clone() for name, error in self._errors.items()}
        state |= {f"q.{name}": q.clone() for name, q in self._qs.items()}
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state_dict` gave on this rank; what is left out begins anew.

        Raises:
            ValueError: when a tensor belongs to no compressed parameter, or has another shape.
        """
        for key, tensor in state.items():
            kind, _, name = key.partition(".")
            if kind == "steps":
                self._steps = int(tensor)
                continue
            target = {"error": self._errors, "q": self._qs}.get(kind, {})
            if name not in target:
                raise ValueError(f"the state of PowerSGD has {key}, which it does not compress.")
            if tensor.shape != target[name].shape:
                raise ValueError(
                    f"{key} has shape {tuple(tensor.shape)}, not {tuple(target[name].shape)}: it "
                    "was saved with another layout or powersgd_rank."
                )
            target[name].copy_(tensor)

    @torch.no_grad()
    def reduce(self, state: object, bucket: dist.GradBucket) -> Future[Tensor]:
        """Reduce a bucket by PowerSGD: a communication hook of DDP. Collective over its group.

        Waits for its two all-reduces, so that ranks issue those of all buckets in one order.
        """
        compresses = self._steps >= self._settings.powersgd_start_step
        self._steps += bucket.is_last()
        if not compresses:
            return allreduce_hook(self._group, bucket)
        names = [self._names[id(parameter)] for parameter in bucket.parameters()]
        grads = dict(zip(names, bucket.gradients(), strict=True))  # views of the buffer
        own = {
            name: (grads[name] + self._errors[name]).flatten(1)
            for name in names
            if name in self._qs
        }
        whole = [grad for name, grad in grads.items() if name not in self._qs]
        means = self._means([*(matrix @ self._qs[name] for name, matrix in own.items()), *whole])
        for grad, mean in zip(whole, means[len(own) :], strict=True):
            grad.copy_(mean)
        # Householder's QR is orthonormal whatever the rank: a gradient of zeros does no harm.
        ps = [torch.linalg.qr(product).Q for product in means[: len(own)]]
        qs = self._means([matrix.T @ p for matrix, p in zip(own.values(), ps, strict=True)])
        for (name, matrix), p, q in zip(own.items(), ps, qs, strict=True):
            grads[name].copy_((p @ q.T).view_as(grads[name]))
            self._errors[name].copy_(matrix.view_as(grads[name]) - grads[name])
            self._qs[name].copy_(q)
        buffer = bucket.buffer()
        done: Future[Tensor] = Future(devices=[buffer.device] if buffer.is_cuda else None)
        done.set_result(buffer)
        return done

    def _means(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Return the means of tensors over the group, by one all-reduce."""
        if not tensors:
            return []
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        dist.all_reduce(flat, group=self._group)
        parts = flat.div_(self._world_size).split([tensor.numel() for tensor in tensors])
        return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]

    def _factors(self, parameter: Tensor) -> tuple[int, int, int]:
        """Return rows, columns and rank of P and Q; rank 0 where the gradient travels whole."""
        n = parameter.shape[0] if parameter.ndim else 1
        m = parameter.numel() // n if n else 0
        rank = min(n, m, self._settings.powersgd_rank)
        pays = (n + m) * rank * MIN_COMPRESSION_RATIO < n * m
        return n, m, rank if pays else 0


def compress_gradients(
    ddp: DistributedDataParallel, settings: CompressionSettings
) -> GradientCompression:
    """Have `ddp` reduce its gradients as `settings` say. Once, before the first backward.

    Gradients accumulated under `no_sync` travel, and count as a step, once.

    Raises:
        ValueError: when the settings are none.
    """
    if settings.compression not in ("none", "fp16", "powersgd"):
        raise ValueError(
            f"compression={settings.compression}: choose one of none, fp16 or powersgd."
        )
    if settings.powersgd_rank < 1 or settings.powersgd_start_step < 0:
        raise ValueError(
            f"powersgd_rank={settings.powersgd_rank} must be 1 or more, and "
            f"powersgd_start_step={settings.powersgd_start_step} 0 or more."
        )
    compression = GradientCompression(ddp, settings)
    if settings.compression == "fp16":
        ddp.register_comm_hook(ddp.process_group, fp16_compress_hook)
    elif settings.compression == "powersgd":
        ddp.register_comm_hook(None, compression.reduce)
    return compression
