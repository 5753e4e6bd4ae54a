"""Ids as people can read them: each with the text it gives, and no half characters.

A token may end in the middle of a character, as many do that a byte-level tokenizer makes of
Chinese. Its bytes are shown with those of the token that completes the character.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from llmtrain.tokenizer.base import Tokenizer

CONTEXT = 8
"""Tokens on either side of a stretch that are enough to make its characters whole: one has at most
four bytes, and a token has at least one, but for a few without text."""


@dataclass(frozen=True)
class Piece:
    """The fewest tokens that give whole characters."""

    ids: list[int]
    text: str


def split_pieces(
    tokenizer: Tokenizer, ids: Sequence[int], start: int = 0, end: int | None = None
) -> list[Piece]:
    """Return the pieces of `ids` that begin in [start, end).

    `CONTEXT` ids before `start` and behind `end`, or all there are, keep the characters at the
    edges whole. What has no text yet when `ids` end is left out.
    """
    decoder = tokenizer.stream_decoder()
    pieces: list[Piece] = []
    held: list[int] = []
    for place, id in enumerate(ids):
        held.append(int(id))
        text = decoder.feed(int(id))
        if text:
            if start <= place + 1 - len(held) < (len(ids) if end is None else end):
                pieces.append(Piece(held, text))
            held = []
    return pieces
