"""The stage `encode`: the documents of one record that were chosen, as ids."""

from collections.abc import Callable, Iterator
from itertools import repeat

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

    A prompt is encoded apart from its target: its ids are those of `generate prompt=...`.

    Args:
        corpus: The documents.
        places: Which of them.
        tokenizer: Makes the ids.
        measured: Says by its content hash whether a document counts for the tokenizer's report.

    Returns:
        A record of `tokens`, shape (tokens,), of `lengths`, shape (documents,), the separator
        counted, and of the arrays of a `TokenizerReport`; where there are prompts, also of
        `prompts`, shape (documents,), in tokens.

    Raises:
        DataError: an id is outside the vocabulary.
    """
    dtype = dtype_for(tokenizer.vocab_size)
    separator = np.array([tokenizer.separator_id], dtype=dtype)
    pieces: list[np.ndarray] = []
    lengths: list[int] = []
    prompts: list[int] = []
    report = TokenizerReport(tokenizer)
    for number, text, prompt, ids in _encode(corpus, places, tokenizer):
        _check_ids(ids, tokenizer.vocab_size)
        if measured(corpus.digest(number)):
            report.add(text, ids)
        pieces += [ids.astype(dtype), separator]
        lengths.append(ids.size + 1)
        prompts.append(prompt)
    tokens = np.concatenate(pieces) if pieces else np.zeros(0, dtype=dtype)
    arrays = {"tokens": tokens, "lengths": np.array(lengths, dtype=np.int64)}
    if any(prompts):
        arrays["prompts"] = np.array(prompts, dtype=np.int64)
    return Record({}, arrays | report.arrays())


def _encode(
    corpus: Corpus, places: Numbers, tokenizer: Tokenizer
) -> Iterator[tuple[int, str, int, TokenIds]]:
    """Yield number, text, how many ids are its prompt, and all ids of each document."""
    prompts = corpus.prompts()
    for batch in cut_batches(corpus.sizes(), places.tolist(), BATCH_BYTES):
        texts = list(corpus.texts(batch))
        if prompts is None:
            encoded = tokenizer.encode_batch(texts)
            yield from zip(batch, texts, repeat(0), encoded)
            continue
        raw = [text.encode("utf-8") for text in texts]
        heads = [r[:n].decode("utf-8") for r, n in zip(raw, prompts[batch], strict=True)]
        tails = [r[n:].decode("utf-8") for r, n in zip(raw, prompts[batch], strict=True)]
        encoded = tokenizer.encode_batch([*heads, *tails])
        halves = zip(encoded[: len(raw)], encoded[len(raw) :], strict=True)
        for number, text, (head, tail) in zip(batch, texts, halves, strict=True):
            yield number, text, head.size, np.concatenate([head, tail])


def _check_ids(ids: TokenIds, vocab_size: int) -> None:
    if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < vocab_size:
        raise DataError(
            f"The tokenizer gave id {int(ids.max())}, but its vocabulary has {vocab_size} ids: "
            "its files do not fit together."
        )
