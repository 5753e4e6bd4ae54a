"""result.json: how a run ended, for people and for programs."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from llmtrain.config import paths
from llmtrain.durable import replace_text
from llmtrain.secret import masked


@dataclass(kw_only=True)
class RunResult:
    """The contents of result.json."""

    status: str
    """completed | failed | preempted | stopped."""
    step: int = 0
    tokens: int = 0
    """Counted tokens since step 0, over all starts."""
    train_loss: float | None = None
    """Of the last step."""
    val_loss: float | None = None
    wall_s: float = 0.0
    """Seconds since this start of the run."""
    error: str | None = None

    def save(self, run_dir: Path, *, durably: bool = True) -> None:
        """Write result.json, whole or not at all; `durably`: wait until the disk has it."""
        text = masked(json.dumps(dataclasses.asdict(self), indent=2))
        replace_text(run_dir / paths.RESULT, text + "\n", durably=durably)


def load_result(run_dir: Path) -> RunResult | None:
    """Return the earlier result of `run_dir`; None where there is none that can be read."""
    try:
        return RunResult(**json.loads((run_dir / paths.RESULT).read_text()))
    except (OSError, ValueError, TypeError):
        return None
