"""Which documents stay, on which side of the split, and in which order they are written."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import Progress

from llmtrain.config.groups.data import DataConfig
from llmtrain.data.corpus import Corpus, CorpusWriter, Numbers
from llmtrain.data.dedup import Digests, find_exact_duplicates
from llmtrain.data.dedup_near import NearDuplicates, are_near, find_near_duplicates
from llmtrain.data.dedup_report import exact_report
from llmtrain.data.order import order_documents
from llmtrain.data.record import Record, RecordReader
from llmtrain.data.split import split_corpus
from llmtrain.errors import DataError

SPLITS = ("train", "validation")


class Choice:
    """What the stages `read` and `choose` left: the corpus, and what is written of it."""

    def __init__(self, read: Sequence[Path], chosen: Path) -> None:
        """Take the records of both stages."""
        self.records = [*read, chosen]
        self.corpus = Corpus(self.records)
        """What was read, and the two parts of a document that was cut."""
        record = RecordReader(chosen)
        self.orders: dict[str, Numbers] = {split: record.array(split) for split in SPLITS}
        """The documents of each split in `corpus`, in the order they are written."""
        self.report: dict[str, Any] = record.facts["report"]
        self._cut: int | None = record.facts["cut"]
        """The document of which train and validation are the two parts, where there is but one."""
        self.bounds = self.corpus.bounds()
        self._written = np.zeros(len(self.corpus), dtype=bool)
        for order in self.orders.values():
            self._written[order] = True

    def digests(self) -> Digests:
        """Return the content hash of every document that is written, ascending.

        Of one that was cut too: it must not come again, whole, in a later source.
        """
        kept = [*self.orders.values(), *([] if self._cut is None else [np.array([self._cut])])]
        digests = self.corpus.digests()[np.concatenate(kept)]
        halves = digests.view(">u8").reshape(-1, 2)
        return digests[np.lexsort((halves[:, 1], halves[:, 0]))]

    def written(self, record: int) -> Numbers:
        """Return the documents of a record that are written, numbered in it, ascending."""
        return np.flatnonzero(self._written[self.bounds[record] : self.bounds[record + 1]])


@dataclass(frozen=True)
class Earlier:
    """What the sources before one have kept."""

    digests: Digests = field(default_factory=lambda: np.zeros((0, 16), dtype=np.uint8))
    """Content hashes of the documents."""
    records: list[Path] = field(default_factory=list)
    """Where they can be read, among others; needed where data.dedup=near."""

    def add(self, digests: Digests, records: Sequence[Path]) -> "Earlier":
        """Return this and what one more source has kept."""
        return Earlier(np.concatenate([self.digests, digests]), [*self.records, *records])

    def corpus(self) -> Corpus:
        """Return the documents themselves, each once."""
        corpus = Corpus(self.records)
        both = find_exact_duplicates(corpus.digests(), self.digests)
        known = both.dropped[both.first == -1]
        once = find_exact_duplicates(corpus.digests()[known], self.digests[:0])
        return corpus.select(known[once.kept])


def choose_documents(
    paths: Sequence[Path], data: DataConfig, earlier: Earlier, folder: Path, bars: Progress
) -> Record:
    """Return the order in which the documents of the records `paths` are written.

    The record is for `Choice`. Its arrays `train` and `validation` hold numbers in the corpus of
    `paths` and itself: it adds the two parts of a corpus of one document, which is cut.

    Args:
        paths: Of the stage `read`.
        data: The source's settings.
        earlier: What the sources before it have kept: it is kept out of this one.
        folder: For scratch files.
        bars: Show how far it is.

    Raises:
        DataError: nothing is left to train on or to validate on.
        OSError: the disk is full.
    """
    corpus = Corpus(paths)
    read = len(corpus)
    report: dict[str, Any] = {"documents": {"duplicates": 0}, "dedup": {}}
    if data.dedup != "none":
        exact = find_exact_duplicates(corpus.digests(), earlier.digests)
        report["documents"]["duplicates"] = len(exact.dropped)
        report["dedup"]["exact"] = exact_report(corpus, exact)
        corpus = corpus.select(exact.kept)
    near = NearDuplicates()
    if data.dedup == "near":
        near = find_near_duplicates(corpus, data.near, folder, bars, earlier.corpus())
        report["dedup"]["near"] = near.report()
        corpus = corpus.select(np.delete(np.arange(len(corpus), dtype=np.int64), near.dropped))
    report["documents"] |= {"near_duplicates": len(near.dropped), "kept": len(corpus)}
    if not len(corpus):
        raise DataError(f"data.name={data.name}: all its documents stand in the sources before it.")
    split = split_corpus(corpus, data.val_ratio, data.seed)
    report["note"] = split.note
    added = CorpusWriter(data.near if data.dedup == "near" else None)
    orders = {"train": np.array([read]), "validation": np.array([read + 1])}
    if split.cut is None:
        for name, numbers in (("train", split.train), ("validation", split.validation)):
            order = order_documents(corpus, numbers, data.shard_mode, data.seed)
            orders[name] = corpus.numbers[order]
    else:
        _cut_document(corpus, split.cut, data, added)
    cut = None if split.cut is None else int(corpus.numbers[0])
    record = added.record({"report": report, "cut": cut})
    record.arrays |= orders
    return record


def _cut_document(corpus: Corpus, cut: int, data: DataConfig, added: CorpusWriter) -> None:
    """Make two documents of the only one.

    Raises:
        DataError: the second is not new, or the only one is a pair.
    """
    if getattr(data, "prompt", None) is not None:
        raise DataError(
            f"data.name={data.name} has one pair of prompt and target only: there is none to "
            "validate on. Give two at least."
        )
    text, id = corpus.text(0), corpus.id(0)
    head, tail = text[:cut], text[cut:]
    if data.dedup == "near" and are_near(head, tail, data.near):
        raise DataError(
            "The validation split would be a near-duplicate of what is trained on: the corpus is "
            "one document that repeats itself. Add text, or set data.dedup=exact."
        )
    added.add(head, id)
    added.add(tail, id)
