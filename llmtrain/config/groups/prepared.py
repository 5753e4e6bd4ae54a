"""`llmtrain prepare --inspect` and `--samples`: what to show of data that is prepared."""

import re
from dataclasses import dataclass

from llmtrain.errors import ConfigError, require

STEPS = re.compile(r"(\d+)(?:\.\.(\d+))?")
"""A step, or a first and a last one."""


def parse_steps(step: str) -> range:
    """Return the steps that `step` names, counted from 1.

    Raises:
        ConfigError: it names none; says how to.
    """
    found = STEPS.fullmatch(step)
    if found is None:
        raise ConfigError(
            f"step={step} is not a step: write step=120, or step=120..122 for several."
        )
    steps = range(int(found[1]), int(found[2] or found[1]) + 1)
    require(
        0 < steps.start < steps.stop,
        f"step={step}: steps count from 1, as in metrics.jsonl, and the first comes before the "
        "last.",
    )
    return steps


@dataclass(kw_only=True)
class InspectConfig:
    """`llmtrain prepare --inspect DIR`: what a prepared folder holds."""

    documents: int = 2
    """Documents of each split that are shown, spread evenly over it."""
    tokens: int = 32
    """Tokens that are shown of the start of a document, and of its end."""
    ids: bool = False
    """Show the id of every token beside it."""
    json: bool = False
    """Print one JSON object on stdout instead of tables."""

    def __post_init__(self) -> None:
        require(self.documents >= 0, f"documents={self.documents} must not be negative.")
        require(self.tokens > 0, f"tokens={self.tokens} must be positive.")


@dataclass(kw_only=True)
class SamplesConfig:
    """`llmtrain prepare --samples run=DIR step=120`: what a step of a run trains on."""

    run: str | None = None
    """The run directory."""
    step: str | None = None
    """A step as metrics.jsonl counts them, from 1, or several: 120..122."""
    tokens: int = 12
    """Tokens of the start of each sample that are shown."""
    json: bool = False
    """Print one JSON object on stdout instead of tables."""

    def __post_init__(self) -> None:
        require(bool(self.run), "run is missing: name the run directory, such as run=runs/books.")
        require(
            self.step is not None,
            "step is missing: name a step, such as step=120 or step=120..122.",
        )
        parse_steps(str(self.step))
        require(self.tokens > 0, f"tokens={self.tokens} must be positive.")

    @property
    def steps(self) -> range:
        """The steps, counted from 1."""
        return parse_steps(str(self.step))
