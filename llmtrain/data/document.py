"""One text, as its source has it."""

from collections.abc import Callable
from dataclasses import dataclass

Pieces = tuple[tuple[str, str], ...]
"""A template that was filled in: text of its own and the text of the field behind it, in turn."""


@dataclass(frozen=True)
class Pair:
    """A prompt and its target: what is given, and what is to be learned."""

    prompt: Pieces
    target: Pieces

    def change(self, rule: Callable[[str], str]) -> "Pair":
        """Return the pair with `rule` applied to the text of every field, and to nothing else."""
        prompt, target = (
            tuple((own, rule(value) if value else "") for own, value in pieces)
            for pieces in (self.prompt, self.target)
        )
        return Pair(prompt, target)

    def texts(self) -> tuple[str, str]:
        """Return prompt and target."""
        prompt, target = (
            "".join(own + value for own, value in pieces) for pieces in (self.prompt, self.target)
        )
        return prompt, target

    @property
    def has_target(self) -> bool:
        """Whether any field of the target holds text."""
        return any(value for _, value in self.target)


@dataclass(frozen=True)
class Document:
    """One text as its source has it."""

    id: str
    """Where it comes from: a file, file:line, file:offset (of a long file) or source:row."""
    text: str
    """The text, valid Unicode."""
    replaced: int = 0
    """How many U+FFFD stand for bytes that were no UTF-8."""
    pair: Pair | None = None
    """What `text` is made of, where data.target is set."""
