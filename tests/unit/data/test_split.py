"""The split and the order of documents depend on content and seed alone."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmtrain.data.corpus import Corpus, CorpusWriter
from llmtrain.data.order import cut_by_hash, cut_by_size, hash_shards, order_documents
from llmtrain.data.split import find_cut, split_corpus
from llmtrain.errors import DataError


def corpus_of(path: Path, texts: Sequence[str]) -> Corpus:
    writer = CorpusWriter()
    for text in texts:
        writer.add(text)
    writer.record().save(path / "corpus")
    return Corpus([path / "corpus"])


def held_out(path: Path, texts: Sequence[str], ratio: float = 0.1, seed: int = 0) -> set[str]:
    corpus = corpus_of(path, texts)
    split = split_corpus(corpus, ratio, seed)
    assert sorted(split.train + split.validation) == list(range(len(texts)))
    assert split.train
    return set(corpus.texts(split.validation))


TEXTS = [f"document {i} " * (i % 7 + 1) for i in range(200)]


def test_share_seed_and_file_order(tmp_path: Path) -> None:
    held = held_out(tmp_path, TEXTS)
    assert held_out(tmp_path, TEXTS[::-1]) == held
    assert held_out(tmp_path, TEXTS, seed=1) != held
    assert sum(map(len, held)) == pytest.approx(0.1 * sum(map(len, TEXTS)), rel=0.02)


def test_a_new_document_moves_few(tmp_path: Path) -> None:
    before, after = held_out(tmp_path, TEXTS), held_out(tmp_path, [*TEXTS, "one more"])
    assert len(before ^ after) <= 4


@pytest.mark.parametrize("seed", range(10))
def test_a_huge_document_stays_in_training(tmp_path: Path, seed: int) -> None:
    held = held_out(tmp_path, ["huge " * 10_000, "small a", "small b"], seed=seed)
    assert held
    assert "huge " * 10_000 not in held


@pytest.mark.parametrize("ratio", [0.01, 0.5, 0.99])
def test_both_sides_get_a_document(tmp_path: Path, ratio: float) -> None:
    for texts in (["a", "b"], ["a" * 1000, "b"], ["a", "b", "c"]):
        assert held_out(tmp_path, texts, ratio)


def test_equal_texts_stay_on_one_side(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path, [f"text {i % 20}" for i in range(100)])
    split = split_corpus(corpus, 0.2, 0)
    train, held = set(corpus.texts(split.train)), set(corpus.texts(split.validation))
    assert not train & held
    assert len(split.train) + len(split.validation) == 100


def test_few_documents_make_validation_large_and_it_is_said(tmp_path: Path) -> None:
    alike = corpus_of(tmp_path, [f"{i}" + "text " * 200 for i in range(3)])
    note = split_corpus(alike, 0.05, 0).note
    assert "33% of the text" in note and "data.val_ratio=0.05" in note and "one file" in note
    many = corpus_of(tmp_path, [f"{i} " * 50 for i in range(100)])
    assert split_corpus(many, 0.05, 0).note == ""


def test_one_document_is_cut_at_a_line(tmp_path: Path) -> None:
    text = "".join(f"line {i}\n" for i in range(100))
    split = split_corpus(corpus_of(tmp_path, [text]), 0.1, 0)
    assert split.cut is not None
    head, tail = text[: split.cut], text[split.cut :]
    assert head.endswith("\n")
    assert len(tail) == pytest.approx(0.1 * len(text), rel=0.2)
    assert "one document only" in split.note
    assert split.train == split.validation == []


@given(text=st.text(st.sampled_from("ab \n世"), min_size=2), ratio=st.floats(0.01, 0.99))
@settings(max_examples=200, deadline=None)
def test_a_cut_leaves_something_on_both_sides(text: str, ratio: float) -> None:
    assert 0 < find_cut(text, ratio) < len(text)


def test_too_little_to_split(tmp_path: Path) -> None:
    for texts in ([], ["x"]):
        with pytest.raises(DataError):
            split_corpus(corpus_of(tmp_path, texts), 0.1, 0)


def test_orders(tmp_path: Path) -> None:
    def ordered(texts: Sequence[str], mode: str, seed: int = 0) -> list[str]:
        corpus = corpus_of(tmp_path, texts)
        numbers = order_documents(corpus, list(range(len(texts))), mode, seed)
        return list(corpus.texts(numbers))

    assert ordered(TEXTS, "ordered") == TEXTS
    assert ordered(TEXTS, "random") == ordered(TEXTS[::-1], "random")
    assert ordered(TEXTS, "random") != ordered(TEXTS, "random", seed=1)
    assert ordered(TEXTS, "hash") == ordered(TEXTS[::-1], "hash") == ordered(TEXTS, "hash", seed=1)
    for mode in ("random", "hash"):
        assert sorted(ordered(TEXTS, mode)) == sorted(TEXTS)
        assert ordered(TEXTS, mode) != TEXTS


def test_more_shards_split_the_old_ones(tmp_path: Path) -> None:
    digests = corpus_of(tmp_path, TEXTS).digests()
    digests = digests[np.lexsort(digests.T[::-1])]
    shards = [len(cut_by_hash(digests, tokens, 100)) - 1 for tokens in (1, 100, 101, 400, 401)]
    assert shards == [1, 1, 2, 4, 8]
    assert set(hash_shards(digests, 0)) == {0}
    assert set(hash_shards(digests, 2)) == {0, 1, 2, 3}
    assert (hash_shards(digests, 3) >> 1 == hash_shards(digests, 2)).all()
    cuts = cut_by_hash(digests, 400, 100)
    for number, (start, end) in enumerate(pairwise(cuts)):
        assert (hash_shards(digests[start:end], 2) == number).all()
    assert cuts[0] == 0 and cuts[-1] == len(digests)


@given(tokens=st.lists(st.integers(1, 50), max_size=40), full=st.integers(1, 100))
def test_a_shard_is_full_at_its_size_or_just_above(tokens: list[int], full: int) -> None:
    cuts = cut_by_size(np.array(tokens, dtype=np.int64), full)
    assert cuts[0] == 0 and cuts[-1] == len(tokens)
    sizes = [tokens[a:b] for a, b in pairwise(cuts)]
    assert [t for size in sizes for t in size] == tokens
    for size in sizes[:-1]:
        assert sum(size) >= full > sum(size[:-1])
    assert not sizes[-1] or full > sum(sizes[-1][:-1])
