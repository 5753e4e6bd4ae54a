"""No tensor is lost between buckets, and no element between chunks."""

import random

import pytest
import torch

from llmtrain.sync.bucket import cut_into_chunks, make_buckets
from llmtrain.sync.codec import build_codec

BLOCK = 16


def test_every_tensor_is_in_one_bucket() -> None:
    dtypes = (torch.float32, torch.float64, torch.bfloat16)
    for seed in range(200):
        draw = random.Random(seed)
        tensors = {
            str(i): torch.empty(draw.choice((0, 1, 3, 4, 7, 50)), dtype=draw.choice(dtypes))
            for i in range(draw.randrange(12))
        }
        buckets = make_buckets(tensors, bucket_bytes=64)
        assert sorted(name for bucket in buckets for name in bucket) == sorted(tensors)
        for bucket in buckets:
            assert bucket
            assert len({tensor.dtype for tensor in bucket.values()}) == 1
            assert len(bucket) == 1 or sum(t.nbytes for t in bucket.values()) <= 64
            assert all(tensor is tensors[name] for name, tensor in bucket.items())


def test_a_full_bucket_is_followed_by_another() -> None:
    """Sizes that do not tile the bucket: the third once travelled nowhere in another library."""
    tensors = {name: torch.empty(n) for name, n in (("a", 4), ("b", 4), ("c", 2))}
    assert [list(bucket) for bucket in make_buckets(tensors, 24)] == [["a"], ["b", "c"]]


@pytest.mark.parametrize("wire_dtype", ["bf16", "int8", "int4"])
def test_every_element_is_in_one_chunk(wire_dtype: str) -> None:
    codec = build_codec(wire_dtype, BLOCK)
    dtype = torch.float32
    block_bytes = codec.encoded_bytes(BLOCK, dtype)
    for seed in range(300):
        draw = random.Random(seed)
        numels = [draw.choice((0, 1, 15, 16, 17, 100, 999)) for _ in range(draw.randrange(1, 9))]
        n_chunks = draw.randrange(1, 6)
        chunks = cut_into_chunks(numels, dtype, n_chunks, codec, BLOCK)
        assert len(chunks) == n_chunks
        segments = [segment for chunk in chunks for segment in chunk]
        elements = [(s.tensor, i) for s in segments for i in range(s.start, s.stop)]
        assert elements == [(t, i) for t, numel in enumerate(numels) for i in range(numel)]
        for s in segments:
            assert s.numel > 0
            assert s.start % BLOCK == 0
            assert s.stop % BLOCK == 0 or s.stop == numels[s.tensor]
        sizes = [sum(codec.encoded_bytes(s.numel, dtype) for s in chunk) for chunk in chunks]
        # Cut anywhere, a tensor takes the bytes it takes whole; so chunks add up to the bucket.
        assert sum(sizes) == sum(codec.encoded_bytes(n, dtype) for n in numels)
        assert max(sizes) - min(sizes) <= 2 * block_bytes + 1
