"""Freeze what was composed: the only thing that crosses to the workers."""

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Iterator, Sequence
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
from llmtrain.errors import ConfigError
from llmtrain.launch import slurm

SHOWN = 3
"""Names of other files that a refusal gives."""


def run_folder(run: RunConfig) -> Path:
    """Return the run directory of `run`, made.

    Raises:
        ConfigError: when it cannot be written, or is a folder of something else.
    """
    wanted = Path(run.run_dir) if run.run_dir else default_run_dir(run.experiment_name)
    _refuse_other(wanted.expanduser())
    return make_run_dir(wanted)


def _refuse_other(folder: Path) -> None:
    """Refuse a folder in which files lie that no start has put there.

    One that was killed before config.yaml was whole has left some of its own.
    """
    if not folder.is_dir() or (folder / CONFIG).is_file() or (folder / CHECKPOINTS).is_dir():
        return
    own = (".", CONFIG, PLAN, OVERRIDES, LOGS, slurm.FOLDER, slurm.CODE)
    others = sorted(path.name for path in folder.iterdir() if not path.name.startswith(own))
    if others:
        more = ", ..." if len(others) > SHOWN else ""
        raise ConfigError(
            f"run_dir={folder} is no run directory, and not empty: it holds "
            f"{', '.join(others[:SHOWN])}{more}. Name a new folder with run_dir=DIR."
        )


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
    run_dir: Path, *, is_new: bool, kept: type[ConfigError] | None = None
) -> Iterator[None]:
    """Remove a run directory that this start has made, where the start is refused inside.

    To be used within the claim: nobody else has begun in it.

    Args:
        run_dir: The run directory.
        is_new: Whether this start has made it.
        kept: A refusal after which it stays.

    Raises:
        ConfigError: the refusal.
    """
    try:
        yield
    except ConfigError as error:
        if is_new and not (kept and isinstance(error, kept)):
            drop(run_dir)
        raise


def drop(run_dir: Path) -> None:
    """Remove a run directory in which nothing was trained."""
    if not (run_dir / CHECKPOINTS).exists():
        shutil.rmtree(run_dir, ignore_errors=True)


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
