"""Where each block of a stream begins, kept on disk so that a run goes on where it was.

<folder>.blocks/00000012   the record of block 12: its tokens, the place of its end, its hashes

A record depends on its number alone, so it does not matter which process of which run writes it.
It is a cache: without it a stream is read again from its start.
"""

import uuid
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llmtrain.data.block import REMEMBERED, Block, Place
from llmtrain.data.dedup import Digests
from llmtrain.data.record import Record, RecordReader, is_whole
from llmtrain.errors import DataError


@dataclass(frozen=True)
class Noted:
    """What is known of a block without its tokens."""

    first: int
    """Tokens of the epoch before it."""
    tokens: int
    end: Place
    is_last: bool


class BlockIndex:
    """The blocks of an epoch, as far as anyone has read it."""

    def __init__(self, folder: Path) -> None:
        """Take what is noted beside the prepared `folder`.

        Raises:
            DataError: nothing can be written there.
        """
        self._folder = folder.with_name(folder.name + ".blocks")
        self.blocks: list[Noted] = []
        try:
            self._folder.mkdir(exist_ok=True)
            while not self.is_complete and is_whole(self._path(len(self.blocks))):
                facts = RecordReader(self._path(len(self.blocks))).facts
                end = Place(facts["part"], facts["read"])
                self._append(facts["tokens"], end, is_last=facts["is_last"])
        except OSError as error:
            raise self._unwritable(error) from error

    @property
    def n_tokens(self) -> int:
        """Tokens of all blocks that are noted."""
        return self.blocks[-1].first + self.blocks[-1].tokens if self.blocks else 0

    @property
    def is_complete(self) -> bool:
        """Whether they are a whole epoch."""
        return bool(self.blocks) and self.blocks[-1].is_last

    def start(self, number: int) -> Place:
        """Return where block `number` begins."""
        return self.blocks[number - 1].end if number else Place()

    def find(self, place: int) -> int:
        """Return the number of the block that holds token `place` (< `n_tokens`) of an epoch."""
        low, high = 0, len(self.blocks)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.blocks[middle].first <= place else (low, middle)
        return low

    def note(self, number: int, block: Block) -> None:
        """Take note of block `number`, which was read.

        Raises:
            DataError: it cannot be written, or is not what it was when it was noted.
        """
        if number < len(self.blocks):
            known = self.blocks[number]
            if (known.tokens, known.end, known.is_last) != (
                block.n_tokens,
                block.end,
                block.is_last,
            ):
                raise DataError(
                    "The source has changed since it was streamed before: block "
                    f"{number} has {block.n_tokens} tokens now, and had {known.tokens}. Delete "
                    f"{self._folder} to start with what it is now."
                )
            return
        path = self._path(number)
        facts = {
            "tokens": block.n_tokens, "part": block.end.part, "read": block.end.read,
            "is_last": block.is_last,
        }  # fmt: skip
        try:
            if not is_whole(path):
                # Other threads of this process may be writing the same.
                own = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
                Record(facts, {"digests": block.digests}).save(own)
                own.replace(path)
        except OSError as error:
            raise self._unwritable(error) from error
        self._append(block.n_tokens, block.end, is_last=block.is_last)

    def digests_before(self, number: int) -> Digests:
        """Return the hashes of the last `REMEMBERED` documents before block `number`, in order."""
        found: list[Digests] = []
        while number and sum(map(len, found)) < REMEMBERED:
            number -= 1
            found.append(RecordReader(self._path(number)).array("digests"))
        return np.concatenate([np.zeros((0, 16), dtype=np.uint8), *found[::-1]])[-REMEMBERED:]

    def _append(self, tokens: int, end: Place, *, is_last: bool) -> None:
        self.blocks.append(Noted(self.n_tokens, tokens, end, is_last))

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:08d}"

    def _unwritable(self, error: OSError) -> DataError:
        return DataError(
            f"{self._folder} cannot be written: {error.strerror or error}. Free some space there, "
            "or set data.cache_dir to another folder."
        )
