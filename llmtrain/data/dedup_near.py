"""Near-duplicates: which of the documents that share most of their n-grams is kept.

Documents are taken longest first, equally long ones by content hash. One is dropped where a
document that was kept before shares at least `similarity` of its n-grams with it, counted on the
n-grams themselves; else it is kept. So every document that is dropped has a near-duplicate that
was kept (A ~ B ~ C never drops C for A's sake alone), no two that are kept are near-duplicates
that met, and file names, their order and the number of processes have no say.
"""

import heapq
import math
from collections import OrderedDict
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.progress import Progress

from llmtrain.config.groups.dedup import NearConfig
from llmtrain.data.corpus import Corpus, cut_batches
from llmtrain.data.dedup_report import EXAMPLES, Example, make_example
from llmtrain.data.dedup_shingle import Hashes, Shingler, jaccard
from llmtrain.data.dedup_sketch import Sketches

BATCH_BYTES = 1 << 20
"""Text that is compared at once."""

BATCH_DOCUMENTS = 4096
"""Documents that are compared at once."""

CACHE_BYTES = 64 << 20
"""N-gram sets that are kept in memory: many documents are compared with one."""

MOST_COMPARED = 32
"""Kept documents, those of the nearest sketches, that one is compared with n-gram by n-gram."""

DEVIATIONS = 4
"""A sketch's estimate this many standard deviations under the threshold ends a comparison: one in
30,000 of the pairs at the threshold."""


@dataclass
class NearDuplicates:
    """What `find_near_duplicates` found."""

    dropped: list[int] = field(default_factory=list)
    """Numbers of the documents that have a near-duplicate among those that are kept."""
    clusters: int = 0
    """Kept documents for which at least one was dropped."""
    characters: int = 0
    """Characters of those that are dropped."""
    crowded: int = 0
    """Kept documents that were not compared with all that followed: see MOST_IN_A_BUCKET."""
    examples: list[Example] = field(default_factory=list)
    """The least alike of the pairs, by which to judge data.near.similarity."""

    def report(self) -> dict[str, Any]:
        """Return the counts, ready for JSON."""
        return {
            "documents": len(self.dropped),
            "clusters": self.clusters,
            "characters": self.characters,
            "crowded": self.crowded,
            "examples": [asdict(example) for example in self.examples],
        }


def find_near_duplicates(
    own: Corpus, config: NearConfig, folder: Path, bars: Progress, before: Corpus | None = None
) -> NearDuplicates:
    """Return which documents of `own` to drop; equal ones must be gone already.

    Args:
        own: The documents, sketched under `config`.
        config: What counts as near.
        folder: Where scratch files may be; about 800 bytes a document.
        bars: Shows how far it is.
        before: Documents that are kept whatever they are.

    Raises:
        OSError: the disk is full.
    """
    corpus = own if before is None else before.followed_by(own)
    shingler = Shingler(config)
    sketches = Sketches(config, len(corpus), folder)
    for made, empty in corpus.sketches():
        sketches.add(made, empty)
    meets = sketches.meet()
    return _Choice(corpus, len(corpus) - len(own), config, sketches, shingler).run(meets, bars)


def are_near(one: str, two: str, config: NearConfig) -> bool:
    """Say whether two texts are near-duplicates."""
    shingler = Shingler(config)
    return jaccard(shingler.shingles(one), shingler.shingles(two)) >= config.similarity


