"""Made-up text: random words from a Zipf law (word r has a share of about 1/r)."""

from collections.abc import Iterator

import numpy as np

from llmtrain.config.groups.data import SyntheticDataConfig

LETTERS = np.array(list("etaoinshrdlucmfwypvbgkjqxz"))
WORDS_A_LINE = 12


def synthetic_texts(config: SyntheticDataConfig, start: int, end: int) -> Iterator[str]:
    """Yield the texts of numbers `start` to `end` - 1; equal for equal `config.seed`."""
    words = _make_words(config.vocabulary, config.seed)
    share = 1.0 / np.arange(1, len(words) + 1)
    cumulative = np.cumsum(share / share.sum())
    for number in range(start, end):
        rng = np.random.default_rng([config.seed, number])
        ranks = np.searchsorted(cumulative, rng.random(config.words_per_document), side="right")
        picked = words[np.minimum(ranks, len(words) - 1)]
        lines = (picked[i : i + WORDS_A_LINE] for i in range(0, len(picked), WORDS_A_LINE))
        yield "\n".join(" ".join(line) for line in lines) + "\n"


def _make_words(count: int, seed: int) -> np.ndarray:
    """Return `count` different words, short ones first: frequent words are short."""
    words: list[str] = []
    for index in range(count):
        # Bijective base 26 spells every index differently.
        word, rest = "", index + 1
        while rest:
            rest, letter = divmod(rest - 1, len(LETTERS))
            word += LETTERS[letter]
        words.append(word)
    rng = np.random.default_rng([seed, count])
    # Mixed within one length only, so that another seed gives another language.
    order = sorted(range(count), key=lambda i: (len(words[i]), rng.random()))
    return np.array([words[i] for i in order])
