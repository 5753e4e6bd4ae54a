"""In which order documents are written, and to which shard they go: the modes of `shard_mode`."""

import xxhash

from llmtrain.data.corpus import Corpus


def order_documents(corpus: Corpus, numbers: list[int], mode: str, seed: int) -> list[int]:
    """Return `numbers` in the order they are written.

    random: by content hash under `seed`, whatever the order of the files; ordered: as the source
    has them; hash: by content hash.
    """
    if mode == "ordered":
        return sorted(numbers)
    if mode == "hash":
        return sorted(numbers, key=lambda n: (corpus.digest(n), n))
    return sorted(numbers, key=lambda n: (xxhash.xxh3_64_intdigest(corpus.digest(n), seed), n))


def hash_shard_bits(estimated_tokens: float, shard_tokens: int) -> int:
    """Return how many leading bits of the content hash name the shard in mode `hash`.

    The number of shards is a power of two, so that a corpus that outgrows it splits every shard in
    two instead of mixing all documents anew.
    """
    bits = 0
    while (shard_tokens << bits) < estimated_tokens and bits < 16:
        bits += 1
    return bits


def hash_shard(digest: bytes, bits: int) -> int:
    """Return the shard of a document: the leading `bits` of its content hash."""
    return int.from_bytes(digest[:8], "big") >> (64 - bits)