class _Choice:
    """Keeps or drops one document after the other. Ranks are places in that order."""

    def __init__(
        self, corpus: Corpus, first: int, config: NearConfig, sketches: Sketches, shingler: Shingler
    ) -> None:
        self._corpus = corpus
        self._first = first
        """The first document that may be dropped."""
        self._config = config
        self._sketches = sketches
        self._sets = _ShingleCache(corpus, shingler)
        share = config.similarity
        deviation = math.sqrt(share * (1 - share) / config.permutations)
        self._floor = share - DEVIATIONS * deviation
        self._order = np.zeros(0, dtype=np.int64)
        self._examples: list[tuple[float, int, int]] = []
        """A heap of (-similarity, -rank dropped, rank kept): the most alike pair goes first."""

    def run(self, meets: npt.NDArray[np.bool_], bars: Progress) -> NearDuplicates:
        """Decide about every document; those that meet nobody are kept unseen."""
        order = _by_content(self._corpus)
        order = order[np.argsort(order >= self._first, kind="stable")]
        self._order = order[meets[order]]
        result = NearDuplicates()
        bar = bars.add_task("compare documents", total=len(self._order))
        took = np.zeros(len(self._order), dtype=bool)
        rank = 0
        for numbers in cut_batches(self._corpus.sizes(), self._order, BATCH_BYTES, BATCH_DOCUMENTS):
            self._sets.load(numbers)
            places = np.ascontiguousarray(self._sketches.buckets[:, numbers].T)
            for number, buckets in zip(numbers, places, strict=True):
                match = self._nearest(number, buckets) if number >= self._first else None
                if match is None:
                    result.crowded += not self._sketches.keep(rank, buckets)
                else:
                    took[match[1]] = True
                    result.dropped.append(number - self._first)
                    result.characters += len(self._corpus.text(number))
                    self._remember(match[0], rank, match[1])
                rank += 1
            bars.advance(bar, len(numbers))
        result.dropped.sort()
        result.clusters = int(took.sum())
        result.examples = [self._example(*pair) for pair in sorted(self._examples, reverse=True)]
        return result

    def _nearest(self, number: int, buckets: npt.NDArray[np.uint64]) -> tuple[float, int] | None:
        """Return (similarity, rank) of a kept document that is near; of several, by the sketches
        the nearest. None: there is none."""
        ranks = self._sketches.kept_in(buckets)
        if not len(ranks):
            return None
        sketches = self._sketches.values
        equal = (sketches[self._order[ranks]] == sketches[number]).mean(axis=1)
        nearest = np.argsort(-equal, kind="stable")[:MOST_COMPARED]
        for place in nearest.tolist():
            if equal[place] < self._floor:
                break
            rank = int(ranks[place])
            similarity = jaccard(self._sets[number], self._sets[int(self._order[rank])])
            if similarity >= self._config.similarity:
                return similarity, rank
        return None

    def _remember(self, similarity: float, rank: int, kept: int) -> None:
        heapq.heappush(self._examples, (-similarity, -rank, kept))
        if len(self._examples) > EXAMPLES:
            heapq.heappop(self._examples)

    def _example(self, negated: float, negated_rank: int, kept_rank: int) -> Example:
        dropped, kept = int(self._order[-negated_rank]), int(self._order[kept_rank])
        return make_example(self._corpus, dropped, kept, -negated)


class _ShingleCache:
    """The n-gram sets of documents, those used last in memory."""

    def __init__(self, corpus: Corpus, shingler: Shingler) -> None:
        self._corpus = corpus
        self._shingler = shingler
        self._sets: OrderedDict[int, Hashes] = OrderedDict()
        self._bytes = 0

    def load(self, numbers: list[int]) -> None:
        """Take in several documents: at once, they take a fraction of the time."""
        hashes, starts = self._shingler.hashes(list(self._corpus.texts(numbers)))
        for number, start, end in zip(numbers, starts, starts[1:], strict=False):
            self._put(number, np.unique(hashes[start:end]))

    def __getitem__(self, number: int) -> Hashes:
        if number not in self._sets:
            self._put(number, self._shingler.shingles(self._corpus.text(number)))
        self._sets.move_to_end(number)
        return self._sets[number]

    def _put(self, number: int, found: Hashes) -> None:
        self._sets[number] = found
        self._bytes += found.nbytes
        while self._bytes > CACHE_BYTES and len(self._sets) > 1:
            self._bytes -= self._sets.popitem(last=False)[1].nbytes


def _by_content(corpus: Corpus) -> npt.NDArray[np.int64]:
    """Return the numbers of all documents, the longest first, equally long ones by hash."""
    digests = corpus.digests().view(">u8").reshape(-1, 2)
    return np.lexsort((digests[:, 1], digests[:, 0], -corpus.sizes()))
