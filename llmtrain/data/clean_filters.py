"""Cleaning rules that keep or drop a whole document."""

from collections.abc import Callable

from llmtrain.config.groups.clean import CleanConfig
from llmtrain.data.clean_measure import BULLET, ELLIPSIS, Measure

Filter = Callable[[Measure], bool]
"""Says whether a document stays."""


def build_filters(config: CleanConfig) -> dict[str, Filter]:
    """Return the filters that are on, by setting, in the order they run: cheap ones first."""
    filters: dict[str, Filter] = {"min_chars": lambda m: len(m.text) >= config.min_chars}
    if (max_chars := config.max_chars) is not None:
        filters["max_chars"] = lambda m: len(m.text) <= max_chars
    if config.min_words:
        filters["min_words"] = lambda m: m.words >= config.min_words
    if (max_words := config.max_words) is not None:
        filters["max_words"] = lambda m: m.words <= max_words
    if config.min_sentences:
        filters["min_sentences"] = lambda m: m.sentences >= config.min_sentences
    if low := config.min_mean_word_chars:
        filters["min_mean_word_chars"] = lambda m: (m.mean_word_chars or low) >= low
    if (high := config.max_mean_word_chars) is not None:
        filters["max_mean_word_chars"] = lambda m: (m.mean_word_chars or 0.0) <= high
    if config.max_symbol_ratio < 1:
        filters["max_symbol_ratio"] = lambda m: m.symbol_ratio <= config.max_symbol_ratio
    if config.min_alphabetic_ratio > 0:
        filters["min_alphabetic_ratio"] = lambda m: (
            m.alphabetic_ratio >= config.min_alphabetic_ratio
        )
    if config.max_bullet_lines_ratio < 1:
        filters["max_bullet_lines_ratio"] = lambda m: (
            m.lines_ratio(BULLET) <= config.max_bullet_lines_ratio
        )
    if config.max_ellipsis_lines_ratio < 1:
        filters["max_ellipsis_lines_ratio"] = lambda m: (
            m.lines_ratio(ELLIPSIS) <= config.max_ellipsis_lines_ratio
        )
    if config.max_repeated_lines_ratio < 1:
        filters["max_repeated_lines_ratio"] = lambda m: (
            m.repeated_lines_ratio <= config.max_repeated_lines_ratio
        )
    if config.scripts:
        filters["scripts"] = ScriptFilter(config.scripts, config.min_script_ratio)
    return filters


class ScriptFilter:
    """Keeps documents whose letters are of given writing systems, by the share of them.

    A letter is of a script where Unicode lists it in Script_Extensions (Unicode Standard Annex 24),
    so that the mark of long vowels is both hiragana and katakana. A document without letters stays.
    """

    def __init__(self, scripts: list[str], min_ratio: float) -> None:
        import regex

        names = "".join(rf"\p{{Script_Extensions={name}}}" for name in scripts)
        self._pattern = regex.compile(f"[{names}]")
        self._min_ratio = min_ratio
        self._known: dict[str, bool] = {}  # character -> whether it is of the scripts

    def __call__(self, measure: Measure) -> bool:
        """Say whether a document stays."""
        letters = measure.letters
        for letter in letters.keys() - self._known.keys():
            self._known[letter] = self._pattern.match(letter) is not None
        inside = sum(n for letter, n in letters.items() if self._known[letter])
        return inside >= self._min_ratio * sum(letters.values())
