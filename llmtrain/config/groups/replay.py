"""The command `replay`: which step of which run to compute again."""

from dataclasses import dataclass

from llmtrain.config.groups.prepared import parse_steps
from llmtrain.errors import require, require_choice


@dataclass(kw_only=True)
class ReplayConfig:
    """`llmtrain replay run=DIR step=120`: a step of a run again, every layer of it looked at."""

    run: str | None = None
    """The run directory. Nothing in it is changed."""
    step: str | None = None
    """A step as metrics.jsonl counts them, from 1, or several: 120..122."""
    event: int | None = None
    """In place of `step`: the bad step of this line of logs/bad_steps.jsonl, from 1, with the
    samples that it had, though the run may have gone back and left them out since."""
    from_start: bool = False
    """Train from the initial weights where no checkpoint before the step is left."""
    device: str = "auto"
    """auto (cuda where there is one) | cpu | cuda."""
    json: bool = False
    """Print one JSON object on stdout instead of tables."""

    def __post_init__(self) -> None:
        require(bool(self.run), "run is missing: name the run directory, such as run=runs/books.")
        require(
            (self.step is None) != (self.event is None),
            "step is missing: name a step, such as step=120, or step=120..122 for several; or "
            "event=1 alone, the first line of logs/bad_steps.jsonl.",
        )
        if self.step is not None:
            parse_steps(self.step)
        require(self.event is None or self.event > 0, f"event={self.event}: lines count from 1.")
        require_choice("device", self.device, ("auto", "cpu", "cuda"))
