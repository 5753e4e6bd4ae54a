"""The stage `encode`: the documents of one record that were chosen, as ids."""

from collections.abc import Sequence

import numpy as np

from llmtrain.data.corpus import Corpus, Numbers
from llmtrain.data.manifest import dtype_for
from llmtrain.data.record import Record
from llmtrain.errors import DataError
from llmtrain.tokenizer.base import TokenIds, Tokenizer

BATCH_BYTES = 2 << 20
"""Text that is given to the tokenizer at once; as much as a part, which is read again for it."""


def encode_documents(corpus: Corpus, places: Numbers, tokenizer: Tokenizer) -> Record:
    """Return the documents at `places` of `corpus` as ids, a separator behind each.

    Returns:
        A record of `tokens`, shape (tokens,), and of `lengths`, shape (documents,), the separator
        counted.

    Raises:
        DataError: an id is outside the vocabulary.
    """
    dtype = dtype_for(tokenizer.vocab_size)
    separator = np.array([tokenizer.separator_id], dtype=dtype)
    pieces: list[np.ndarray] = []
    lengths: list[int] = []
    for batch in _batches(corpus.sizes(), places):
        for ids in tokenizer.encode_batch(list(corpus.texts(batch))):
            _check_ids(ids, tokenizer.vocab_size)
            pieces += [ids.astype(dtype), separator]
            lengths.append(ids.size + 1)
    tokens = np.concatenate(pieces) if pieces else np.zeros(0, dtype=dtype)
    return Record({}, {"tokens": tokens, "lengths": np.array(lengths, dtype=np.int64)})


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
