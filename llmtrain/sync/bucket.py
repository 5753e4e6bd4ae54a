"""Which tensors travel together, and which rank adds up which elements of them."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from llmtrain.sync.codec import Codec

Bucket = dict[str, Tensor]
"""Tensors of one dtype and device, by name."""


def make_buckets(tensors: Mapping[str, Tensor], bucket_bytes: int) -> list[Bucket]:
    """Group `tensors` by dtype and device into buckets of `bucket_bytes` at most.

    Every tensor is in exactly one bucket, in the order given; one larger than a bucket has its own.
    Ranks that pass equal names, shapes and dtypes in equal order get equal buckets.
    """
    buckets: list[Bucket] = []
    last: dict[tuple[torch.dtype, torch.device], tuple[Bucket, int]] = {}
    for name, tensor in tensors.items():
        kind = (tensor.dtype, tensor.device)
        bucket, held_bytes = last.get(kind, (None, 0))
        if bucket is None or (bucket and held_bytes + tensor.nbytes > bucket_bytes):
            bucket, held_bytes = {}, 0
            buckets.append(bucket)
        bucket[name] = tensor
        last[kind] = (bucket, held_bytes + tensor.nbytes)
    return buckets


@dataclass(frozen=True)
class Segment:
    """Elements of one tensor, which begin and end at borders of its quantisation blocks."""

    tensor: int
    """Place of the tensor in its bucket."""
    start: int
    stop: int

    @property
    def numel(self) -> int:
        """Return the number of elements."""
        return self.stop - self.start


def cut_into_chunks(
    numels: Sequence[int], dtype: torch.dtype, n_chunks: int, codec: Codec, block_size: int
) -> list[list[Segment]]:
    """Cut the tensors of a bucket, laid end to end, into chunks of nearly equal encoded size.

    Cuts fall between blocks only, so that a block is encoded by the same neighbours everywhere;
    chunks differ by about two blocks. No element is in none or in two of them.

    Args:
        numels: Elements of each tensor, 0 allowed.
        dtype: Their dtype.
        n_chunks: How many; a chunk may come out empty.
        codec: How they travel.
        block_size: Elements in a block.

    Returns:
        For each chunk its segments, none of them empty.
    """
    ends = list(accumulate(codec.encoded_bytes(n, dtype) for n in numels))
    block_bytes = codec.encoded_bytes(block_size, dtype)
    cuts = [(0, 0)]
    for chunk in range(1, n_chunks):
        target = (ends[-1] * chunk) // n_chunks
        tensor = min(bisect_right(ends, target), len(numels) - 1)
        before = ends[tensor - 1] if tensor else 0
        element = round((target - before) / block_bytes) * block_size
        cuts.append((tensor, min(element, numels[tensor])))
    cuts.append((len(numels), 0))
    return [_between(cuts[i], cuts[i + 1], numels) for i in range(n_chunks)]


def _between(first: tuple[int, int], last: tuple[int, int], numels: Sequence[int]) -> list[Segment]:
    """Return the segments from one (tensor, element) up to another."""
    segments = []
    for tensor in range(first[0], min(last[0] + 1, len(numels))):
        start = first[1] if tensor == first[0] else 0
        stop = last[1] if tensor == last[0] else numels[tensor]
        if start < stop:
            segments.append(Segment(tensor, start, stop))
    return segments
