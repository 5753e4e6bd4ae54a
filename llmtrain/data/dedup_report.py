"""What the report says of duplicates: how many, how much text they were, and a few to look at."""

from dataclasses import asdict, dataclass
from typing import Any

from llmtrain.data.corpus import Corpus
from llmtrain.data.dedup import ExactDuplicates

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


def exact_report(corpus: Corpus, found: ExactDuplicates) -> dict[str, Any]:
    """Return the counts of what was `found` in `corpus`, ready for JSON."""
    examples = []
    for place, first in zip(found.dropped[:EXAMPLES], found.first, strict=False):
        start = corpus.text(int(place))[:SHOWN_CHARACTERS]
        kept = corpus.id(int(first)) if first >= 0 else "an earlier source"
        examples.append(Example(corpus.id(int(place)), kept, 1.0, start, start))
    return {
        "documents": len(found.dropped),
        "characters": int(corpus.characters()[found.dropped].sum()),
        "examples": [asdict(example) for example in examples],
    }
