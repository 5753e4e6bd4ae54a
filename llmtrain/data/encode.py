"""The stage `encode`: the documents of one record that were chosen, as ids."""

from collections.abc import Callable

import numpy as np

from llmtrain.data.corpus import Corpus, Numbers, cut_batches
from llmtrain.data.manifest import dtype_for
from llmtrain.data.record import Record
from llmtrain.data.tokenizer_report import TokenizerReport
from llmtrain.errors import DataError
from llmtrain.tokenizer.base import TokenIds, Tokenizer

Measured = Callable[[bytes], bool]

BATCH_BYTES = 2 << 20
"""Text that is given to the tokenizer at once; as much as a part, which is read again for it."""


def encode_documents(
    corpus: Corpus, places: Numbers, tokenizer: Tokenizer, measured: Measured
) -> Record:
    """Return the documents at `places` of `corpus` as ids, a separator behind each.

    Args:
        corpus: The documents.
        places: Which of them.
        tokenizer: Makes the ids.
        measured: Says by its content hash whether a document counts for the tokenizer's report.

    Returns:
        A record of `tokens`, shape (tokens,), of `lengths`, shape (documents,), the separator
        counted, and of the arrays of a `TokenizerReport`.

    Raises:
        DataError: an id is outside the vocabulary.
    """
    dtype = dtype_for(tokenizer.vocab_size)
    separator = np.array([tokenizer.separator_id], dtype=dtype)
    pieces: list[np.ndarray] = []
    lengths: list[int] = []
    report = TokenizerReport(tokenizer)
    for batch in cut_batches(corpus.sizes(), places.tolist(), BATCH_BYTES):
        texts = list(corpus.texts(batch))
        for number, text, ids in zip(batch, texts, tokenizer.encode_batch(texts), strict=True):
            _check_ids(ids, tokenizer.vocab_size)
            if measured(corpus.digest(number)):
                report.add(text, ids)
            pieces += [ids.astype(dtype), separator]
            lengths.append(ids.size + 1)
    tokens = np.concatenate(pieces) if pieces else np.zeros(0, dtype=dtype)
    arrays = {"tokens": tokens, "lengths": np.array(lengths, dtype=np.int64)}
    return Record({}, arrays | report.arrays())


def _check_ids(ids: TokenIds, vocab_size: int) -> None:
    if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < vocab_size:
        raise DataError(
            f"The tokenizer gave id {int(ids.max())}, but its vocabulary has {vocab_size} ids: "
            "its files do not fit together."
        )
