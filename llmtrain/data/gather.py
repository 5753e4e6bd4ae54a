"""The stage `shard`: which documents go into which shard, and their tokens gathered."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from llmtrain.config.groups.data import DataConfig
from llmtrain.data.choose import Choice
from llmtrain.data.corpus import Numbers
from llmtrain.data.order import cut_by_hash, cut_by_size
from llmtrain.data.record import Record, Shelf
from llmtrain.data.shard import write_shard

BLOCK_TOKENS = 1 << 24
"""Tokens that are gathered at once: 64 MB at most, but for a longer document."""


@dataclass(frozen=True)
class PlannedShard:
    """A shard to be written."""

    name: str
    split: str
    documents: Numbers
    """Their numbers in the corpus, in order."""
    tokens: int


class ShardPlan:
    """Where the tokens of every document are, and where they go."""

    def __init__(self, choice: Choice, encoded: Sequence[Path], data: DataConfig) -> None:
        """Plan; the same in every process.

        Args:
            choice: What is written.
            encoded: The records of the stage `encode`, one for each of `choice`.
            data: The source's settings.
        """
        self._shelf = Shelf(encoded)
        self._bounds = choice.bounds
        self._lengths = np.zeros(len(choice.corpus), dtype=np.int64)
        self._starts = np.zeros(len(choice.corpus), dtype=np.int64)
        self._prompts: Numbers | None = None
        """Prompt tokens of each document; None: none has any."""
        for number in range(len(encoded)):
            places = choice.bounds[number] + choice.written(number)
            lengths = self._shelf[number].array("lengths")
            prompts = self._shelf[number].array_or_none("prompts")
            self._lengths[places] = lengths
            self._starts[places] = np.cumsum(lengths) - lengths
            if prompts is not None:
                if self._prompts is None:
                    self._prompts = np.zeros_like(self._lengths)
                self._prompts[places] = prompts
        self.shards = [
            shard for split in choice.orders for shard in self._plan(choice, split, data)
        ]

    def _plan(self, choice: Choice, split: str, data: DataConfig) -> Iterator[PlannedShard]:
        order = choice.orders[split]
        lengths = self._lengths[order]
        if data.shard_mode == "hash":
            digests = choice.corpus.digests()[order]
            cuts = cut_by_hash(digests, int(lengths.sum()), data.shard_tokens)
        else:
            cuts = cut_by_size(lengths, data.shard_tokens)
        for number, (start, end) in enumerate(pairwise(cuts)):
            tokens = int(lengths[start:end].sum())
            yield PlannedShard(f"{split}-{number:05d}", split, order[start:end], tokens)

    def prompt_tokens(self) -> dict[str, int]:
        """Return the tokens of all prompts by split; empty where there are none."""
        counts: dict[str, int] = {}
        if self._prompts is None:
            return counts
        for shard in self.shards:
            tokens = int(self._prompts[shard.documents].sum())
            counts[shard.split] = counts.get(shard.split, 0) + tokens
        return counts

    def write(self, number: int, folder: Path) -> Record:
        """Write shard `number` into `folder` and return what its files must be.

        Raises:
            OSError: the disk is full.
        """
        shard = self.shards[number]
        lengths = self._lengths[shard.documents]
        prompts = None if self._prompts is None else self._prompts[shard.documents]
        files = write_shard(folder, shard.name, lengths, self._blocks(shard.documents), prompts)
        return Record({"files": {name: asdict(check) for name, check in files.items()}})

    def _blocks(self, documents: Numbers) -> Iterator[npt.NDArray[Any]]:
        ends = np.cumsum(self._lengths[documents])
        cuts = np.searchsorted(ends, np.arange(BLOCK_TOKENS, ends[-1:].sum(), BLOCK_TOKENS))
        for block in np.split(documents, np.unique(cuts)):
            if len(block):
                yield self._gather(block)

    def _gather(self, documents: Numbers) -> npt.NDArray[Any]:
        """Return the tokens of `documents` end to end; each record is visited once."""
        lengths = self._lengths[documents]
        places = np.cumsum(lengths) - lengths
        records = np.searchsorted(self._bounds, documents, side="right") - 1
        first = self._shelf[int(records[0])].part("tokens", 0, 1)  # a document has a separator
        out = np.empty(int(lengths.sum()), dtype=first.dtype)
        for i in np.lexsort((documents, records)):
            start, length, place = self._starts[documents[i]], lengths[i], places[i]
            tokens = self._shelf[int(records[i])].part("tokens", int(start), int(start + length))
            out[place : place + length] = tokens
        return out
