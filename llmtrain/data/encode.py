"""The stage `encode`: the documents of one record that were chosen, as ids."""

from collections.abc import Iterator, Sequence

import numpy as np

from llmtrain.data.corpus import Corpus, Numbers
from llmtrain.data.manifest import dtype_for
from llmtrain.data.record import Record
from llmtrain.errors import DataError
from llmtrain.tokenizer.base import TokenIds, Tokenizer

BATCH_BYTES = 1 << 20
"""Text that is given to the tokenizer at once."""


def encode_documents(corpus: Corpus, places: Numbers, tokenizer: Tokenizer) -> Record:
    """Return the documents at `places` of `corpus` as ids, a separator behind each.

    A prompt is encoded apart from its target: its ids are those of `generate prompt=...`.

    Returns:
        A record of `tokens`, shape (tokens,), and of `lengths`, shape (documents,), the separator
        counted; where there are prompts, also of `prompts`, shape (documents,), in tokens.

    Raises:
        DataError: an id is outside the vocabulary.
    """
    dtype = dtype_for(tokenizer.vocab_size)
    separator = np.array([tokenizer.separator_id], dtype=dtype)
    pieces: list[np.ndarray] = []
    lengths: list[int] = []
    prompts: list[int] = []
    for prompt, ids in _encode(corpus, places, tokenizer):
        _check_ids(ids, tokenizer.vocab_size)
        pieces += [ids.astype(dtype), separator]
        lengths.append(ids.size + 1)
        prompts.append(prompt)
    tokens = np.concatenate(pieces) if pieces else np.zeros(0, dtype=dtype)
    arrays = {"tokens": tokens, "lengths": np.array(lengths, dtype=np.int64)}
    if any(prompts):
        arrays["prompts"] = np.array(prompts, dtype=np.int64)
    return Record({}, arrays)


def _encode(
    corpus: Corpus, places: Numbers, tokenizer: Tokenizer
) -> Iterator[tuple[int, TokenIds]]:
    """Yield how many ids of each document are its prompt, and all of its ids."""
    prompts = corpus.prompts()
    for batch in _batches(corpus.sizes(), places):
        texts = list(corpus.texts(batch))
        if prompts is None:
            yield from ((0, ids) for ids in tokenizer.encode_batch(texts))
            continue
        raw = [text.encode("utf-8") for text in texts]
        heads = [r[:n].decode("utf-8") for r, n in zip(raw, prompts[batch], strict=True)]
        tails = [r[n:].decode("utf-8") for r, n in zip(raw, prompts[batch], strict=True)]
        encoded = tokenizer.encode_batch([*heads, *tails])
        for head, tail in zip(encoded[: len(raw)], encoded[len(raw) :], strict=True):
            yield head.size, np.concatenate([head, tail])


def _check_ids(ids: TokenIds, vocab_size: int) -> None:
    if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < vocab_size:
        raise DataError(
            f"The tokenizer gave id {int(ids.max())}, but its vocabulary has {vocab_size} ids: "
            "its files do not fit together."
        )


def _batches(sizes: Numbers, places: Numbers) -> list[Sequence[int]]:
    """Return `places` in runs of about `BATCH_BYTES` of text."""
    if not len(places):
        return []
    held = np.cumsum(sizes[places])
    numbers = (held - sizes[places]) // BATCH_BYTES
    cuts = np.flatnonzero(np.diff(numbers)) + 1
    return [run.tolist() for run in np.split(places, cuts)]
