"""Words, sentences, lines and letters of a document, whatever its script.

Scripts without spaces have no words that could be split off without a dictionary of their
language. Their letters are counted instead, and so many of them make a word.
"""

import re
import unicodedata
from collections import Counter
from functools import cached_property, lru_cache

from llmtrain.data.spaceless import SPACELESS

LETTERS = tuple((re.compile(f"[{s.letters}]"), s.letters_per_word) for s in SPACELESS)

# Punctuation of the same scripts parts words as a space does.
PUNCTUATION = "\u3000-\u33ff\uff00-\uffef"
NO_WORD = re.compile(f"[{''.join(s.letters for s in SPACELESS)}{PUNCTUATION}]+")

# Latin and alike: a mark, closing quotes, then a space or the end. Others need no space behind.
# Thai and Lao end a sentence with a space alone.
CLOSING = "\"'”’»›)\\]」』）】》〉"
SENTENCE_END = re.compile(
    rf"[.!?…]+[{CLOSING}]*(?=\s|$)"
    rf"|[。！？｡．…؟۔।॥።။។]+[{CLOSING}]*"
    r"|(?<=[\u0e00-\u0eff])\s+(?=\S)"
)
FINISHED = re.compile(rf"(?:[.!?…。！？｡．؟۔।॥።။។][{CLOSING}]*|[”」』\"\u0e00-\u0eff])$")
WORD = re.compile(r"[^\W_]")
BULLET = re.compile(r"[•‣▪▫●○◦■□◆◇▶►·・※✓✔]|[-*–—+] ")
ELLIPSIS = re.compile(r"(?:\.\.\.|…|。。。)$")


class Measure:
    """What the filters ask of one document; counted when asked for, once."""

    def __init__(self, text: str) -> None:
        self.text = text

    @cached_property
    def lines(self) -> list[str]:
        """The lines that are not blank, without their margins."""
        return [line for raw in self.text.split("\n") if (line := raw.strip())]

    @cached_property
    def spaced(self) -> list[str]:
        """What stands between spaces, of scripts that have them."""
        if self.text.isascii() or not NO_WORD.search(self.text):
            return self.text.split()
        return NO_WORD.sub(" ", self.text).split()

    @cached_property
    def spaceless_words(self) -> float:
        """How many words the letters of scripts without spaces make."""
        return spaceless_words(self.text)

    @property
    def words(self) -> float:
        """Words of both kinds."""
        return len(self.spaced) + self.spaceless_words

    @property
    def sentences(self) -> int:
        """Sentences, by their final punctuation; abbreviations count as ends."""
        return count_sentences(self.text)

    @property
    def mean_word_chars(self) -> float | None:
        """Characters of a word in the mean; None where most are of a script without spaces."""
        if not self.spaced or len(self.spaced) < self.spaceless_words:
            return None
        return sum(map(len, self.spaced)) / len(self.spaced)

    @property
    def alphabetic_ratio(self) -> float:
        """Share of words that have a letter."""
        alphabetic = sum(any(map(str.isalpha, word)) for word in self.spaced)
        return _ratio(alphabetic + self.spaceless_words, self.words)

    @cached_property
    def census(self) -> Counter[str]:
        """How often each character stands in the text."""
        return Counter(self.text)

    @property
    def symbol_ratio(self) -> float:
        """Share of characters, spaces aside, that are neither letters nor marks nor digits."""
        symbols = sum(n for c, n in self.census.items() if _kind(c) == "symbol")
        spaces = sum(n for c, n in self.census.items() if _kind(c) == "space")
        return _ratio(symbols, len(self.text) - spaces)

    @property
    def letters(self) -> dict[str, int]:
        """How often each letter stands in the text."""
        return {c: n for c, n in self.census.items() if _kind(c) == "letter"}

    def lines_ratio(self, pattern: re.Pattern[str]) -> float:
        """Share of lines in which `pattern` is found."""
        return _ratio(sum(pattern.search(line) is not None for line in self.lines), len(self.lines))

    @property
    def repeated_lines_ratio(self) -> float:
        """Share of lines that stand earlier in the document too."""
        return _ratio(len(self.lines) - len(set(self.lines)), len(self.lines))


def count_words(text: str) -> float:
    """Return how many words `text` has."""
    return Measure(text).words


def spaceless_words(text: str) -> float:
    """Return how many words the letters of scripts without spaces make in `text`."""
    if text.isascii() or not NO_WORD.search(text):
        return 0.0
    return sum(len(letter.findall(text)) / per_word for letter, per_word in LETTERS)


def count_sentences(text: str) -> int:
    """Return how many sentences `text` has; what follows the last end is one."""
    ends = 0
    last = 0
    for match in SENTENCE_END.finditer(text):
        ends += 1
        last = match.end()
    return ends + (WORD.search(text, last) is not None)


def is_finished(line: str) -> bool:
    """Say whether a line ends as a sentence does; in Thai and Lao, which have no mark, it may."""
    return FINISHED.search(line) is not None


@lru_cache(maxsize=1 << 16)
def _kind(character: str) -> str:
    """Return letter, space or symbol; "" for digits, and for marks, which belong to a letter."""
    category = unicodedata.category(character)
    if category[0] in "MN":
        return ""
    if category[0] == "L":
        return "letter"
    return "space" if category[0] == "Z" or character.isspace() else "symbol"


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
