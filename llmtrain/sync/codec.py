"""How numbers travel between replicas: as they are, or rounded to fewer bits.

    codec      bytes an element           error of a finite element x
    fp32       its own dtype's            none
    bf16 fp16  2                          2^-8 |x|, 2^-11 |x| (fp16: 2^-25 below 2^-14)
    int8       1 + 4/block_size           max|block| / 254
    int4       1/2 + 4/block_size         max|block| / 14

int8 and int4 are symmetric and blockwise: a block of `block_size` elements shares a scale, its
largest magnitude over 127 or 7, and every element is the nearest multiple of it (Dettmers et al.,
arXiv:2110.02861, section 2.1, linear rather than dynamic). The scale is fp32: over 256 elements it
costs 1.6 % of int8 and 3.1 % of int4, and fp16 would save half of that at the price of blocks below
6e-8 (gradients late in training) turning to zero and a scale that is itself rounded.

What is not finite stays visible: a NaN or an infinity makes the scale of its block NaN, so that the
whole block arrives as NaN; bf16 and fp16 carry both as they are, and fp16 turns what is beyond
65504 into an infinity.
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

SCALE_BYTES = 4
"""fp32."""


class Codec(Protocol):
    """A way to write flat floating-point tensors into bytes."""

    bits: int
    """Bits an element, scales apart."""

    def encoded_bytes(self, numel: int, dtype: torch.dtype) -> int:
        """Return the bytes that `numel` elements of `dtype` take."""

    def encode(self, flat: Tensor) -> Tensor:
        """Return `flat` (numel,) as uint8 (encoded_bytes,)."""

    def decode(self, encoded: Tensor, numel: int, dtype: torch.dtype) -> Tensor:
        """Return what `encode` was given, as (numel,) of `dtype`, up to the codec's error."""


class Exact:
    """Elements in their own dtype."""

    bits = 32

    def encoded_bytes(self, numel: int, dtype: torch.dtype) -> int:
        """Return `numel` times the size of `dtype`."""
        return numel * dtype.itemsize

    def encode(self, flat: Tensor) -> Tensor:
        """Return the bytes of `flat`."""
        return flat.contiguous().view(torch.uint8)

    def decode(self, encoded: Tensor, numel: int, dtype: torch.dtype) -> Tensor:
        """Return the elements, which must have been of `dtype`."""
        return _aligned(encoded).view(dtype)


class Cast:
    """Elements rounded to a floating-point dtype of 16 bits."""

    bits = 16

    def __init__(self, dtype: torch.dtype) -> None:
        """Round to `dtype`."""
        self._dtype = dtype

    def encoded_bytes(self, numel: int, dtype: torch.dtype) -> int:
        """Return two bytes an element."""
        return numel * self._dtype.itemsize

    def encode(self, flat: Tensor) -> Tensor:
        """Return the bytes of `flat` rounded to nearest, ties to even."""
        return flat.to(self._dtype).contiguous().view(torch.uint8)

    def decode(self, encoded: Tensor, numel: int, dtype: torch.dtype) -> Tensor:
        """Return the rounded elements."""
        return _aligned(encoded).view(self._dtype).to(dtype)


class Blockwise:
    """Elements rounded to multiples of their block's scale.

    Written as all scales (fp32), then all codes; int4 packs two codes a byte, the first one low. A
    last block may be short: nothing is padded but int4's last half byte. Input beyond the range of
    fp32 counts as infinite, and may do so an ulp before it.
    """

    def __init__(self, bits: int, block_size: int) -> None:
        """Write codes of 8 or 4 bits.

        Raises:
            ValueError: when `block_size` is not a positive even number (two codes share a byte).
        """
        if block_size < 2 or block_size % 2:
            raise ValueError(f"block_size={block_size} must be a positive even number.")
        self.bits = bits
        self._levels = 2 ** (bits - 1) - 1  # symmetric: the most negative code stays unused
        self._block_size = block_size

    def encoded_bytes(self, numel: int, dtype: torch.dtype) -> int:
        """Return the bytes of the scales and the codes, whatever the dtype."""
        return SCALE_BYTES * self._n_blocks(numel) + (numel * self.bits + 7) // 8

    def encode(self, flat: Tensor) -> Tensor:
        """Return scales and codes; the error is half a scale at most."""
        blocks = self._in_blocks(flat.float())
        largest = blocks.abs().amax(dim=1)
        scales = largest / self._levels
        scales[~largest.isfinite()] = torch.nan
        # A block of zeros divides by its scale of zero, which is NaN; its codes are zeros.
        codes = (blocks / scales[:, None]).round_().nan_to_num_(nan=0.0)
        codes = codes.clamp_(-self._levels, self._levels).view(-1)[: flat.numel()].to(torch.int8)
        packed = codes.view(torch.uint8) if self.bits == 8 else _pack(codes)
        return torch.cat([scales.view(torch.uint8), packed])

    def decode(self, encoded: Tensor, numel: int, dtype: torch.dtype) -> Tensor:
        """Return codes times scales."""
        border = SCALE_BYTES * self._n_blocks(numel)
        scales, packed = _aligned(encoded[:border]).view(torch.float32), encoded[border:]
        codes = packed.view(torch.int8) if self.bits == 8 else _unpack(packed, numel)
        values = self._in_blocks(codes.float()) * scales[:, None]
        return values.view(-1)[:numel].to(dtype)

    def _n_blocks(self, numel: int) -> int:
        return -(-numel // self._block_size)

    def _in_blocks(self, flat: Tensor) -> Tensor:
        """Return `flat` as (blocks, block_size), zeros after its end."""
        n_blocks = self._n_blocks(flat.numel())
        padded = F.pad(flat, (0, n_blocks * self._block_size - flat.numel()))
        return padded.view(n_blocks, self._block_size)


def _aligned(encoded: Tensor) -> Tensor:
    """Return a copy that may be viewed as any dtype: a slice may begin at any byte."""
    return encoded.clone(memory_format=torch.contiguous_format)


def _pack(codes: Tensor) -> Tensor:
    """Return int8 codes of -7..7 as two a byte, each plus 8."""
    nibbles = (codes + 8).view(torch.uint8)
    pairs = F.pad(nibbles, (0, nibbles.numel() % 2)).view(-1, 2)
    return pairs[:, 0] | (pairs[:, 1] << 4)


def _unpack(packed: Tensor, numel: int) -> Tensor:
    """Return what `_pack` was given."""
    pairs = torch.stack([packed & 15, packed >> 4], dim=1)
    return pairs.view(-1)[:numel].view(torch.int8) - 8


def build_codec(wire_dtype: str, block_size: int) -> Codec:
    """Return the codec called `wire_dtype`.

    Args:
        wire_dtype: fp32 (each tensor's own dtype), bf16, fp16, int8 or int4.
        block_size: Elements that share a scale in int8 and int4.

    Raises:
        ValueError: when there is no such codec, or no such block.
    """
    makers: dict[str, Callable[[], Codec]] = {
        "fp32": Exact,
        "bf16": lambda: Cast(torch.bfloat16),
        "fp16": lambda: Cast(torch.float16),
        "int8": lambda: Blockwise(8, block_size),
        "int4": lambda: Blockwise(4, block_size),
    }
    if wire_dtype not in makers:
        raise ValueError(f"wire_dtype={wire_dtype}: choose one of {', '.join(makers)}.")
    return makers[wire_dtype]()
