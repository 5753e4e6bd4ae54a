"""N-grams against a plain definition, sketches against the similarity they stand for."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmtrain.config.groups.dedup import NearConfig
from llmtrain.data import dedup_shingle
from llmtrain.data.dedup_shingle import Shingler, jaccard
from llmtrain.data.dedup_sketch import FOUND_RATIO, choose_bands, make_sketches
from tests.unit.data.duplicates import true_grams, true_similarity

GOLDEN = [
    93943809, 79222413, 168718343, 497193285, 93610912, 608332554, 119581174, 188409616,
    43891557, 146958010, 57322571, 48387657, 468203797, 29018744, 72953460, 1428140599,
]  # fmt: skip
"""A sketch of rensa 0.5, algorithm version 2."""

WORDS = Shingler(NearConfig())

TEXT = st.text(st.sampled_from("abAB \n,.-_7世界今天ßé"), max_size=60)


@given(texts=st.lists(TEXT, max_size=6))
@settings(max_examples=200, deadline=None)
def test_shingles_are_the_n_grams(texts: list[str]) -> None:
    """Hash for hash: as many different ones as n-grams, equal where the n-grams are."""
    hashes, starts = WORDS.hashes(texts)
    assert len(starts) == len(texts) + 1
    parts = [hashes[a:b] for a, b in pairwise(starts)]
    for text, part in zip(texts, parts, strict=True):
        assert len(set(part.tolist())) == len(true_grams(text))
    for one, part in zip(texts, parts, strict=True):
        for two, other in zip(texts, parts, strict=True):
            assert jaccard(np.unique(part), np.unique(other)) == true_similarity(one, two)


def test_long_documents_are_cut_between_words(monkeypatch: pytest.MonkeyPatch) -> None:
    text = " ".join(f"word{i}" for i in range(2000)) + "今" * 500
    whole = Shingler(NearConfig()).hashes([text, "next to it"])
    monkeypatch.setattr(dedup_shingle, "PIECE_CHARACTERS", 2000)
    cut = Shingler(NearConfig()).hashes([text, "next to it"])
    assert np.array_equal(whole[0], cut[0])
    assert np.array_equal(whole[1], cut[1])


def test_a_word_without_end() -> None:
    text = "x" * (3 * dedup_shingle.PIECE_CHARACTERS)
    assert len(Shingler(NearConfig(ngram=1)).shingles(text)) >= 1


def test_characters() -> None:
    shingler = Shingler(NearConfig(unit="characters", ngram=3))
    assert len(shingler.shingles("ab, cd")) == 2
    assert np.array_equal(shingler.shingles("ABCD"), shingler.shingles("ab, cd"))


def test_combining_marks_belong_to_their_word() -> None:
    assert len(Shingler(NearConfig(ngram=1)).shingles("नमस्ते दुनिया")) == 2


@pytest.mark.parametrize("size", [20, 300])
@pytest.mark.parametrize("similarity", [0.5, 0.9])
def test_sketches_estimate_the_similarity(size: int, similarity: float) -> None:
    rng, pairs, permutations = np.random.default_rng(6), 500, 128
    common = round(2 * size * similarity / (1 + similarity))
    hashes = rng.integers(0, 2**64, size=(pairs, 2, size), dtype=np.uint64)
    hashes[:, 1, :common] = hashes[:, 0, :common]
    starts = np.arange(0, hashes.size + 1, size)
    found = make_sketches(hashes.ravel(), starts, permutations, seed=1)
    estimates = (found[::2] == found[1::2]).mean(axis=1)
    true = common / (2 * size - common)
    deviation = np.sqrt(true * (1 - true) / permutations)
    assert abs(estimates.mean() - true) < 5 * deviation / np.sqrt(pairs)
    assert estimates.std() < 1.1 * deviation


def test_sketches_stay_what_they_are() -> None:
    """Another version of the library would find others at the edge: then the cache must know."""
    hashes = np.arange(1, 41, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    found = make_sketches(hashes, np.array([0, 40]), 16, seed=1)
    assert found.tolist() == [GOLDEN]


@pytest.mark.parametrize("similarity", [0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 1.0])
@pytest.mark.parametrize("permutations", [32, 128, 256])
def test_bands_find_what_they_must_and_little_else(similarity: float, permutations: int) -> None:
    bands, rows = choose_bands(similarity, permutations)
    assert bands * rows <= permutations

    def share(s: float, b: int, r: int) -> float:
        return 1 - (1 - s**r) ** b

    assert share(similarity, bands, rows) >= FOUND_RATIO
    if rows < permutations:
        assert share(similarity, permutations // (rows + 1), rows + 1) < FOUND_RATIO
