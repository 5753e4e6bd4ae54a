"""Which writing system a letter is of, by its Unicode name."""

import unicodedata
from typing import Any

import numpy as np
import numpy.typing as npt

from llmtrain.data.spaceless import HAN, KANA, SOUTH_EAST_ASIAN, YI, SpacelessScript

SIGN, MARK, OTHER = 0, 1, 2
"""Kinds of characters: no letter; a mark, which belongs to the letter before it; any other
script."""

FIRST_LETTER = OTHER
"""Kinds from here on are letters."""

SCRIPTS = (
    "latin", "greek", "cyrillic", "armenian", "hebrew", "arabic", "syriac", "devanagari", "bengali",
    "gurmukhi", "gujarati", "oriya", "tamil", "telugu", "kannada", "malayalam", "sinhala", "thai",
    "lao", "tibetan", "myanmar", "georgian", "hangul", "ethiopic", "cherokee", "khmer", "mongolian",
    "hiragana", "katakana", "bopomofo", "yi", "han",
)  # fmt: skip

KIND_NAMES = ("signs", "marks", "other", *SCRIPTS)
"""Name of each kind of characters. `signs` are spaces, digits, punctuation and emoji too."""

KINDS = {name: kind for kind, name in enumerate(KIND_NAMES)}

SPACELESS_KINDS: dict[int, SpacelessScript] = {
    KINDS["han"]: HAN,
    KINDS["hiragana"]: KANA,
    KINDS["katakana"]: KANA,
    KINDS["yi"]: YI,
    **{KINDS[name]: SOUTH_EAST_ASIAN for name in ("thai", "lao", "myanmar", "khmer")},
}
"""Kinds of letters that are written without spaces between words."""

UNSET = 255


class KindTable:
    """Looks up the kind of many characters at once; learns those it meets."""

    def __init__(self) -> None:
        """Start with none known."""
        self._kinds = np.full(0x110000, UNSET, dtype=np.uint8)

    def kinds(self, codes: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
        """Return the kind of each of `codes`, code points of shape (characters,)."""
        kinds = self._kinds[codes]
        new = codes[kinds == UNSET]
        if new.size:
            for code in np.unique(new).tolist():
                self._kinds[code] = kind_of(chr(code))
            kinds = self._kinds[codes]
        return kinds


def kind_of(character: str) -> int:
    """Return the kind of one character.

    The names of letters say their script, as in HALFWIDTH KATAKANA LETTER A. Han goes by blocks:
    they hold letters that Python's own version of Unicode may not know yet.
    """
    if any(first <= ord(character) <= last for first, last in HAN.ranges):
        return KINDS["han"]
    category = unicodedata.category(character)
    if category[0] != "L":
        return MARK if category[0] == "M" else SIGN
    for word in unicodedata.name(character, "").lower().replace("-", " ").split():
        if word in KINDS and KINDS[word] > OTHER:
            return KINDS[word]
    return OTHER
