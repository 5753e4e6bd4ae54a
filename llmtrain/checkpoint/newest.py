"""From where a run would go on: told by those who see it end. Never imports torch."""

from pathlib import Path

from llmtrain.checkpoint.manifest import step_folders, step_of
from llmtrain.config.paths import CHECKPOINTS


def newest_step(run_dir: Path) -> int | None:
    """Return the step of the newest checkpoint, its content not verified; None: there is none."""
    folders = step_folders(run_dir / CHECKPOINTS)
    return step_of(folders[-1]) if folders else None


def goes_on(run_dir: Path) -> str:
    """Return in a sentence from where the run goes on when it is started again."""
    if newest_step(run_dir) is None:
        return "There is no checkpoint yet: the same run_dir starts over."
    return "The same run_dir goes on from its newest checkpoint."
