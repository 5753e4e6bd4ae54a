"""The cleaning rules, in the order they run, each counted.

    text       html  mojibake  control characters  invisible characters  spaces  width  NFC
    masks      keys  email  ip  phone
    lines      boilerplate  unfinished  too short  too long  repeated
    text       whitespace
    document   filters, the first that a document fails drops it

Of a pair every field is cleaned on its own: what its templates say stays as it was written. Filters
judge prompt and target together.

What becomes of a document depends on that document alone: neither on the order in which documents
come nor on which process cleans them.

A rule runs before those that must not see what it leaves: characters go before NFC, for taking one
out may bring a letter and its accent together; spaces go before width, for some of them end lines,
which width looks at; masks come before lines, for two lines that differ in an address are equal
after it; whitespace comes last, for lines that go leave blank ones behind.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from llmtrain.config.groups.clean import CleanConfig
from llmtrain.data.clean_count import RuleCount
from llmtrain.data.clean_filters import build_filters
from llmtrain.data.clean_html import html_to_text
from llmtrain.data.clean_lines import build_line_rules
from llmtrain.data.clean_mask import MASKS, mask_email, mask_ip, mask_keys, mask_phone
from llmtrain.data.clean_measure import Measure
from llmtrain.data.clean_text import (
    collapse_spaces,
    fold_width,
    repair_mojibake,
    strip_control_characters,
    strip_invisible_characters,
    tidy_whitespace,
    to_nfc,
)
from llmtrain.data.document import Document

TextRule = Callable[[str], str]


@dataclass
class Cleaner:
    """Applies the rules of `config` and counts what each does."""

    config: CleanConfig
    counts: dict[str, RuleCount] = field(init=False)
    """What each rule that is on has done, in the order they run."""

    def __post_init__(self) -> None:
        self._text_rules = _build_text_rules(self.config)
        self._line_rules = build_line_rules(self.config)
        self._last_rules: dict[str, TextRule] = (
            {"whitespace": tidy_whitespace} if self.config.whitespace else {}
        )
        self._filters = build_filters(self.config)
        stages = (self._text_rules, self._line_rules, self._last_rules, self._filters)
        self.counts = {name: RuleCount() for stage in stages for name in stage}

    def clean(self, text: str, name: str = "") -> str | None:
        """Return `text` cleaned, or None where a filter drops it.

        Args:
            text: A document.
            name: Where it comes from, for the examples in the report.
        """
        text = self._change(text)
        return text if self._stays(text, name) else None

    def clean_document(self, document: Document) -> tuple[str, str] | None:
        """Return prompt and target of `document` cleaned, or None where a filter drops it.

        What is no pair is a target without a prompt. A pair without text in the fields of its
        target is as empty as a document without text.
        """
        if document.pair is None:
            text = self.clean(document.text, document.id)
            return None if text is None else ("", text)
        pair = document.pair.change(self._change)
        prompt, target = pair.texts()
        if not pair.has_target and self.config.min_chars > 0:
            self.counts["min_chars"].add_drop(document.id, prompt + target)
            return None
        return (prompt, target) if self._stays(prompt + target, document.id) else None

    def merge(self, counts: dict[str, RuleCount]) -> None:
        """Add what a cleaner of the same settings did elsewhere."""
        for name, count in counts.items():
            self.counts[name].merge(count)

    def report(self) -> dict[str, dict[str, Any]]:
        """Return the counts, ready for JSON."""
        return {name: count.to_json() for name, count in self.counts.items()}

    def drops(self) -> dict[str, int]:
        """Return how many documents each filter dropped, without those that dropped none."""
        return {name: count.dropped for name, count in self.counts.items() if count.dropped}

    def _change(self, text: str) -> str:
        text = self._apply(self._text_rules, text)
        if self._line_rules:
            text = self._drop_lines(text)
        return self._apply(self._last_rules, text)

    def _stays(self, text: str, name: str) -> bool:
        measure = Measure(text)
        for rule, stays in self._filters.items():
            if not stays(measure):
                self.counts[rule].add_drop(name, text)
                return False
        return True

    def _apply(self, rules: dict[str, TextRule], text: str) -> str:
        for name, rule in rules.items():
            cleaned = rule(text)
            if cleaned != text:
                mask = MASKS.get(name)
                masked = cleaned.count(mask) - text.count(mask) if mask else 0
                self.counts[name].add_change(len(text) - len(cleaned), masked=masked)
                text = cleaned
        return text

    def _drop_lines(self, text: str) -> str:
        lines = text.split("\n")
        for name, rule in self._line_rules.items():
            kept = rule(lines)
            if len(kept) < len(lines):
                self.counts[name].add_change(
                    len("\n".join(lines)) - len("\n".join(kept)), lines=len(lines) - len(kept)
                )
                lines = kept
        return "\n".join(lines)


def _build_text_rules(config: CleanConfig) -> dict[str, TextRule]:
    """Return the rules that are on, in the order they run."""
    rules: dict[str, TextRule] = {
        "html": partial(html_to_text, main_content=config.html_main_content),
        "mojibake": repair_mojibake,
        "control_characters": strip_control_characters,
        "invisible_characters": strip_invisible_characters,
        "collapse_spaces": collapse_spaces,
        "width": fold_width,
        "unicode_nfc": to_nfc,
        "mask_keys": mask_keys,
        "mask_email": mask_email,
        "mask_ip": mask_ip,
        "mask_phone": partial(mask_phone, regions=config.phone_regions),
    }
    return {name: rule for name, rule in rules.items() if getattr(config, name)}
