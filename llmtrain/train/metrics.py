"""Who is told how training goes: metrics.jsonl always, TensorBoard and W&B on request."""

import json
import logging
import math
import os
from pathlib import Path
from typing import Any, Protocol

from llmtrain.config import paths
from llmtrain.config.extras import check_extras
from llmtrain.config.groups.metrics import MetricsConfig
from llmtrain.durable import replace_text

log = logging.getLogger(__name__)


class MetricsWriter(Protocol):
    """Takes one line of metrics: names and numbers, with the step among them."""

    def write(self, line: dict[str, Any]) -> None:
        """Take `line`; its "step" is the step it speaks of."""

    def rewind(self, *, after_step: int, evaluated_step: int) -> None:
        """Take back what was written of training past `after_step`, and of evaluations past
        `evaluated_step`: the run has gone back there."""

    def sync(self) -> None:
        """Force to the disk what must not be missing beside a checkpoint."""

    def close(self) -> None:
        """Write out what is held back."""


class JsonlWriter:
    """metrics.jsonl: one object a line, written at once so that a crash loses none.

    What cannot be written (the disk is full) is held back, with a warning, and written when there
    is room: rank 0 must not end, or wait, where the other ranks know of nothing.
    """

    def __init__(self, path: Path, *, after_step: int, evaluated_step: int) -> None:
        """Open `path`, dropping what a resumed run writes again.

        Args:
            path: metrics.jsonl.
            after_step: Lines of training past this step go.
            evaluated_step: Lines of evaluations past this step go.
        """
        self._path = path
        self._held = b""
        _drop_later(path, after_step, evaluated_step)
        self._stream = path.open("ab", buffering=0)

    def write(self, line: dict[str, Any]) -> None:
        """Append `line`; a number that is not finite is null, as JSON has none."""
        self._held += f"{json.dumps(finite(line), allow_nan=False)}\n".encode()
        self._write_held()

    def _write_held(self) -> None:
        try:
            while self._held:
                self._held = self._held[self._stream.write(self._held) :]
        except OSError as error:
            log.warning("%s cannot be written, its lines are held back: %s", self._path, error)

    def rewind(self, *, after_step: int, evaluated_step: int) -> None:
        """Drop later lines."""
        self._write_held()
        self._stream.close()
        _drop_later(self._path, after_step, evaluated_step)
        self._stream = self._path.open("ab", buffering=0)

    def sync(self) -> None:
        """Force all lines to the disk."""
        self._write_held()
        try:
            os.fsync(self._stream.fileno())
        except OSError as error:
            log.warning("%s cannot be forced to the disk: %s", self._path, error)

    def close(self) -> None:
        """Close the file."""
        self._write_held()
        self._stream.close()


def finite(line: dict[str, Any]) -> dict[str, Any]:
    """Return `line` with null for every number that is not finite."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in line.items()
    }


def _drop_later(path: Path, after_step: int, evaluated_step: int) -> None:
    """Drop the lines of `path` past these steps, and one that a crash tore."""
    if not path.exists():
        return
    last = {True: evaluated_step, False: after_step}
    kept = [
        line for line in path.read_text().splitlines() if _step(line) <= last['"val_loss"' in line]
    ]
    replace_text(path, "".join(line + "\n" for line in kept))


def _step(line: str) -> float:
    """Return the step of a JSON line; infinite for one that a crash tore."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")


class TensorBoardWriter:
    """Scalars under RUN_DIR/tensorboard."""

    def __init__(self, folder: Path, *, after_step: int) -> None:
        """Open the event file."""
        from torch.utils.tensorboard import SummaryWriter

        self._folder = str(folder)
        self._writer = SummaryWriter(self._folder, purge_step=after_step + 1)

    def write(self, line: dict[str, Any]) -> None:
        """Add each number of `line`."""
        for name, value in line.items():
            if name not in ("step", "time") and isinstance(value, int | float):
                self._writer.add_scalar(name, value, line["step"])

    def rewind(self, *, after_step: int, evaluated_step: int) -> None:
        """Begin an event file that says from which step on the earlier ones no longer hold."""
        from torch.utils.tensorboard import SummaryWriter

        self._writer.close()
        self._writer = SummaryWriter(self._folder, purge_step=after_step + 1)

    def sync(self) -> None:
        """Nothing: metrics.jsonl has it all."""

    def close(self) -> None:
        """Flush and close."""
        self._writer.close()


class WandbWriter:
    """Weights & Biases. The key is read from WANDB_API_KEY by the library and written nowhere."""

    def __init__(self, run_dir: Path, project: str, config: dict[str, Any]) -> None:
        """Start or go on with the run."""
        import wandb

        self._run = wandb.init(
            project=project, dir=str(run_dir), config=config, name=run_dir.name,
            id=run_dir.name, resume="allow",
        )  # fmt: skip

    def write(self, line: dict[str, Any]) -> None:
        """Log `line` under its step."""
        self._run.log({k: v for k, v in line.items() if k != "step"}, step=line["step"])

    def rewind(self, *, after_step: int, evaluated_step: int) -> None:
        """Nothing: W&B takes no step back, and leaves out lines until the run is past its last."""

    def sync(self) -> None:
        """Nothing: metrics.jsonl has it all."""

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


def build_writers(
    config: MetricsConfig,
    run_dir: Path,
    run_values: dict[str, Any],
    *,
    after_step: int,
    evaluated_step: int,
) -> list[MetricsWriter]:
    """Return the writers of rank 0.

    Args:
        config: The group `metrics`.
        run_dir: The run directory.
        run_values: The whole configuration, for W&B.
        after_step: Where training goes on from; later lines of an earlier attempt are dropped.
        evaluated_step: Step of the last evaluation that the run remembers.

    Raises:
        ConfigError: when an extra that is asked for is not installed.
    """
    check_extras(config)
    lines = JsonlWriter(
        run_dir / paths.METRICS, after_step=after_step, evaluated_step=evaluated_step
    )
    writers: list[MetricsWriter] = [lines]
    if config.tensorboard:
        writers.append(TensorBoardWriter(run_dir / paths.TENSORBOARD, after_step=after_step))
    if config.wandb:
        writers.append(WandbWriter(run_dir, config.wandb_project, run_values))
    return writers
