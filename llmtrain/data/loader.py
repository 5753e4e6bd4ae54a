"""Batches: what every step trains on, read ahead by a thread. The one file here that knows torch.

A step takes the next global_batch_size positions of the sampler's stream as its rows. Ranks and
micro-batches only cut those rows, so a step sees the same samples however it is cut.
"""

import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from llmtrain.data.dataset import IGNORED
from llmtrain.data.opening import Dataset
from llmtrain.errors import require

PREFETCH_STEPS = 4
POLL_S = 0.1
"""How often a waiting thread looks whether it should stop."""


@dataclass(frozen=True)
class Batch:
    """Some rows of a step. Shapes: B rows, T = seq_len."""

    input_ids: Tensor
    """(B, T) int64."""
    labels: Tensor
    """(B, T) int64, already shifted; -100 is not counted."""
    sample_ids: Tensor
    """(B,) int64: the position of each row in the stream of the whole run, in validation the
    sample's number; a key for randomness that no layout changes."""
    counted_tokens: int
    """Labels that are counted in the loss. Counted on the CPU: no device is waited for."""
    document_positions: Tensor | None = None
    """(B, T) int64: the position of each token in its document, 0 at each start, so that they say
    which tokens attend to which; None: each row is one document."""

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on `device`; from pinned memory the copy does not wait."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def part(self, rank: int, parts: int) -> "Batch":
        """Return the positions of part `rank` of `parts`.

        `document_positions` stay the whole rows', for attention, and so do `counted_tokens`.
        """
        if parts == 1:
            return self
        ids, labels = self.input_ids.chunk(parts, 1)[rank], self.labels.chunk(parts, 1)[rank]
        return replace(self, input_ids=ids.contiguous(), labels=labels.contiguous())

    def pin(self) -> "Batch":
        """Return the batch in page-locked memory."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        within = self.document_positions
        return Batch(
            change(self.input_ids),
            change(self.labels),
            change(self.sample_ids),
            self.counted_tokens,
            None if within is None else change(within),
        )


class Loader:
    """The training batches of one data-parallel rank, step after step."""

    def __init__(
        self,
        dataset: Dataset,
        *,
        seq_len: int,
        samples: str,
        seed: int,
        global_batch_size: int,
        micro_batch_size: int,
        dp_rank: int,
        dp_size: int,
        device: torch.device | None = None,
    ) -> None:
        """Load from `dataset`.

        Args:
            dataset: The split `train`.
            seq_len: Tokens in a row.
            samples: data.samples.
            seed: Decides the order of the samples.
            global_batch_size: Rows of a step over all ranks.
            micro_batch_size: Rows of a batch; those of a rank are cut in order.
            dp_rank: This rank among those that see different data.
            dp_size: How many see different data.
            device: Where batches go; None: they stay on the CPU.

        Raises:
            ConfigError: the sizes do not divide.
            DataError: the split is too small for one sample.
        """
        require(
            global_batch_size % dp_size == 0,
            f"train.global_batch_size={global_batch_size} must be divisible by the "
            f"{dp_size} data-parallel ranks.",
        )
        rows = global_batch_size // dp_size
        require(
            rows % micro_batch_size == 0,
            f"train.micro_batch_size={micro_batch_size} must divide the {rows} rows of a rank "
            f"(train.global_batch_size={global_batch_size} over {dp_size} ranks).",
        )
        self.dataset = dataset
        self.sampler = dataset.sampler(seq_len, samples, seed)
        self._seq_len = seq_len
        self._samples = samples
        self.global_batch_size = global_batch_size
        self._micro_batch_size = micro_batch_size
        self._rows = range(dp_rank * rows, (dp_rank + 1) * rows)
        self._device = device
        self._prefetch: _Prefetch | None = None

    def start(self, position: int) -> None:
        """Start reading ahead from `position` on; what was read before is forgotten.

        Args:
            position: Samples that the run has seen so far, over all ranks.
        """
        self.close()
        self._prefetch = _Prefetch(self, position)

    def next(self) -> list[Batch]:
        """Return the micro-batches of the next step, in order.

        Raises:
            RuntimeError: `start` was not called.
            Exception: what went wrong in the reading thread.
        """
        if self._prefetch is None:
            raise RuntimeError("Loader.next() before Loader.start(position)")
        batches = self._prefetch.next()
        if self._device is None:
            return batches
        return [batch.to(self._device) for batch in batches]

    def load(self, first: int) -> list[Batch]:
        """Return the micro-batches of the step from position `first`, on the CPU, read now."""
        batches = []
        for start in range(self._rows.start, self._rows.stop, self._micro_batch_size):
            positions = first + np.arange(start, start + self._micro_batch_size, dtype=np.int64)
            index = self.sampler.run(first + start, self._micro_batch_size)
            batch = _make_batch(self.dataset, index, positions, self._seq_len, self._samples)
            cuda = self._device is not None and self._device.type == "cuda"
            batches.append(batch.pin() if cuda else batch)
        return batches

    def close(self) -> None:
        """Stop reading ahead. The loader may be started again."""
        if self._prefetch is not None:
            self._prefetch.close()
            self._prefetch = None

    def __enter__(self) -> Self:
        """Return the loader itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop reading ahead."""
        self.close()


class _Prefetch:
    """A thread that reads steps into a queue of `PREFETCH_STEPS`, until it is closed or fails."""

    def __init__(self, loader: Loader, position: int) -> None:
        self._queue: queue.Queue[list[Batch] | BaseException] = queue.Queue(PREFETCH_STEPS)
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(
            target=self._run, args=(loader, position), name="llmtrain-loader", daemon=True
        )
        self._thread.start()

    def next(self) -> list[Batch]:
        if self._error is None:
            item = self._queue.get()
            if not isinstance(item, BaseException):
                return item
            self._error = item
        raise self._error

    def close(self) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self, loader: Loader, position: int) -> None:
        while not self._stop.is_set():
            try:
                item: list[Batch] | BaseException = loader.load(position)
            except BaseException as error:
                item = error
            self._put(item)
            if isinstance(item, BaseException):
                return
            position += loader.global_batch_size

    def _put(self, item: list[Batch] | BaseException) -> None:
        while not self._stop.is_set():
            try:
                self._queue.put(item, timeout=POLL_S)
                return
            except queue.Full:
                continue


class ValidationBatches:
    """The validation split in order, once, in the same number of batches on every rank.

    Batch b of rank r holds samples [(b*dp_size + r) * batch_size, + batch_size); those behind the
    last are rows of ignored labels.
    """

    def __init__(
        self,
        dataset: Dataset,
        seq_len: int,
        batch_size: int,
        dp_rank: int,
        dp_size: int,
        max_tokens: float | None = None,
        samples: str = "windows",
        device: torch.device | None = None,
    ) -> None:
        """Read from `dataset`.

        Args:
            dataset: The split `validation`.
            seq_len: Tokens in a row.
            batch_size: Rows of a batch on one rank.
            dp_rank: This rank among those that see different data.
            dp_size: How many see different data.
            max_tokens: Tokens read over all ranks, at most, but one row at least; None: all.
            samples: data.samples.
            device: Where batches go; None: they stay on the CPU.

        Raises:
            DataError: the split has no sample.
        """
        count = dataset.n_samples(seq_len, samples, drop_last=False)
        if max_tokens is not None:
            count = min(count, max(1, int(max_tokens // seq_len)))
        self.n_samples = count
        self._dataset = dataset
        self._seq_len = seq_len
        self._samples = samples
        self._batch_size = batch_size
        self._dp_rank = dp_rank
        self._dp_size = dp_size
        self._device = device

    def __len__(self) -> int:
        """Return how many batches every rank yields."""
        return -(-self.n_samples // (self._batch_size * self._dp_size))

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches of this rank, from the start."""
        for number in range(len(self)):
            first = (number * self._dp_size + self._dp_rank) * self._batch_size
            places = np.arange(first, first + self._batch_size, dtype=np.int64)
            index = np.where(places < self.n_samples, places, -1)
            batch = _make_batch(self._dataset, index, places, self._seq_len, self._samples)
            yield batch if self._device is None else batch.to(self._device)


def _make_batch(
    dataset: Dataset,
    index: npt.NDArray[np.int64],
    positions: npt.NDArray[np.int64],
    seq_len: int,
    samples: str,
) -> Batch:
    rows = dataset.fill(index, seq_len, samples)
    within = rows.document_positions
    return Batch(
        torch.from_numpy(rows.input_ids),
        torch.from_numpy(rows.labels),
        torch.from_numpy(positions),
        int((rows.labels != IGNORED).sum()),
        None if within is None else torch.from_numpy(within),
    )
