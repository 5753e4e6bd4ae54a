"""Tokens on a terminal: neighbours in different colours, so that each can be told."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

STYLES = ("black on bright_white", "black on bright_cyan")

BOUNDARY = "|"
"""What stands between tokens where there are no colours."""

MARKS = {"\n": "⏎", "\t": "⇥"}


def show_pieces(console: Console, pieces: Sequence[dict[str, Any]], *, ids: bool) -> Text:
    """Return `pieces`, each {"ids", "text"}, as one line.

    Args:
        console: Where it goes.
        pieces: In order.
        ids: Show the ids behind each.
    """
    coloured = console.color_system is not None
    line = Text()
    for number, piece in enumerate(pieces):
        if number and not coloured:
            line.append(BOUNDARY)
        line.append(visible(piece["text"]), STYLES[number % len(STYLES)] if coloured else "")
        if ids:
            line.append(f"[{','.join(map(str, piece['ids']))}]", "dim" if coloured else "")
    return line


def visible(text: str) -> str:
    """Return `text` in one line, without characters that could steer a terminal."""
    return "".join(
        c if c.isprintable() else MARKS.get(c) or c.encode("unicode_escape").decode("ascii")
        for c in text
    )
