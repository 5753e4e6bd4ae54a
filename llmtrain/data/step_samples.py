"""What a step trains on: its samples, and the documents in each. What `Loader` reads, named."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llmtrain.config.groups.data import TRUNCATE
from llmtrain.data.dataset import TokenDataset
from llmtrain.data.manifest import load_manifest
from llmtrain.data.mixed import MixedDataset
from llmtrain.data.mixture import prepared_sources
from llmtrain.data.opening import open_dataset
from llmtrain.data.packing import NOWHERE
from llmtrain.data.split_documents import Documents
from llmtrain.tokenizer.pieces import Piece


@dataclass(frozen=True)
class DocumentSpan:
    """A stretch of a document."""

    document: int
    """Its number in the split."""
    shard: str
    start: int
    """First token, counted in the document."""
    end: int
    """Behind the last. The last token of a sample is a label only, never an input."""


class StepSamples:
    """The stream of samples of a run: position, epoch, sample, source, documents."""

    def __init__(
        self, folder: Path, seq_len: int, samples: str, seed: int, truncate: str = TRUNCATE[0]
    ) -> None:
        """Open the training split of the prepared `folder`, of a source or of a mixture.

        Args:
            folder: What `prepare` returned.
            seq_len: model.seq_len.
            samples: data.samples.
            seed: train.seed.
            truncate: data.truncate.

        Raises:
            DataError: the folder is missing or damaged, or too small for one sample.
        """
        self._dataset = open_dataset(folder, "train", truncate=truncate)
        sources = prepared_sources(folder)
        self._names = [source.name for source in sources]
        self._documents = [
            Documents(source.folder, load_manifest(source.folder), "train") for source in sources
        ]
        self.tokenizer = self._dataset.tokenizer()
        self._seq_len = seq_len
        self._samples = samples
        self._sampler = self._dataset.sampler(seq_len, samples, seed)
        self.n_samples = self._sampler.n_samples
        """Samples of an epoch."""

    def at(self, first: int, count: int, tokens: int) -> list[dict[str, Any]]:
        """Return the samples at positions [first, first + count), ready for JSON.

        Args:
            first: Samples that the run has seen before.
            count: How many.
            tokens: Of the start of each, that are shown.
        """
        order = self._sampler.run(first, count).tolist()
        return [
            {"position": position, "epoch": position // self.n_samples, "sample": sample}
            | self._describe(sample, tokens)
            for position, sample in enumerate(order, start=first)
        ]

    def _describe(self, sample: int, tokens: int) -> dict[str, Any]:
        number, own, part = 0, sample, self._dataset
        if isinstance(part, MixedDataset):
            number, own = part.place_of(sample, self._seq_len, self._samples)
            part = part.parts[number]
        assert isinstance(part, TokenDataset)
        documents = self._documents[number]
        spans = [
            span for run in self._runs(part, documents, own) for span in _spans(documents, *run)
        ]
        return ({"source": self._names[number]} if len(self._names) > 1 else {}) | {
            "documents": [asdict(span) for span in spans],
            "text": [asdict(piece) for piece in self._text(documents, spans, tokens)],
        }

    def _runs(
        self, dataset: TokenDataset, documents: Documents, sample: int
    ) -> list[tuple[int, int]]:
        """Return which stretches of the split's tokens, [start, end), are in `sample`, in order."""
        T = self._seq_len
        if self._samples == "documents":
            start, end = dataset.document_rows(T).spans(np.array([sample]))
            return [(int(start[0]), min(int(start[0]) + T + 1, int(end[0])))]
        if self._samples != "packed":
            return [(sample * T, min(sample * T + T + 1, int(documents.starts[-1])))]
        places, _ = dataset.packing(T).places(np.array([sample]))
        held = places[places != NOWHERE]
        edges = np.flatnonzero(np.diff(held) != 1) + 1
        # Each piece has one token more than inputs: the label of its last.
        return [(int(part[0]), int(part[-1]) + 2) for part in np.split(held, edges)]

    def _text(self, documents: Documents, spans: list[DocumentSpan], tokens: int) -> list[Piece]:
        pieces: list[Piece] = []
        for span in spans:
            end = min(span.end, span.start + tokens)
            pieces += documents.pieces(span.document, span.start, end, self.tokenizer)
            tokens -= end - span.start
            if tokens <= 0:
                break
        return pieces


def _spans(documents: Documents, start: int, end: int) -> list[DocumentSpan]:
    """Return the stretches of documents in tokens [start, end) of the split."""
    starts = documents.starts
    first, last = np.searchsorted(starts, [start, end - 1], side="right") - 1
    return [
        DocumentSpan(
            document=document,
            shard=documents.shards[documents.shard_of(document)].name,
            start=int(max(start - starts[document], 0)),
            end=int(min(end, starts[document + 1]) - starts[document]),
        )
        for document in range(int(first), int(last) + 1)
    ]
