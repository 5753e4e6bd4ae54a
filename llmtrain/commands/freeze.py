"""Freeze what was composed: the only thing that crosses to the workers."""

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import yaml

from llmtrain.checkpoint.compatible import check_newest
from llmtrain.config.paths import (
    CHECKPOINTS,
    CONFIG,
    LOGS,
    OVERRIDES,
    PLAN,
    default_run_dir,
    make_run_dir,
)
from llmtrain.config.plan import Plan
from llmtrain.config.schema import RunConfig
from llmtrain.config.store import to_yaml
from llmtrain.errors import ConfigError, require
from llmtrain.launch import slurm

MARKS = (CONFIG, CHECKPOINTS)
"""By one of these a folder is known as a run directory."""

LEFTOVERS = (CONFIG, PLAN, OVERRIDES, LOGS, slurm.FOLDER, slurm.CODE)
"""How the names begin of what a start leaves that was killed before config.yaml was whole."""

SHOWN = 3
"""Names of other files that a refusal gives."""


def run_folder(
    run: RunConfig, *, marks: Sequence[str] = MARKS, leftovers: tuple[str, ...] = LEFTOVERS
) -> Path:
    """Return the run directory of `run`, made.

    Args:
        run: The configuration.
        marks: One of these is in a folder that was used before.
        leftovers: These may be in one besides.

    Raises:
        ConfigError: when it cannot be written, or is a folder of something else.
    """
    wanted = Path(run.run_dir) if run.run_dir else default_run_dir(run.experiment_name)
    folder = wanted.expanduser()
    if folder.is_dir() and not any((folder / name).exists() for name in marks):
        own = (".", *leftovers)
        others = sorted(path.name for path in folder.iterdir() if not path.name.startswith(own))
        more = ", ..." if len(others) > SHOWN else ""
        require(
            not others,
            f"run_dir={folder} holds something else ({', '.join(others[:SHOWN])}{more}); name a "
            "new folder, or that of an earlier start.",
        )
    return make_run_dir(wanted)


def is_made(run: RunConfig) -> bool:
    """Make the run directory of `run`; return whether it was not there before."""
    if run.run_dir is None:
        return True  # its name is a new one
    try:
        Path(run.run_dir).expanduser().mkdir(parents=True)
    except OSError:  # it is there; or `run_folder` says what is wrong
        return False
    return True


@contextlib.contextmanager
def dropped_if_refused(
    folder: Path, *, is_new: bool, has_begun: Callable[[], bool] = lambda: False
) -> Iterator[None]:
    """Remove a folder that this start has made, where the start is refused inside.

    To be used within the claim: nobody else has begun in it. It stays where Slurm may have the job.

    Args:
        folder: A run directory, or a sweep's.
        is_new: Whether this start has made it.
        has_begun: Whether, by the time of the refusal, something was begun in it.

    Raises:
        ConfigError: the refusal.
    """
    try:
        yield
    except slurm.NoAnswerError:
        raise
    except ConfigError:
        if is_new and not has_begun():
            drop(folder)
        raise


def drop(folder: Path) -> None:
    """Remove a run directory, or a sweep's, in which nothing was trained."""
    if not any(folder.glob(f"**/{CHECKPOINTS}")):
        shutil.rmtree(folder, ignore_errors=True)


def freeze(run: RunConfig, plan: Plan, overrides: Sequence[str], run_dir: Path) -> bool:
    """Write config.yaml, overrides.yaml and plan.json; return whether a run was there before.

    An existing run directory is resumed with what is asked for now; what was asked for before is
    kept as config.1.yaml and overrides.1.yaml, then .2, ... where it differs.

    Raises:
        ConfigError: when a file cannot be written, or its newest checkpoint is of another model.
    """
    # Before config.yaml is replaced: a refused start must leave the run as it was.
    check_newest(
        run_dir / CHECKPOINTS,
        model=dataclasses.asdict(run.model),
        optimizer=run.optimizer.name,
        tokenizer=run.tokenizer.name,
    )
    resumed = (run_dir / CONFIG).is_file()
    try:
        config = to_yaml(run)
        if resumed and (run_dir / CONFIG).read_text() != config:
            _keep_earlier(run_dir)
        _write(run_dir / OVERRIDES, yaml.safe_dump(list(overrides)))
        _write(run_dir / PLAN, json.dumps(dataclasses.asdict(plan), indent=2) + "\n")
        _write(run_dir / CONFIG, config)
    except OSError as error:
        raise ConfigError(
            f"run_dir={run_dir}: {error.filename} cannot be written ({error.strerror}); name "
            "another folder with run_dir=DIR."
        ) from None
    return resumed


def _keep_earlier(run_dir: Path) -> None:
    number = 1
    while (run_dir / f"config.{number}.yaml").exists():
        number += 1
    for name in (CONFIG, OVERRIDES):
        if (run_dir / name).is_file():
            (run_dir / name).rename(run_dir / name.replace(".yaml", f".{number}.yaml"))


def _write(path: Path, text: str) -> None:
    """Write a file, whole or not at all."""
    partial = path.with_suffix(path.suffix + ".tmp")
    partial.write_text(text)
    partial.replace(path)
