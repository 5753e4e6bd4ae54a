"""In which order documents are written, and where shards begin: the modes of `shard_mode`."""

import numpy as np
import numpy.typing as npt
import xxhash

from llmtrain.data.corpus import Corpus, Numbers
from llmtrain.data.dedup import Digests

MOST_BITS = 16
"""Bits of the hash that name a shard, at most: 65536 shards."""


def order_documents(corpus: Corpus, numbers: list[int], mode: str, seed: int) -> Numbers:
    """Return `numbers` in the order they are written.

    random: by content hash under `seed`, whatever the order of the files; ordered: as the source
    has them; hash: by content hash.
    """
    chosen = np.sort(np.array(numbers, dtype=np.int64))
    if mode == "ordered":
        return chosen
    digests = corpus.digests()[chosen]
    if mode == "hash":
        halves = digests.view(">u8").reshape(-1, 2)
        return chosen[np.lexsort((halves[:, 1], halves[:, 0]))]
    keys = [xxhash.xxh3_64_intdigest(digest.tobytes(), seed) for digest in digests]
    return chosen[np.argsort(np.array(keys, dtype=np.uint64), kind="stable")]


def cut_by_size(tokens: Numbers, shard_tokens: int) -> list[int]:
    """Return where shards begin, and the end: one is full at `shard_tokens` or just above.

    Args:
        tokens: Of each document, its separator counted, shape (documents,).
        shard_tokens: data.shard_tokens.
    """
    ends = np.cumsum(tokens)
    cuts = [0]
    while cuts[-1] < len(ends):
        full = (int(ends[cuts[-1] - 1]) if cuts[-1] else 0) + shard_tokens
        cuts.append(min(len(ends), int(np.searchsorted(ends, full)) + 1))
    return cuts if len(cuts) > 1 else [0, 0]


def cut_by_hash(digests: Digests, tokens: int, shard_tokens: int) -> list[int]:
    """Return where shards begin, and the end: the leading bits of the content hash name a shard.

    The number of shards is a power of two, so that a corpus that outgrows it splits every shard in
    two instead of mixing all documents anew.

    Args:
        digests: Of each document, ascending.
        tokens: Of all documents together.
        shard_tokens: data.shard_tokens.
    """
    bits = 0
    while (shard_tokens << bits) < tokens and bits < MOST_BITS:
        bits += 1
    shards = hash_shards(digests, bits)
    return [*np.searchsorted(shards, np.arange(1 << bits)).tolist(), len(digests)]


def hash_shards(digests: Digests, bits: int) -> npt.NDArray[np.int64]:
    """Return the shard of each document: the leading `bits` (at most 32) of its content hash."""
    leading = digests[:, :4].copy().view(">u4").ravel().astype(np.int64)
    return leading >> (32 - bits)
