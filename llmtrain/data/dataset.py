"""The tokens of one split, across its shards, and how they become samples."""

from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from llmtrain.config.groups.data import SAMPLES, TRUNCATE
from llmtrain.data.manifest import load_manifest, verify_files
from llmtrain.data.packing import NOWHERE, Packing
from llmtrain.data.sampler import Sampler
from llmtrain.data.shard import open_shards
from llmtrain.data.truncate import DocumentRows
from llmtrain.errors import DataError, require_choice
from llmtrain.tokenizer.base import Tokenizer
from llmtrain.tokenizer.build import load_tokenizer

IGNORED = -100
"""Label of a position that is not counted in the loss."""

Ids = npt.NDArray[np.int64]


class Rows(NamedTuple):
    """Some samples, each array (B, seq_len) int64."""

    input_ids: Ids
    labels: Ids
    """Shifted: position t of `labels` follows position t of `input_ids`; `IGNORED` where it is not
    counted."""
    document_positions: Ids | None
    """Position of each token in its document, 0 at each start; None where attention goes over the
    whole row."""


class TokenDataset:
    """One split of a prepared folder, read by memory map.

    windows: sample i of length T is tokens [i*T, i*T + T], T+1 of them, of all documents end to
    end; neighbours share one token, so every token but the first is a label exactly once.
    masked_windows: the same tokens, and where each document starts; what follows a separator is
    not a label.
    documents: sample i is document i and its separator, padded, or cut to T+1 tokens as
    `data.truncate` says.
    packed: several documents a sample, see `data.packing`; every token but the first of a document
    is a label exactly once.

    The tokens of a prompt are inputs in all of them, and labels in none.
    """

    def __init__(
        self,
        folder: Path,
        split: str,
        verify: bool | None = None,
        truncate: str = TRUNCATE[0],
    ) -> None:
        """Open `split` of the prepared `folder`.

        Args:
            folder: What `prepare` returned.
            split: train | validation.
            verify: Hash every file; None: in folders up to 1 GiB. Sizes are always checked.
            truncate: data.truncate.

        Raises:
            ConfigError: there is no such split, or `truncate`.
            DataError: the folder is missing, corrupt or too new; names the file and the fix.
        """
        manifest = load_manifest(folder)
        require_choice("split", split, manifest.splits)
        require_choice("data.truncate", truncate, TRUNCATE)
        verify_files(folder, manifest.files, verify)
        self.folder = folder
        self.split = split
        self.vocab_size = manifest.vocab_size
        self.separator_id = manifest.separator_id
        self.tokenizer_hash = manifest.tokenizer_hash
        shards = [s for s in manifest.splits[split] if s.tokens]
        self._has_prompts = manifest.has_prompts
        self._readers = open_shards(folder, manifest, shards)
        self._starts = _cumulative([s.tokens for s in shards])
        self.n_tokens = int(self._starts[-1])
        self.n_documents = sum(s.documents for s in shards)
        self._truncate = truncate
        self._packings: dict[int, Packing] = {}
        self._document_rows: dict[int, DocumentRows] = {}

    def tokenizer(self) -> Tokenizer:
        """Return the tokenizer the folder was made with.

        Raises:
            DataError: its file cannot be read.
        """
        return load_tokenizer(self.folder / "tokenizer.json")

    def n_samples(
        self, seq_len: int, samples: str = "windows", drop_last: bool | None = None
    ) -> int:
        """Return how many samples of `seq_len` tokens there are.

        Args:
            seq_len: Tokens in a sample.
            samples: data.samples.
            drop_last: Leave out a last window that is not full; None: in the split `train`.

        Raises:
            ConfigError: `samples` is none of them.
            DataError: the split is too small for one sample.
        """
        require_choice("data.samples", samples, SAMPLES)
        if samples == "documents":
            count = self.document_rows(seq_len).n_rows
            if not count:
                raise DataError(
                    f"The {self.split} split has no document that fits model.seq_len={seq_len}: "
                    f"data.truncate={self._truncate} leaves all {self.n_documents} of them out. "
                    "Raise model.seq_len, or leave data.truncate out."
                )
        elif samples == "packed":
            count = self.packing(seq_len).n_rows
        elif self.split == "train" if drop_last is None else drop_last:
            count = (self.n_tokens - 1) // seq_len
        else:
            count = -(-(self.n_tokens - 1) // seq_len)
        if count < 1:
            raise DataError(
                f"The {self.split} split has {self.n_tokens} tokens, too few for one window of "
                f"model.seq_len={seq_len} (+1). Lower model.seq_len to {max(1, self.n_tokens - 1)} "
                "or less, give more text, or set data.samples=documents."
            )
        return count

    def sampler(self, seq_len: int, samples: str, seed: int) -> Sampler:
        """Return the order in which a run sees the samples.

        Raises:
            DataError: the split is too small for one sample.
        """
        return Sampler(self.n_samples(seq_len, samples), seed)

    def mean_labels(self, seq_len: int, samples: str = "windows") -> float:
        """Return how many labels a sample has that are counted in the loss, in the mean.

        Raises:
            DataError: the split is too small for one sample.
        """
        count = self.n_samples(seq_len, samples)
        return max(1.0, float(self._counted(seq_len, samples))) / count

    def _counted(self, seq_len: int, samples: str) -> int:
        """Return how many labels of all samples are counted in the loss."""
        if samples == "documents":
            return self.document_rows(seq_len).n_counted
        starts = self._documents
        if samples == "packed":
            first = starts[:-1] + 1
            first = first if self._targets is None else np.maximum(first, self._targets)
            return int((starts[1:] - first).sum())
        labels = self.n_samples(seq_len, samples) * seq_len
        # The first token of a document is no label behind a mask; the very first one never is.
        first = starts[:-1] + 1 if samples == "masked_windows" else np.maximum(starts[:-1], 1)
        first = first if self._targets is None else np.maximum(first, self._targets)
        return int(np.maximum(0, np.minimum(starts[1:], labels + 1) - first).sum())

    def describe(self, seq_len: int, samples: str) -> str:
        """Return in some words what there is to train on."""
        words = f"{self.n_tokens:,} tokens"
        if samples == "packed":
            packing = self.packing(seq_len)
            words += f" in {packing.n_rows:,} packed rows ({packing.padding_ratio:.2%} padding)"
        if self._has_prompts:
            words += f", {self._counted(seq_len, samples):,} of targets"
        return words + self.describe_cuts(seq_len, samples)

    def describe_cuts(self, seq_len: int, samples: str) -> str:
        """Return in some words which documents are cut or left out, or "" where none is.

        Raises:
            DataError: no sample is left.
        """
        self.n_samples(seq_len, samples)
        if samples != "documents":
            return ""
        rows = self.document_rows(seq_len)
        counts = {"cut": rows.n_cut, "left out": rows.n_left_out}
        told = [f"{count:,} {what}" for what, count in counts.items() if count]
        if not told:
            return ""
        return f" (data.truncate={self._truncate}: {', '.join(told)} of {self.n_documents:,})"

    def document_rows(self, seq_len: int) -> DocumentRows:
        """Return the documents as rows of `seq_len`; computed once for each."""
        if seq_len not in self._document_rows:
            self._document_rows[seq_len] = DocumentRows(
                self._documents, self._targets, seq_len, self._truncate
            )
        return self._document_rows[seq_len]

    def packing(self, seq_len: int) -> Packing:
        """Return how the documents are packed into rows of `seq_len`; computed once for each."""
        if seq_len not in self._packings:
            self._packings[seq_len] = Packing(self._documents, seq_len)
        return self._packings[seq_len]

    def fill(self, index: npt.ArrayLike, seq_len: int, samples: str = "windows") -> Rows:
        """Return samples `index`, shape (B,).

        Behind the end of a document (`documents`), of a row's last one (`packed`) or of the split,
        inputs are the separator and labels `IGNORED`. An index outside the split gives a row of
        those only.
        """
        require_choice("data.samples", samples, SAMPLES)
        rows = np.atleast_1d(np.asarray(index, dtype=np.int64))
        if samples == "packed":
            return self._fill_packed(rows, seq_len)
        if samples == "documents":
            start, end = self.document_rows(seq_len).spans(rows)
        else:
            start = np.where(rows < 0, self.n_tokens, rows * seq_len)
            end = np.full_like(start, self.n_tokens)
        place_BT = start[:, None] + np.arange(seq_len + 1)
        inside_BT = place_BT < end[:, None]
        tokens_BT = np.full(place_BT.shape, self.separator_id, dtype=np.int64)
        tokens_BT[inside_BT] = self._gather(place_BT[inside_BT])
        labels_BT = np.where(inside_BT[:, 1:], tokens_BT[:, 1:], IGNORED)
        self._ignore_prompts(labels_BT, place_BT[:, 1:], inside_BT[:, 1:])
        inputs_BT = np.ascontiguousarray(tokens_BT[:, :-1])
        if samples != "masked_windows":
            return Rows(inputs_BT, labels_BT, None)
        ends_BT = inputs_BT == self.separator_id
        labels_BT[ends_BT] = IGNORED
        return Rows(inputs_BT, labels_BT, positions_after(ends_BT))

    def _fill_packed(self, rows: Ids, seq_len: int) -> Rows:
        place_BT, position_BT = self.packing(seq_len).places(rows)
        inside_BT = place_BT != NOWHERE
        places = place_BT[inside_BT]
        inputs_BT = np.full_like(place_BT, self.separator_id)
        labels_BT = np.full_like(place_BT, IGNORED)
        inputs_BT[inside_BT] = self._gather(places)
        labels_BT[inside_BT] = self._gather(places + 1)
        self._ignore_prompts(labels_BT, place_BT + 1, inside_BT)
        return Rows(inputs_BT, labels_BT, position_BT)

    def _ignore_prompts(
        self, labels_BT: Ids, place_BT: Ids, inside_BT: npt.NDArray[np.bool_]
    ) -> None:
        """Make `IGNORED` of the labels whose tokens, at `place_BT` of the split, are of prompts."""
        if self._targets is None:
            return
        places = place_BT[inside_BT]
        document = np.searchsorted(self._documents, places, side="right") - 1
        labels = labels_BT[inside_BT]
        labels[places < self._targets[document]] = IGNORED
        labels_BT[inside_BT] = labels

    def tokens(self, start: int, end: int) -> Ids:
        """Return tokens [start, end) of the split, documents end to end."""
        return self._gather(np.arange(start, min(end, self.n_tokens), dtype=np.int64))

    def _gather(self, places: Ids) -> Ids:
        """Return the token at each of `places`, shape (n,), whatever its shard."""
        if len(self._readers) == 1:
            return self._readers[0].tokens[places].astype(np.int64)
        out = np.empty(places.shape, dtype=np.int64)
        shard = np.searchsorted(self._starts, places, side="right") - 1
        # Not np.unique: it takes twice as long as all the rest.
        for number in np.flatnonzero(np.bincount(shard)):
            here = shard == number
            out[here] = self._readers[number].tokens[places[here] - self._starts[number]]
        return out

    @cached_property
    def _documents(self) -> Ids:
        """Where each document starts, counted over the whole split, shape (documents + 1,)."""
        parts: list[npt.NDArray[Any]] = [
            reader.offsets[:-1].astype(np.int64) + start
            for reader, start in zip(self._readers, self._starts, strict=False)
        ]
        return np.concatenate([*parts, self._starts[-1:]])

    @cached_property
    def _targets(self) -> Ids | None:
        """Where the target of each document starts, as `_documents`; None: there are no prompts."""
        if not self._has_prompts:
            return None
        prompts = [r.prompts.astype(np.int64) for r in self._readers if r.prompts is not None]
        return self._documents[:-1] + np.concatenate([np.zeros(0, dtype=np.int64), *prompts])


def positions_after(ends_BT: npt.NDArray[np.bool_]) -> Ids:
    """Return how far each position is from its row's start or the position after the last end."""
    place_BT = np.broadcast_to(np.arange(ends_BT.shape[1]), ends_BT.shape)
    starts_BT = np.zeros_like(place_BT)
    starts_BT[:, 1:] = np.where(ends_BT[:, :-1], place_BT[:, 1:], 0)
    return place_BT - np.maximum.accumulate(starts_BT, axis=1)


def _cumulative(counts: list[int]) -> Ids:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
