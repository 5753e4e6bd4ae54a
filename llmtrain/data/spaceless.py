"""Scripts written without spaces between words: their letters, and how many make a word."""

from dataclasses import dataclass


@dataclass(frozen=True)
class SpacelessScript:
    """One script, or some that are alike."""

    ranges: tuple[tuple[int, int], ...]
    """Code points of its letters, both ends included."""
    letters_per_word: float
    """In the mean."""

    @property
    def letters(self) -> str:
        """What stands between the brackets of a regular expression."""
        return "".join(f"{chr(first)}-{chr(last)}" for first, last in self.ranges)


# Radicals, iteration marks, extension A, the first block, compatibility, extensions B and later.
HAN = SpacelessScript(
    (
        (0x2E80, 0x2FDF), (0x3005, 0x3007), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF),
        (0x20000, 0x3FFFF),
    ), 1.8,
)  # fmt: skip
"""1.78 is what a segmenter (jieba) finds in prose and in a manual. The others' are rough."""
# Hiragana, katakana, phonetic extensions, half width.
KANA = SpacelessScript(
    (
        (0x3041, 0x3096), (0x309D, 0x309F), (0x30A1, 0x30FA), (0x30FC, 0x30FF), (0x31F0, 0x31FF),
        (0xFF66, 0xFF9D),
    ), 2.0,
)  # fmt: skip
YI = SpacelessScript(((0xA000, 0xA4CF),), 2.0)
# Thai and Lao, Myanmar, Khmer.
SOUTH_EAST_ASIAN = SpacelessScript(((0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF)), 4.0)

SPACELESS = (HAN, KANA, YI, SOUTH_EAST_ASIAN)
