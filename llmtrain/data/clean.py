"""The cleaning rules, in the order they run, each counted."""

import html
import re
import unicodedata
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

from llmtrain.config.groups.data import CleanConfig

# Newline (0x0a) and tab (0x09) stay; the rest of Unicode category Cc goes.
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
BLANK_LINES = re.compile(r"\n{3,}")
HIDDEN = re.compile(r"<!--.*?-->|<(script|style)\b[^<>]*>.*?</\1\s*>", re.DOTALL | re.IGNORECASE)
BLOCK_TAG = re.compile(
    r"</?(?:address|article|aside|blockquote|br|dd|div|dl|dt|figure|footer|form|h[1-6]|header|hr|li"
    r"|main|nav|ol|p|pre|section|table|td|th|tr|ul)\b[^<>]*>",
    re.IGNORECASE,
)
OTHER_TAG = re.compile(r"</?[a-zA-Z][^<>]*>|<![a-zA-Z][^<>]*>")


@dataclass
class RuleCount:
    """What one rule has done."""

    documents: int = 0
    """Documents it changed, or dropped."""
    characters: int = 0
    """Characters it took away, net."""


@dataclass
class Cleaner:
    """Applies the rules of `config` and counts what each does."""

    config: CleanConfig
    counts: dict[str, RuleCount] = field(default_factory=dict)
    """What each rule that is on has done."""

    def __post_init__(self) -> None:
        rules: dict[str, Callable[[str], str]] = {
            "html": strip_html,
            "unicode_nfc": to_nfc,
            "control_characters": strip_control_characters,
            "whitespace": tidy_whitespace,
        }
        self._rules = {name: rule for name, rule in rules.items() if getattr(self.config, name)}
        self.counts = {name: RuleCount() for name in (*self._rules, "min_chars")}

    def clean(self, text: str) -> str | None:
        """Return `text` cleaned, or None where too little is left of it."""
        for name, rule in self._rules.items():
            cleaned = rule(text)
            if cleaned != text:
                self.counts[name].documents += 1
                self.counts[name].characters += len(text) - len(cleaned)
            text = cleaned
        if len(text) < self.config.min_chars:
            self.counts["min_chars"].documents += 1
            self.counts["min_chars"].characters += len(text)
            return None
        return text

    def report(self) -> dict[str, dict[str, int]]:
        """Return the counts, ready for JSON."""
        return {name: asdict(count) for name, count in self.counts.items()}


def strip_html(text: str) -> str:
    """Drop comments, scripts, styles and tags; block tags become a newline; decode entities."""
    if "<" in text:
        text = HIDDEN.sub("", text)
        text = BLOCK_TAG.sub("\n", text)
        text = OTHER_TAG.sub("", text)
    return html.unescape(text) if "&" in text else text


def to_nfc(text: str) -> str:
    """Return Unicode normal form C (Unicode Standard Annex 15)."""
    return text if unicodedata.is_normalized("NFC", text) else unicodedata.normalize("NFC", text)


def strip_control_characters(text: str) -> str:
    """Turn CR LF and lone CR into LF; drop control characters other than newline and tab."""
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    return CONTROL.sub("", text)


def tidy_whitespace(text: str) -> str:
    """Strip line ends and both ends of the text; three or more newlines become two."""
    lines = "\n".join(line.rstrip(" \t") for line in text.split("\n"))
    return BLANK_LINES.sub("\n\n", lines).strip()
