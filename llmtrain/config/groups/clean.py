"""The rules of `data.clean`: which run, and how strict they are."""

import re
from dataclasses import dataclass, field, fields

from llmtrain.errors import require, require_choice

SCRIPTS = (
    "arabic", "armenian", "bengali", "bopomofo", "canadian_aboriginal", "cherokee", "coptic",
    "cyrillic", "devanagari", "ethiopic", "georgian", "greek", "gujarati", "gurmukhi", "han",
    "hangul", "hebrew", "hiragana", "javanese", "kannada", "katakana", "khmer", "lao", "latin",
    "malayalam", "mongolian", "myanmar", "nko", "oriya", "runic", "sinhala", "sundanese",
    "syriac", "tamil", "telugu", "thaana", "thai", "tibetan", "tifinagh", "yi",
)  # fmt: skip
"""Names of writing systems that `data.clean.scripts` takes, as in Unicode Standard Annex 24."""

PHONE_REGIONS = ("US", "GB", "CN", "DE", "FR", "JP", "IN")


@dataclass(kw_only=True)
class CleanConfig:
    """Cleaning rules in the order they run; each is counted in the report.

    A limit that is 0, null, 1.0 or an empty list by default is off.
    """

    html: bool = False
    """Turn HTML into the text that a browser shows; needs the extra `clean`."""
    html_main_content: bool = False
    """With `html`: keep the main text of a page only, without menus, headers and footers."""
    mojibake: bool = False
    """Repair text decoded with a wrong encoding, such as `Ã©` for `é`; needs the extra `clean`."""
    control_characters: bool = True
    """Drop control characters other than newline and tab; CR LF becomes LF."""
    invisible_characters: bool = False
    """Drop soft hyphens, zero-width spaces, byte order marks and direction marks; joiners stay."""
    collapse_spaces: bool = False
    """Make one space of each run of spaces, tabs and other kinds of space; not for code."""
    width: bool = False
    """Bring full-width letters, digits and symbols and half-width katakana to their usual width."""
    unicode_nfc: bool = True
    """Bring text to Unicode normal form C."""

    mask_keys: bool = False
    """Replace private keys, access tokens and the like by <KEY>."""
    mask_email: bool = False
    """Replace mail addresses by <EMAIL>."""
    mask_ip: bool = False
    """Replace public IP addresses by <IP>."""
    mask_phone: bool = False
    """Replace telephone numbers by <PHONE>; needs the extra `clean`."""
    phone_regions: list[str] = field(default_factory=lambda: list(PHONE_REGIONS))
    """Countries whose numbers `mask_phone` knows without a leading +, as ISO 3166 codes."""

    boilerplate_lines: bool = False
    """Drop lines that are nothing but a cookie notice, a menu, a share button or a copyright."""
    unfinished_lines: bool = False
    """Drop lines that do not end as a sentence does."""
    min_line_words: int = 0
    """Drop lines of fewer words."""
    max_line_chars: int | None = None
    """Drop longer lines, in characters."""
    max_line_repeats: int = 0
    """Of equal lines in a document, drop those after this many; lines without letters stay."""
    whitespace: bool = True
    """Strip spaces at line ends and both ends of a document; three newlines or more become two."""

    min_chars: int = 1
    """Drop documents shorter than this after cleaning, in characters."""
    max_chars: int | None = None
    """Drop longer documents, in characters."""
    min_words: int = 0
    """Drop documents of fewer words."""
    max_words: int | None = None
    """Drop documents of more words."""
    min_sentences: int = 0
    """Drop documents of fewer sentences."""
    min_mean_word_chars: float = 0.0
    """Drop documents whose words are shorter in the mean; scripts without spaces are not judged."""
    max_mean_word_chars: float | None = None
    """Drop documents whose words are longer in the mean; scripts without spaces are not judged."""
    max_symbol_ratio: float = 1.0
    """Drop documents with a larger share of characters that are no letters, digits or spaces."""
    min_alphabetic_ratio: float = 0.0
    """Drop documents with a smaller share of words that have a letter."""
    max_bullet_lines_ratio: float = 1.0
    """Drop documents with a larger share of lines that start with a bullet."""
    max_ellipsis_lines_ratio: float = 1.0
    """Drop documents with a larger share of lines that end with an ellipsis."""
    max_repeated_lines_ratio: float = 1.0
    """Drop documents with a larger share of lines that stand earlier in the document too."""
    scripts: list[str] = field(default_factory=list)
    """Writing systems to keep, such as [latin,han]; needs the extra `clean`."""
    min_script_ratio: float = 0.5
    """With `scripts`: drop documents with a smaller share of letters in them."""

    def __post_init__(self) -> None:
        require(self.min_chars >= 1, f"data.clean.min_chars={self.min_chars} must be at least 1.")
        for each in fields(self):
            value = getattr(self, each.name)
            if each.name.endswith("_ratio"):
                require(0 <= value <= 1, f"data.clean.{each.name}={value} must be in [0, 1].")
            elif value is not None and each.name.startswith(("min_", "max_")):
                require(value >= 0, f"data.clean.{each.name}={value} must not be negative.")
        for unit in ("chars", "words", "mean_word_chars"):
            low, high = getattr(self, f"min_{unit}"), getattr(self, f"max_{unit}")
            require(
                high is None or low <= high,
                f"data.clean.min_{unit}={low} is more than data.clean.max_{unit}={high}: "
                "no document is left.",
            )
        for script in self.scripts:
            require_choice("data.clean.scripts", script, SCRIPTS)
        for region in self.phone_regions:
            require(
                re.fullmatch("[A-Z]{2}", region) is not None,
                f"data.clean.phone_regions has {region}: name countries by two capitals, as in "
                "[US,CN].",
            )
        require(
            self.html or not self.html_main_content,
            "data.clean.html_main_content=true needs data.clean.html=true.",
        )
