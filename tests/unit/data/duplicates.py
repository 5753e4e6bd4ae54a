"""A corpus of known duplicates, and what is true of it, found without the code under test."""

import random
import re
from collections import defaultdict
from dataclasses import dataclass
from itertools import combinations

from llmtrain.data.locate import SHAKESPEARE

EDIT_LEVELS = (0.003, 0.006, 0.012, 0.025, 0.05)
"""Share of the words that is changed, dropped or put in."""

NGRAM = 5

HAN = [chr(code) for code in range(0x4E00, 0x4E00 + 3000)]


@dataclass(frozen=True)
class Made:
    """A document and how it came to be."""

    text: str
    kind: str
    """original | exact | near | template."""


def make_corpus(seed: int, originals: int) -> list[Made]:
    """Return English, Chinese and templated documents with their copies, shuffled."""
    rng = random.Random(seed)
    texts = _passages(rng, originals) + [_chinese(rng) for _ in range(originals // 4)]
    made = [Made(text, "original") for text in texts]
    for text in texts:
        made += [Made(edit(text, level, rng), "near") for level in EDIT_LEVELS]
    made += [Made(text, "exact") for text in rng.sample(texts, originals // 4)]
    for blanks in (24, 60):
        made += [Made(text, "template") for text in _templated(rng, blanks, originals // 4)]
    rng.shuffle(made)
    return made


def edit(text: str, level: float, rng: random.Random) -> str:
    """Return `text` with at least one of its words, or Chinese characters, changed."""
    spaced = " " in text
    words = text.split(" ") if spaced else list(text)
    for _ in range(max(1, round(level * len(words)))):
        at = rng.randrange(len(words))
        new = _word(rng) if spaced else rng.choice(HAN)
        how = rng.choice(("change", "drop", "put in"))
        words[at : at + (how != "put in")] = [] if how == "drop" else [new]
    return (" " if spaced else "").join(words)


def true_grams(text: str) -> set[tuple[str, ...]]:
    """Return the n-grams of `text`: what the near-duplicates are defined by."""
    words = re.findall(r"[\u4e00-\u9fff]|[^\W\u4e00-\u9fff_]+", text.lower())
    if not words:
        return set()
    return {tuple(words[i : i + NGRAM]) for i in range(max(1, len(words) - NGRAM + 1))}


def true_similarity(one: str, two: str) -> float:
    """Return the Jaccard similarity of two texts."""
    a, b = true_grams(one), true_grams(two)
    return len(a & b) / max(1, len(a | b))


def true_pairs(texts: list[str], at_least: float) -> dict[tuple[int, int], float]:
    """Return the similarity of every pair (smaller index first) of at least `at_least`."""
    grams = [true_grams(text) for text in texts]
    holders: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for number, found in enumerate(grams):
        for gram in found:
            holders[gram].append(number)
    shared: dict[tuple[int, int], int] = defaultdict(int)
    for numbers in holders.values():
        for pair in combinations(numbers, 2):
            shared[pair] += 1
    pairs = {}
    for (a, b), common in shared.items():
        similarity = common / (len(grams[a]) + len(grams[b]) - common)
        if similarity >= at_least:
            pairs[a, b] = similarity
    return pairs


def _passages(rng: random.Random, count: int) -> list[str]:
    words = "\n".join(path.read_text() for path in sorted(SHAKESPEARE.glob("*.txt"))[:10])
    stream, passages = words.split(), []
    for _ in range(count):
        size = rng.choice((40, 120, 400))
        passages.append(" ".join(stream[:size]))
        stream = stream[size:]
    assert stream, "the corpus is too short"
    return passages


def _chinese(rng: random.Random) -> str:
    return "".join(rng.choice(HAN) for _ in range(rng.choice((100, 300)))) + "。"


def _templated(rng: random.Random, blanks: int, count: int) -> list[str]:
    """Return documents of one frame of 200 words, a run of `blanks` words in which differs."""
    frame = [_word(rng) for _ in range(200)]
    return [
        " ".join(frame[:100] + [_word(rng) for _ in range(blanks)] + frame[100:])
        for _ in range(count)
    ]


def _word(rng: random.Random) -> str:
    return "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(rng.randint(2, 9)))
