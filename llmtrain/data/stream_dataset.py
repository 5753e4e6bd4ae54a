"""The training split of a stream, and how it becomes samples: what `Loader` needs of a dataset.

    epoch 0                        epoch 1
    block 0 | block 1 | block 2    block 0 | block 1 | block 2     the same documents in each epoch,
    windows of seq_len tokens, end to end, over blocks and epochs  in another order inside a block

Every rank reads the whole stream and takes its rows of it, so a step sees the same samples at any
number of ranks. One thread reads a block ahead.
"""

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from llmtrain.config.groups.data import DataConfig
from llmtrain.config.stream import STREAMED_SAMPLES
from llmtrain.data.block import BlockReader
from llmtrain.data.block_index import BlockIndex
from llmtrain.data.dataset import IGNORED, Ids, Rows, positions_after
from llmtrain.data.sampler import Sampler
from llmtrain.data.stream_folder import load_parts
from llmtrain.errors import DataError, require_choice
from llmtrain.tokenizer.base import Tokenizer
from llmtrain.tokenizer.build import load_tokenizer

ENDLESS = 1 << 62
"""Samples of a stream."""

Key = tuple[int, int]
"""Epoch and number of a block."""


class StreamDataset:
    """The documents of a source end to end, again and again, cut into windows."""

    def __init__(self, folder: Path, data: DataConfig) -> None:
        """Open the stream.

        Args:
            folder: What `prepare_stream` returned for `data`.
            data: The source.

        Raises:
            DataError: the folder is damaged.
        """
        self._folder = folder
        self._data = data
        tokenizer = self.tokenizer()
        self.vocab_size = tokenizer.vocab_size
        self.separator_id = tokenizer.separator_id
        self.tokenizer_hash = tokenizer.hash()
        self._reader = BlockReader(data, load_parts(folder), tokenizer)
        self._index = BlockIndex(folder)
        self._pool = ThreadPoolExecutor(1, "llmtrain-stream")  # it alone reads and takes notes
        self._blocks: dict[Key, Future[npt.NDArray[Any]]] = {}

    def tokenizer(self) -> Tokenizer:
        """Return the tokenizer."""
        return load_tokenizer(self._folder)

    @property
    def n_tokens(self) -> int:
        """Tokens of an epoch, as far as anyone has read it."""
        return self._index.n_tokens

    def n_samples(
        self, seq_len: int, samples: str = "windows", drop_last: bool | None = None
    ) -> int:
        """Return how many samples there are: endlessly many, none of them cut short."""
        require_choice("data.samples", samples, STREAMED_SAMPLES)
        return ENDLESS

    def sampler(self, seq_len: int, samples: str, seed: int) -> Sampler:
        """Return the order of the samples: their own; `data.shuffle_documents` is what shuffles."""
        return Sampler(self.n_samples(seq_len, samples), seed, shuffle=False)

    def describe(self, seq_len: int, samples: str) -> str:
        """Return in some words what there is to train on."""
        held = self._data.shuffle_documents
        return f"a stream, {f'shuffled by {held:,} documents' if held else 'in source order'}"

    def describe_cuts(self, seq_len: int, samples: str) -> str:
        """Return that nothing is cut: windows have no ends of their own."""
        return ""

    def fill(self, index: npt.ArrayLike, seq_len: int, samples: str = "windows") -> Rows:
        """Return samples `index`, shape (B,): sample i is tokens [i*T, i*T + T] of the stream.

        Raises:
            DataError: the source cannot be read, has changed, or has nothing to train on.
        """
        require_choice("data.samples", samples, STREAMED_SAMPLES)
        rows = np.atleast_1d(np.asarray(index, dtype=np.int64)).tolist()
        tokens_BT = np.stack([self.tokens(i * seq_len, i * seq_len + seq_len + 1) for i in rows])
        inputs_BT, labels_BT = tokens_BT[:, :-1].copy(), tokens_BT[:, 1:].copy()
        if samples == "windows":
            return Rows(inputs_BT, labels_BT, None)
        ends_BT = inputs_BT == self.separator_id
        labels_BT[ends_BT] = IGNORED
        return Rows(inputs_BT, labels_BT, positions_after(ends_BT))

    def tokens(self, start: int, end: int) -> Ids:
        """Return tokens [start, end) of the stream; reads as far as need be."""
        out = np.empty(end - start, dtype=np.int64)
        done = 0
        while done < len(out):
            epoch, number, offset = self._find(start + done)
            part = self._block((epoch, number))[offset : offset + len(out) - done]
            out[done : done + len(part)] = part
            done += len(part)
        return out

    def _find(self, place: int) -> tuple[int, int, int]:
        """Return the epoch and block of token `place` of the stream, and where it is in it."""
        index = self._index
        while not index.is_complete and index.n_tokens <= place:
            self._block((0, len(index.blocks)))
        if index.is_complete and not index.n_tokens:
            raise DataError(
                f"data.name={self._data.name}: no document is left to train on; lower "
                "data.val_ratio, or loosen data.clean."
            )
        epoch, rest = divmod(place, index.n_tokens) if index.is_complete else (0, place)
        number = index.find(rest)
        return epoch, number, rest - index.blocks[number].first

    def _block(self, key: Key) -> npt.NDArray[Any]:
        """Return the tokens of a block, and have the next one read meanwhile."""
        future = self._future(key)
        tokens = future.result()
        last = self._index.blocks[key[1]].is_last
        following = (key[0] + 1, 0) if last else (key[0], key[1] + 1)
        self._blocks = {key: future, following: self._future(following)}
        return tokens

    def _future(self, key: Key) -> Future[npt.NDArray[Any]]:
        return self._blocks.get(key) or self._pool.submit(self._read, key)

    def _read(self, key: Key) -> npt.NDArray[Any]:
        epoch, number = key
        start = self._index.start(number)
        block = self._reader.read(start, lambda: self._index.digests_before(number))
        self._index.note(number, block)
        documents = block.documents
        if self._data.shuffle_documents:
            rng = np.random.default_rng([self._data.seed, epoch, number])
            documents = [documents[i] for i in rng.permutation(len(documents))]
        return np.concatenate(documents) if documents else np.zeros(0, dtype=np.int64)
