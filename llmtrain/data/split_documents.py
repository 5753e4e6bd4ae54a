"""One split of a prepared folder, document by document."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from llmtrain.data.manifest import Manifest
from llmtrain.data.shard import open_shards
from llmtrain.tokenizer.base import Tokenizer
from llmtrain.tokenizer.pieces import CONTEXT, Piece, split_pieces

Counts = npt.NDArray[np.int64]


class Documents:
    """The documents of a split, numbered through its shards, read by memory map."""

    def __init__(self, folder: Path, manifest: Manifest, split: str) -> None:
        """Open `split` of the prepared `folder`, whose files have been verified.

        Raises:
            DataError: a shard is not what its manifest says.
        """
        self.shards = manifest.splits[split]
        self._readers = open_shards(folder, manifest, self.shards)
        lengths = [np.diff(reader.offsets.astype(np.int64)) for reader in self._readers]
        self.lengths: Counts = np.concatenate([np.zeros(0, dtype=np.int64), *lengths])
        """Tokens of each document, its separator counted, shape (documents,)."""
        self.starts: Counts = np.concatenate([[0], np.cumsum(self.lengths)]).astype(np.int64)
        """Where each starts in the tokens of the split, and where the last ends, (documents+1,)."""
        counts = [shard.documents for shard in self.shards]
        self._firsts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.lengths)

    def shard_of(self, document: int) -> int:
        """Return the number of the shard that holds `document`."""
        return int(np.searchsorted(self._firsts, document, side="right")) - 1

    def ids(self, document: int, start: int, end: int) -> npt.NDArray[Any]:
        """Return tokens [start, end) of `document`, as far as it has them."""
        number = self.shard_of(document)
        reader = self._readers[number]
        first = int(reader.offsets[document - self._firsts[number]])
        length = int(self.lengths[document])
        return reader.tokens[first + max(0, start) : first + min(max(0, end), length)]

    def prompt_tokens(self, document: int) -> int:
        """Return how many tokens of `document` are of its prompt, which comes first."""
        number = self.shard_of(document)
        prompts = self._readers[number].prompts
        return 0 if prompts is None else int(prompts[document - self._firsts[number]])

    def pieces(self, document: int, start: int, end: int, tokenizer: Tokenizer) -> list[Piece]:
        """Return the pieces of `document` that begin in its tokens [start, end)."""
        before = max(0, start - CONTEXT)
        ids = self.ids(document, before, end + CONTEXT).tolist()
        return split_pieces(tokenizer, ids, start - before, end - before)
