"""What a step trains on: its samples, and the documents in each. What `Loader` reads, named."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llmtrain.data.dataset import TokenDataset
from llmtrain.data.documents import Documents
from llmtrain.data.manifest import load_manifest
from llmtrain.data.packing import NOWHERE
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
    """The stream of samples of a run: position, epoch, sample, documents."""

    def __init__(self, folder: Path, seq_len: int, samples: str, seed: int) -> None:
        """Open the training split of the prepared `folder`.

        Args:
            folder: What `prepare` returned.
            seq_len: model.seq_len.
            samples: data.samples.
            seed: train.seed.

        Raises:
            DataError: the folder is missing or damaged, or too small for one sample.
        """
        self._dataset = TokenDataset(folder, "train")
        self._documents = Documents(folder, load_manifest(folder), "train")
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
        found = []
        for offset, sample in enumerate(self._sampler.run(first, count).tolist()):
            spans = self.spans(sample)
            found.append(
                {
                    "position": first + offset,
                    "epoch": (first + offset) // self.n_samples,
                    "sample": sample,
                    "documents": [asdict(span) for span in spans],
                    "text": [asdict(piece) for piece in self._text(spans, tokens)],
                }
            )
        return found

    def spans(self, sample: int) -> list[DocumentSpan]:
        """Return which stretches of which documents are in `sample`, in order."""
        starts, T = self._documents.starts, self._seq_len
        if self._samples == "packed":
            places, _ = self._dataset.packing(T).places(np.array([sample]))
            held = places[places != NOWHERE]
            edges = np.flatnonzero(np.diff(held) != 1) + 1
            # Each piece has one token more than inputs: the label of its last.
            runs = [(int(part[0]), int(part[-1]) + 2) for part in np.split(held, edges)]
        elif self._samples == "documents":
            runs = [(int(starts[sample]), int(min(starts[sample] + T + 1, starts[sample + 1])))]
        else:
            runs = [(sample * T, min(sample * T + T + 1, int(starts[-1])))]
        return [span for run in runs for span in self._spans(*run)]

    def _spans(self, start: int, end: int) -> list[DocumentSpan]:
        """Return the stretches of documents in tokens [start, end) of the split."""
        starts = self._documents.starts
        first, last = np.searchsorted(starts, [start, end - 1], side="right") - 1
        return [
            DocumentSpan(
                document=document,
                shard=self._documents.shards[self._documents.shard_of(document)].name,
                start=int(max(start - starts[document], 0)),
                end=int(min(end, starts[document + 1]) - starts[document]),
            )
            for document in range(int(first), int(last) + 1)
        ]

    def _text(self, spans: list[DocumentSpan], tokens: int) -> list[Piece]:
        pieces: list[Piece] = []
        for span in spans:
            end = min(span.end, span.start + tokens)
            pieces += self._documents.pieces(span.document, span.start, end, self.tokenizer)
            tokens -= end - span.start
            if tokens <= 0:
                break
        return pieces
