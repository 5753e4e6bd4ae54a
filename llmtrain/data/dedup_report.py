"""What the report says of duplicates: how many, how much text they were, and a few to look at."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from llmtrain.data.corpus import Corpus
from llmtrain.data.dedup import Deduplicator

EXAMPLES = 5
"""Pairs that are shown."""

SHOWN_CHARACTERS = 80
"""Of each document of an example."""


@dataclass(frozen=True)
class Example:
    """Two documents of which one was dropped."""

    dropped: str
    """Where it comes from."""
    kept: str
    similarity: float
    """Share of n-grams in common."""
    dropped_start: str
    """Its first characters."""
    kept_start: str


def make_example(corpus: Corpus, dropped: int, kept: int, similarity: float) -> Example:
    """Return the example of two documents of `corpus`."""
    return Example(
        dropped=corpus.id(dropped),
        kept=corpus.id(kept),
        similarity=round(similarity, 4),
        dropped_start=corpus.text(dropped)[:SHOWN_CHARACTERS],
        kept_start=corpus.text(kept)[:SHOWN_CHARACTERS],
    )


def exact_report(seen: Deduplicator, corpus: Corpus) -> dict[str, Any]:
    """Return the counts of exact duplicates, ready for JSON; `corpus` holds what was new."""
    examples = []
    digests = corpus.digests().view("V16").ravel()
    for digest, id in seen.repeats:
        kept = int(np.flatnonzero(digests == np.frombuffer(digest, dtype="V16")[0])[0])
        start = corpus.text(kept)[:SHOWN_CHARACTERS]
        examples.append(Example(id, corpus.id(kept), 1.0, start, start))
    return {
        "documents": seen.duplicates,
        "characters": seen.characters,
        "examples": [asdict(example) for example in examples],
    }
