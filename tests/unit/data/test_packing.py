"""Packed rows hold every piece of every document once, whole, and as best-fit decreasing says."""

import itertools

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llmtrain.data.dataset import IGNORED, TokenDataset
from llmtrain.data.packing import NOWHERE, Packing, best_fit
from tests.unit.data.conftest import Prepare

POSITIONS = st.lists(st.integers(0, 40), min_size=1, max_size=60)
"""Positions of documents, one less than their tokens; an empty one is its separator alone."""


def make_packing(positions: list[int], seq_len: int) -> tuple[Packing, np.ndarray]:
    starts = np.cumsum([0, *(n + 1 for n in positions)], dtype=np.int64)
    return Packing(starts, seq_len), starts


def plain_best_fit(lengths: list[int], capacity: int) -> list[list[int]]:
    """The algorithm as it is written: one item at a time, all rows looked at."""
    rows: list[list[int]] = []
    for length in sorted(lengths, reverse=True):
        fits = [row for row in rows if sum(row) + length <= capacity]
        if fits:
            max(fits, key=sum).append(length)
        else:
            rows.append([length])
    return sorted(rows)


@given(lengths=st.lists(st.integers(1, 40), max_size=80), capacity=st.integers(1, 40))
def test_groups_of_rows_fill_as_rows_one_by_one(lengths: list[int], capacity: int) -> None:
    lengths = [min(length, capacity) for length in lengths]
    items, edges = best_fit(np.array(lengths, dtype=np.int64), capacity)
    assert sorted(items.tolist()) == list(range(len(lengths)))
    rows = [[lengths[i] for i in items[a:b]] for a, b in itertools.pairwise(edges)]
    # Rows that are equally full may be taken in any order: what is left is the same.
    plain = plain_best_fit(lengths, capacity)
    assert sorted(map(sum, rows)) == sorted(map(sum, plain))
    assert all(row == sorted(row, reverse=True) for row in rows)


@given(positions=POSITIONS, seq_len=st.integers(1, 50))
@example(positions=[0], seq_len=4)
@example(positions=[12, 4, 8], seq_len=4)
def test_every_piece_is_in_one_row_and_whole(positions: list[int], seq_len: int) -> None:
    packing, starts = make_packing(positions, seq_len)
    places, within = packing.places(np.arange(packing.n_rows))
    expected = sorted(
        tuple(range(start + at, start + min(at + seq_len, count)))
        for start, count in zip(starts[:-1].tolist(), positions, strict=True)
        for at in range(0, count, seq_len)
    )
    found = []
    for place, position in zip(places.tolist(), within.tolist(), strict=True):
        held = len(place) - place.count(NOWHERE)
        assert set(place[held:]) <= {NOWHERE}, "padding comes last"
        assert set(position[held:]) <= {0}
        first = [t for t in range(held) if position[t] == 0]
        for a, b in zip(first, [*first[1:], held], strict=True):
            assert position[a:b] == list(range(b - a))
            found.append(tuple(place[a:b]))
    assert sorted(found) == expected
    assert packing.n_positions == sum(positions)
    padding = (places == NOWHERE).mean() if packing.n_rows else 1.0
    assert packing.padding_ratio == pytest.approx(padding, abs=1e-12)


@given(positions=POSITIONS, seq_len=st.integers(1, 50), data=st.data())
def test_any_rows_can_be_asked_for(positions: list[int], seq_len: int, data: st.DataObject) -> None:
    packing, _ = make_packing(positions, seq_len)
    asked = data.draw(st.lists(st.integers(-3, packing.n_rows + 3), max_size=9))
    places, within = packing.places(np.array(asked, dtype=np.int64))
    for row, place, position in zip(asked, places, within, strict=True):
        if 0 <= row < packing.n_rows:
            (alone,), (alone_within,) = packing.places(np.array([row]))
            assert np.array_equal(place, alone)
            assert np.array_equal(position, alone_within)
        else:
            assert set(place) <= {NOWHERE}
            assert set(position) <= {0}


def test_rows_come_in_the_order_of_documents() -> None:
    """An evaluation of the first rows reads no selection of lengths."""
    lengths = np.random.default_rng(1).integers(1, 300, 4000)
    packing, starts = make_packing(lengths.tolist(), 100)
    places, _ = packing.places(np.arange(packing.n_rows))
    document = np.searchsorted(starts, places[:, 0], side="right") - 1
    assert (np.diff(document) >= 0).all()


def test_padding_is_small_where_lengths_vary() -> None:
    """Log-normal lengths of 545 tokens in the mean, as of web text; measured 2e-5."""
    lengths = np.exp(np.random.default_rng(0).normal(5.8, 1.0, 20_000)).astype(int) + 1
    packing, _ = make_packing(lengths.tolist(), 1024)
    assert packing.padding_ratio < 1e-3


@pytest.mark.parametrize("shard_tokens", [100_000, 700], ids=["one shard", "many shards"])
def test_packed_rows_hold_the_documents(prepare_texts: Prepare, shard_tokens: int) -> None:
    texts = {f"{i:02d}.txt": f"{i} " + "ab c" * (i * 7 % 31 + 1) for i in range(40)}
    dataset = TokenDataset(prepare_texts(texts, shard_tokens=shard_tokens), "train")
    rows = dataset.fill(np.arange(dataset.n_samples(130, "packed")), 130, "packed")
    assert rows.document_positions is not None
    decode = dataset.tokenizer().decode
    found = []
    for inputs, labels, positions in zip(*rows, strict=True):
        counted = labels != IGNORED
        assert (inputs[~counted] == dataset.separator_id).all()
        inside = (positions[1:] > 0) & counted[1:]
        assert np.array_equal(labels[:-1][inside], inputs[1:][inside])
        assert (labels[:-1][counted[:-1] & ~inside] == dataset.separator_id).all()
        ends = np.flatnonzero(labels == dataset.separator_id)
        for first, last in zip([0, *(ends + 1)], ends, strict=False):
            found.append(decode(inputs[first : last + 1]))
    assert len(found) == dataset.n_documents
    assert set(found) <= {text.strip() for text in texts.values()}
    assert len(set(found)) == len(found)


def test_masked_windows_are_windows_that_know_their_documents(prepare_texts: Prepare) -> None:
    texts = {f"{i:02d}.txt": f"{i} " + "ab c" * (i * 7 % 31 + 1) for i in range(40)}
    dataset = TokenDataset(prepare_texts(texts, shard_tokens=700), "train")
    index, seq_len = np.arange(dataset.n_samples(50, drop_last=False)), 50
    plain = dataset.fill(index, seq_len)
    masked = dataset.fill(index, seq_len, "masked_windows")
    assert np.array_equal(masked.input_ids, plain.input_ids)
    assert masked.document_positions is not None
    starts = dataset._documents
    for row, number in enumerate(index.tolist()):
        place = number * seq_len + np.arange(seq_len)
        place = place[place < dataset.n_tokens]
        first = starts[np.searchsorted(starts, place, side="right") - 1]
        expected = place - np.maximum(first, number * seq_len)
        assert np.array_equal(masked.document_positions[row, : len(place)], expected)
    crosses = plain.input_ids == dataset.separator_id
    assert (masked.labels[crosses] == IGNORED).all()
    assert np.array_equal(masked.labels[~crosses], plain.labels[~crosses])
    firsts = dataset.n_documents  # of which none is a label
    assert np.count_nonzero(masked.labels != IGNORED) == dataset.n_tokens - firsts
