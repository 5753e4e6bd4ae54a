"""Cleaning rules that drop lines; each looks at the lines of one document only."""

import re
from collections import Counter
from collections.abc import Callable

from llmtrain.config.groups.clean import CleanConfig
from llmtrain.data.clean_boilerplate import is_boilerplate
from llmtrain.data.clean_measure import count_words, is_finished

LineRule = Callable[[list[str]], list[str]]
"""Takes the lines of a document and returns those that stay."""

LETTER_OR_DIGIT = re.compile(r"[^\W_]")


def build_line_rules(config: CleanConfig) -> dict[str, LineRule]:
    """Return the rules that are on, by setting, in the order they run. Blank lines always stay."""
    rules: dict[str, LineRule] = {}
    if config.boilerplate_lines:
        rules["boilerplate_lines"] = _keep_where(lambda line: not is_boilerplate(line))
    if config.unfinished_lines:
        rules["unfinished_lines"] = _keep_where(is_finished)
    if config.min_line_words:
        rules["min_line_words"] = _keep_where(
            lambda line: count_words(line) >= config.min_line_words
        )
    if (most := config.max_line_chars) is not None:
        rules["max_line_chars"] = _keep_where(lambda line: len(line) <= most)
    if config.max_line_repeats:
        rules["max_line_repeats"] = lambda lines: drop_repeats(lines, config.max_line_repeats)
    return rules


def drop_repeats(lines: list[str], most: int) -> list[str]:
    """Return `lines` without those that stood `most` times before, margins aside.

    Lines without letters or digits stay: they are the braces of code and the rules of tables.
    """
    seen: Counter[str] = Counter()
    kept = []
    for line in lines:
        bare = line.strip()
        if LETTER_OR_DIGIT.search(bare):
            seen[bare] += 1
            if seen[bare] > most:
                continue
        kept.append(line)
    return kept


def _keep_where(stays: Callable[[str], bool]) -> LineRule:
    return lambda lines: [line for line in lines if not (bare := line.strip()) or stays(bare)]
