"""A step sees the same samples however it is cut, from any step on, and errors come through."""

import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from llmtrain.data.dataset import IGNORED, TokenDataset
from llmtrain.data.loader import Batch, Loader, ValidationBatches
from llmtrain.errors import ConfigError
from tests.unit.data.conftest import Prepare, many_texts

SEQ_LEN = 32
GLOBAL_BATCH_SIZE = 16


@pytest.fixture
def folder(prepare_texts: Prepare) -> Path:
    return prepare_texts(many_texts(60), shard_tokens=3000, val_ratio=0.2)


def make_loader(
    dataset: TokenDataset,
    rank: int = 0,
    size: int = 1,
    micro: int = 4,
    samples: str = "windows",
    seq_len: int = SEQ_LEN,
) -> Loader:
    return Loader(
        dataset,
        seq_len=seq_len,
        samples=samples,
        seed=5,
        global_batch_size=GLOBAL_BATCH_SIZE,
        micro_batch_size=micro,
        dp_rank=rank,
        dp_size=size,
    )


def join(batches: list[Batch]) -> dict[str, torch.Tensor]:
    return {
        name: torch.cat([getattr(b, name) for b in batches])
        for name in ("input_ids", "labels", "sample_ids", "document_positions")
        if getattr(batches[0], name) is not None
    }


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("micro", [1, 2, 4])
@pytest.mark.parametrize("samples", ["windows", "masked_windows", "packed"])
def test_a_step_is_the_same_however_it_is_cut(
    folder: Path, size: int, micro: int, samples: str
) -> None:
    dataset = TokenDataset(folder, "train")
    for step in (0, 3, 1000):
        first = step * GLOBAL_BATCH_SIZE
        whole = join(make_loader(dataset, micro=16, samples=samples).load(first))
        assert ("document_positions" in whole) == (samples != "windows")
        ranks = [
            # Of a process of its own each: what one computes, another does too.
            make_loader(TokenDataset(folder, "train"), rank, size, micro, samples).load(first)
            for rank in range(size)
        ]
        assert {len(batches) for batches in ranks} == {GLOBAL_BATCH_SIZE // size // micro}
        assert equal(join([batch for batches in ranks for batch in batches]), whole)
        assert whole["sample_ids"].tolist() == list(range(first, first + GLOBAL_BATCH_SIZE))


def test_rows_are_what_the_sampler_says(folder: Path) -> None:
    dataset = TokenDataset(folder, "train")
    loader = make_loader(dataset)
    rows = join(loader.load(7))
    index = loader.sampler.sample(rows["sample_ids"].numpy())
    inputs, labels, _ = dataset.fill(index, SEQ_LEN)
    assert np.array_equal(rows["input_ids"].numpy(), inputs)
    assert np.array_equal(rows["labels"].numpy(), labels)
    assert rows["input_ids"].dtype == rows["labels"].dtype == torch.int64


def test_an_epoch_has_every_sample_once(folder: Path) -> None:
    loader = make_loader(TokenDataset(folder, "train"))
    n = loader.sampler.n_samples
    positions = torch.cat(
        [b.sample_ids for s in range(0, n, GLOBAL_BATCH_SIZE) for b in loader.load(s)]
    )[:n]
    assert sorted(loader.sampler.sample(positions.numpy()).tolist()) == list(range(n))


def test_prefetch_gives_the_steps_in_order_from_anywhere(folder: Path) -> None:
    with make_loader(TokenDataset(folder, "train")) as loader:
        for start in (0, 5, 2):
            loader.start(start)
            for step in range(8):
                expected = loader.load(start + step * GLOBAL_BATCH_SIZE)
                assert equal(join(loader.next()), join(expected))


def test_closing_ends_the_thread(folder: Path) -> None:
    def running() -> int:
        return sum(t.name == "llmtrain-loader" for t in threading.enumerate())

    loader = make_loader(TokenDataset(folder, "train"))
    with pytest.raises(RuntimeError, match="start"):
        loader.next()
    loader.start(0)
    loader.next()
    assert running() == 1
    loader.start(3)
    assert running() == 1
    loader.close()
    loader.close()
    assert running() == 0


def test_an_error_in_the_thread_comes_out_of_next(folder: Path) -> None:
    loader = make_loader(TokenDataset(folder, "train"))
    # A torn shard: fewer tokens than the manifest promised when the folder was opened.
    for reader in loader.dataset._readers:
        reader.tokens = reader.tokens[:100]
    with loader:
        loader.start(0)
        for _ in range(2):
            with pytest.raises(IndexError):
                for _ in range(50):
                    loader.next()


def test_documents_mode(folder: Path) -> None:
    dataset = TokenDataset(folder, "train")
    loader = Loader(
        dataset,
        seq_len=64,
        samples="documents",
        seed=5,
        global_batch_size=4,
        micro_batch_size=4,
        dp_rank=0,
        dp_size=1,
    )
    assert loader.sampler.n_samples == dataset.n_documents
    starts = {tuple(row) for row in dataset.fill(range(dataset.n_documents), 64, "documents")[0]}
    for row in loader.load(3)[0].input_ids.tolist():
        assert tuple(row) in starts


@pytest.mark.parametrize("size", [1, 4])
def test_an_epoch_of_packed_rows_has_every_document_once(prepare_texts: Prepare, size: int) -> None:
    """Whatever the ranks; from the middle of an epoch on as from its start."""
    texts = {f"{i:02d}.txt": f"{i:02d} " + "word " * (i * 7 % 31) for i in range(40)}
    dataset = TokenDataset(prepare_texts(texts, shard_tokens=700), "train")
    seq_len = 200
    n = dataset.n_samples(seq_len, "packed")
    found: list[str] = []
    for first in range(3 * n, 4 * n, GLOBAL_BATCH_SIZE):
        for rank in range(size):
            loader = make_loader(dataset, rank, size, samples="packed", seq_len=seq_len)
            rows = join(loader.load(first))
            rows = {name: value[rows["sample_ids"] < 4 * n] for name, value in rows.items()}
            text = rows["input_ids"][rows["labels"] != IGNORED].numpy()
            starts = rows["document_positions"][rows["labels"] != IGNORED] == 0
            parts = np.split(text, starts.nonzero().flatten().numpy())[1:]
            found += [dataset.tokenizer().decode(part) for part in parts]
    everything = dataset.tokens(0, dataset.n_tokens)
    ends = np.flatnonzero(everything == dataset.separator_id)
    documents = np.split(everything, ends + 1)[:-1]
    assert sorted(found) == sorted(dataset.tokenizer().decode(d[:-1]) for d in documents)


def test_sizes_that_do_not_divide(folder: Path) -> None:
    dataset = TokenDataset(folder, "train")
    with pytest.raises(ConfigError, match=r"train\.global_batch_size=16 .* 3"):
        make_loader(dataset, size=3)
    with pytest.raises(ConfigError, match=r"train\.micro_batch_size=3 .* 8 rows"):
        make_loader(dataset, size=2, micro=3)


@pytest.mark.parametrize("samples", ["windows", "masked_windows", "documents", "packed"])
@pytest.mark.parametrize(("batch_size", "size"), [(1, 1), (3, 1), (4, 2), (5, 4), (64, 3)])
def test_validation_counts_every_token_once(
    folder: Path, batch_size: int, size: int, samples: str
) -> None:
    dataset = TokenDataset(folder, "validation")
    ranks = [
        ValidationBatches(dataset, SEQ_LEN, batch_size, rank, size, samples=samples)
        for rank in range(size)
    ]
    batches = [list(rank) for rank in ranks]
    assert {len(b) for b in batches} == {len(ranks[0])}
    assert all(b.input_ids.shape == (batch_size, SEQ_LEN) for part in batches for b in part)
    rows = join([b for part in batches for b in part])
    order = rows["sample_ids"].argsort()
    assert rows["sample_ids"].unique().numel() == len(order)
    labels = rows["labels"][order]
    counted = labels[labels != -100].numpy()
    if samples in ("masked_windows", "packed"):
        # All tokens but the first of each document; packed rows have their own order.
        everything = np.delete(dataset.tokens(0, dataset.n_tokens), dataset._documents[:-1])
        assert sorted(counted.tolist()) == sorted(everything.tolist())
    elif samples == "windows":
        assert np.array_equal(counted, dataset.tokens(1, dataset.n_tokens))
    else:
        _, expected, _ = dataset.fill(range(dataset.n_documents), SEQ_LEN, "documents")
        assert np.array_equal(counted, expected[expected != -100])


def test_validation_can_be_cut_short(folder: Path) -> None:
    dataset = TokenDataset(folder, "validation")
    for tokens, rows in ((5 * SEQ_LEN, 5), (5 * SEQ_LEN + 1.5, 5), (1, 1), (1e12, None)):
        batches = ValidationBatches(dataset, SEQ_LEN, 2, 0, 1, max_tokens=tokens)
        expected = rows or dataset.n_samples(SEQ_LEN)
        labels = torch.cat([b.labels for b in batches])
        assert int((labels != -100).any(1).sum()) == expected == batches.n_samples
    assert [b.sample_ids.tolist() for b in batches] == [b.sample_ids.tolist() for b in batches]
