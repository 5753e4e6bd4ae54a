"""Text as a set of n-gram hashes ("shingles"), the form in which documents are compared.

Letters are made small, and everything that is neither letter, digit nor combining mark only
separates: layout, punctuation and capitals do not make two documents different. All of it runs in
numpy over many documents at once, at tens of megabytes a second.
"""

import functools
import sys
import unicodedata
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from llmtrain.config.groups.dedup import NearConfig
from llmtrain.data.spaceless import SPACELESS

Hashes = npt.NDArray[np.uint64]

PIECE_CHARACTERS = 1 << 19
"""Text that is hashed at once; 60 bytes of scratch a character."""

LONGEST_WORD = 1000
"""Characters that are searched back for a blank where a document is cut into pieces."""

# Odd, so that it has an inverse modulo 2**64: the golden ratio, as in Knuth, TAOCP 3, section 6.4.
MULTIPLIER = 0x9E3779B97F4A7C15
INVERSE = pow(MULTIPLIER, -1, 1 << 64)

SEPARATOR, IN_WORD, ALONE = 0, 1, 2


class Shingler:
    """Turns documents into n-gram hashes."""

    def __init__(self, config: NearConfig) -> None:
        """Take `ngram` and `unit` from `config`."""
        self._n = config.ngram
        self._kinds = _kinds().copy()
        if config.unit == "characters":
            self._kinds[self._kinds == IN_WORD] = ALONE
        self._powers = _powers(MULTIPLIER, PIECE_CHARACTERS + 1)
        self._inverses = _powers(INVERSE, PIECE_CHARACTERS + 1)

    def hashes(self, texts: Sequence[str]) -> tuple[Hashes, npt.NDArray[np.int64]]:
        """Return the n-gram hashes of every text, repeats included.

        A text with fewer words than an n-gram has one hash, of all its words; a text without any
        has none.

        Returns:
            All hashes, shape (n-grams,), text after text; and where each text's start, shape
            (len(texts) + 1,).
        """
        words, counts = self._words(texts)
        n = self._n
        ends = np.cumsum(counts)
        starts = ends - counts
        padded = np.concatenate([words, np.zeros(n, dtype=np.uint64)])
        grams = np.zeros(len(words), dtype=np.uint64)
        short = starts[(counts > 0) & (counts < n)]
        short_ends = ends[(counts > 0) & (counts < n)]
        whole = np.zeros(len(short), dtype=np.uint64)
        for k in range(n):
            grams += padded[k : k + len(words)] * self._powers[k]
            whole += np.where(short + k < short_ends, padded[short + k], 0) * self._powers[k]
        grams[short] = whole
        place = np.arange(len(words))
        # Those that reach into the next text go; a text's first stays, whole or not.
        kept = place + n <= np.repeat(ends, counts)
        kept[starts[counts > 0]] = True
        found = np.where(counts > 0, np.maximum(counts - n + 1, 1), 0)
        return mix(grams[kept]), np.concatenate([[0], np.cumsum(found)])

    def shingles(self, text: str) -> Hashes:
        """Return the set of n-gram hashes of `text`, sorted, shape (different n-grams,)."""
        return np.unique(self.hashes([text])[0])

    def _words(self, texts: Sequence[str]) -> tuple[Hashes, npt.NDArray[np.int64]]:
        """Return the hash of every word of all texts, and how many words each text has."""
        words: list[Hashes] = []
        counts = np.zeros(len(texts), dtype=np.int64)
        held: list[str] = []
        owners: list[int] = []
        size = 0
        for owner, piece in _pieces(texts):
            if held and size + len(piece) + 1 > PIECE_CHARACTERS:
                words.append(self._count_words(held, owners, counts))
                held, owners, size = [], [], 0
            held.append(piece)
            owners.append(owner)
            size += len(piece) + 1
        if held:
            words.append(self._count_words(held, owners, counts))
        return (np.concatenate(words) if words else np.zeros(0, dtype=np.uint64)), counts

    def _count_words(
        self, pieces: list[str], owners: list[int], counts: npt.NDArray[np.int64]
    ) -> Hashes:
        """Return the hash of every word in `pieces`; add their number to `counts` of `owners`."""
        codes = np.frombuffer("\n".join(pieces).encode("utf-32-le"), dtype="<u4")
        kinds = self._kinds[codes]
        inside = np.flatnonzero(kinds)
        kinds = kinds[inside]
        # A word starts behind a gap, at a character that is a word, and behind such a character.
        opens = np.ones(len(inside), dtype=bool)
        opens[1:] = (kinds[1:] == ALONE) | (kinds[:-1] == ALONE) | (np.diff(inside) > 1)
        starts = np.flatnonzero(opens)
        ends = np.append(starts[1:], len(inside))
        # sum of c[j] M^(j - start) over a word = (S[end] - S[start]) / M^start, modulo 2^64,
        # for the running sum S of c[j] M^j.
        sums = np.zeros(len(inside) + 1, dtype=np.uint64)
        np.cumsum(codes[inside] * self._powers[: len(inside)], out=sums[1:])
        words = (sums[ends] - sums[starts]) * self._inverses[starts]
        bounds = np.cumsum([0, *(len(piece) + 1 for piece in pieces)])
        places = np.searchsorted(inside[starts], bounds)
        np.add.at(counts, owners, np.diff(places))
        return mix(words)


def jaccard(one: Hashes, two: Hashes) -> float:
    """Return |one ∩ two| / |one ∪ two| of two sorted sets; 0 where both are empty."""
    if not len(one) or not len(two):
        return 0.0
    small, large = sorted((one, two), key=len)
    at = np.searchsorted(large, small)
    at[at == len(large)] = 0
    common = int(np.count_nonzero(large[at] == small))
    return common / (len(one) + len(two) - common)


def mix(values: Hashes) -> Hashes:
    """Return `values` with every bit spread over all bits (the finalizer of SplitMix64)."""
    values = values ^ (values >> np.uint64(30))
    values *= np.uint64(0xBF58476D1CE4E5B9)
    values ^= values >> np.uint64(27)
    values *= np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)
    return values


def _pieces(texts: Sequence[str]) -> Iterator[tuple[int, str]]:
    """Yield (index of the text, small letters), long texts cut between words."""
    for owner, text in enumerate(texts):
        small, start = text.lower(), 0
        while len(small) - start >= PIECE_CHARACTERS:
            end = start + PIECE_CHARACTERS - 1
            blank = max(small.rfind(mark, end - LONGEST_WORD, end) for mark in " \n")
            end = blank if blank > start else end
            yield owner, small[start:end]
            start = end
        yield owner, small[start:] if start else small


def _powers(base: int, count: int) -> Hashes:
    """Return base^0 ... base^(count - 1) modulo 2^64, shape (count,)."""
    powers = np.full(count, base, dtype=np.uint64)
    powers[0] = 1
    return np.multiply.accumulate(powers)


@functools.cache
def _kinds() -> npt.NDArray[np.uint8]:
    """Return what each code point is, shape (0x110000,): SEPARATOR, IN_WORD or ALONE."""
    categories = (unicodedata.category(chr(code))[0] for code in range(sys.maxunicode + 1))
    kinds = np.fromiter((c in "LNM" for c in categories), np.uint8, sys.maxunicode + 1)
    for first, last in (ends for script in SPACELESS for ends in script.ranges):
        part = kinds[first : last + 1]
        part[part == IN_WORD] = ALONE
    return kinds
