"""The split and the order of documents depend on content and seed alone."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmtrain.data.corpus import Corpus
from llmtrain.data.order import hash_shard, hash_shard_bits, order_documents
from llmtrain.data.split import find_cut, split_corpus
from llmtrain.errors import DataError


def corpus_of(path: Path, texts: Sequence[str]) -> Corpus:
    corpus = Corpus(path / "corpus")
    for text in texts:
        corpus.add(text.encode("utf-8"))
    return corpus


def held_out(path: Path, texts: Sequence[str], ratio: float = 0.1, seed: int = 0) -> set[str]:
    with corpus_of(path, texts) as corpus:
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
    texts = [f"text {i % 20}" for i in range(100)]
    with corpus_of(tmp_path, texts) as corpus:
        split = split_corpus(corpus, 0.2, 0)
        train, held = set(corpus.texts(split.train)), set(corpus.texts(split.validation))
        assert not train & held
        assert len(split.train) + len(split.validation) == 100


def test_few_documents_make_validation_large_and_it_is_said(tmp_path: Path) -> None:
    alike = [f"{i}" + "text " * 200 for i in range(3)]
    with corpus_of(tmp_path, alike) as corpus:
        note = split_corpus(corpus, 0.05, 0).note
    assert "33% of the text" in note and "data.val_ratio=0.05" in note and "one file" in note
    with corpus_of(tmp_path, [f"{i} " * 50 for i in range(100)]) as corpus:
        assert split_corpus(corpus, 0.05, 0).note == ""


def test_one_document_is_cut_at_a_line(tmp_path: Path) -> None:
    text = "".join(f"line {i}\n" for i in range(100))
    with corpus_of(tmp_path, [text]) as corpus:
        split = split_corpus(corpus, 0.1, 0)
        head, tail = corpus.text(split.train[0]), corpus.text(split.validation[0])
    assert head + tail == text
    assert head.endswith("\n")
    assert len(tail) == pytest.approx(0.1 * len(text), rel=0.2)
    assert "one document only" in split.note


@given(text=st.text(st.sampled_from("ab \n世"), min_size=2), ratio=st.floats(0.01, 0.99))
@settings(max_examples=200, deadline=None)
def test_a_cut_leaves_something_on_both_sides(text: str, ratio: float) -> None:
    assert 0 < find_cut(text, ratio) < len(text)


def test_too_little_to_split(tmp_path: Path) -> None:
    for texts in ([], ["x"]):
        with corpus_of(tmp_path, texts) as corpus, pytest.raises(DataError):
            split_corpus(corpus, 0.1, 0)


def test_orders(tmp_path: Path) -> None:
    def ordered(texts: Sequence[str], mode: str, seed: int = 0) -> list[str]:
        with corpus_of(tmp_path, texts) as corpus:
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
    assert [hash_shard_bits(n, 100) for n in (1, 100, 101, 400, 401)] == [0, 0, 1, 2, 3]
    with corpus_of(tmp_path, TEXTS) as corpus:
        digests = [corpus.digest(n) for n in range(len(TEXTS))]
    assert {hash_shard(d, 0) for d in digests} == {0}
    assert {hash_shard(d, 2) for d in digests} == {0, 1, 2, 3}
    assert all(hash_shard(d, 3) // 2 == hash_shard(d, 2) for d in digests)
