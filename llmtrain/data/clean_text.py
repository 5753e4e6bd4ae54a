"""Cleaning rules that change characters and look at no meaning; all but `repair_mojibake` are
the same when done twice."""

import re
import unicodedata

# Newline (0x0a) and tab (0x09) stay; the rest of Unicode category Cc goes.
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
ASCII_CONTROL = bytes(c for c in range(128) if CONTROL.match(chr(c)))

# Joiners (U+200C, U+200D) and variation selectors stay: Persian, Indic scripts and emoji are
# written with them. A zero-width space is a word boundary in the scripts of South-East Asia.
INVISIBLE = re.compile(
    "[\u00ad\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufeff\ufff9-\ufffb]"
    "|(?<![\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff])\u200b"
)

SPACES = re.compile(r"[^\S\n]{2,}|[^\S\n ]")

# Full-width forms lie 0xfee0 above ASCII. The tilde (U+FF5E) and the signs of U+FFE0 to U+FFE6 are
# ordinary in Chinese and Japanese and stay.
FULL_WIDTH = {chr(code + 0xFEE0): chr(code) for code in range(0x21, 0x7E)}
PUNCTUATION = {wide: c for wide, c in FULL_WIDTH.items() if c in "!\"'(),.:;?[]{}"} | {
    "\u3000": " "
}
NARROW = str.maketrans({w: c for w, c in FULL_WIDTH.items() if w not in PUNCTUATION})
NARROW_PUNCTUATION = str.maketrans(PUNCTUATION)
ANY_WIDE = re.compile("[\u3000\uff01-\uff5d\uff61-\uff9f]")
HALF_WIDTH_KATAKANA = re.compile("[\uff61-\uff9f]+")
EAST_ASIAN = re.compile(
    "[\u1100-\u11ff\u2e80-\u2fdf\u3001-\u9fff\uac00-\ud7ff\uf900-\ufaff\U00020000-\U0003ffff]"
)


def repair_mojibake(text: str) -> str:
    """Undo decoding with a wrong encoding, line by line, where the signs of it are plain.

    ftfy's `fix_encoding` and nothing else of ftfy: quotes, ligatures and widths stay as they are.
    A line at a time, so that one sound line does not keep another from being repaired.
    """
    if text.isascii():
        return text
    from ftfy import fix_encoding
    from ftfy.badness import is_bad

    lines = text.split("\n")
    return "\n".join(
        fix_encoding(line) if not line.isascii() and is_bad(line) else line for line in lines
    )


def strip_control_characters(text: str) -> str:
    """Turn CR LF and lone CR into LF; drop control characters other than newline and tab."""
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    if not text.isascii():
        return CONTROL.sub("", text)
    # Ten times the speed of the regular expression.
    raw = text.encode("ascii")
    kept = raw.translate(None, ASCII_CONTROL)
    return text if len(kept) == len(raw) else kept.decode("ascii")


def strip_invisible_characters(text: str) -> str:
    """Drop characters that are not seen and mean nothing, such as soft hyphens."""
    return text if text.isascii() else INVISIBLE.sub("", text)


def fold_width(text: str) -> str:
    """Bring full-width letters, digits and symbols and half-width katakana to their usual width.

    Form NFKC would do this and much more: it makes 2 of a superscript 2, fi of a ligature, and a
    plain comma of the comma of Chinese. Full-width punctuation is right beside Han, kana and
    Hangul, and is folded in lines without any of them only.
    """
    if text.isascii() or not ANY_WIDE.search(text):
        return text
    # The characters of a half-width run have their usual forms under NFKC, voice marks composed.
    text = HALF_WIDTH_KATAKANA.sub(lambda run: unicodedata.normalize("NFKC", run[0]), text)
    lines = text.translate(NARROW).split("\n")
    return "\n".join(
        line if line.isascii() or EAST_ASIAN.search(line) else line.translate(NARROW_PUNCTUATION)
        for line in lines
    )


def to_nfc(text: str) -> str:
    """Return Unicode normal form C (Unicode Standard Annex 15)."""
    return text if unicodedata.is_normalized("NFC", text) else unicodedata.normalize("NFC", text)


def collapse_spaces(text: str) -> str:
    """Make one plain space of every run of spaces and tabs, and of every other kind of space.

    Line and paragraph separators (U+2028, U+2029) become newlines.
    """
    return SPACES.sub(" ", text.replace("\u2028", "\n").replace("\u2029", "\n"))


def tidy_whitespace(text: str) -> str:
    """Strip line ends and both ends of the text; three or more newlines become two."""
    if " \n" in text or "\t\n" in text:
        text = "\n".join(line.rstrip(" \t") for line in text.split("\n"))
    while "\n\n\n" in text:  # few rounds: each leaves two thirds of a run
        text = text.replace("\n\n\n", "\n\n")
    return text.strip()
