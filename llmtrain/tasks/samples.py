"""`llmtrain prepare --samples run=DIR step=120`: what a step of a run trains on."""

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from llmtrain.checkpoint.collection import CheckpointCollection
from llmtrain.checkpoint.manifest import Manifest
from llmtrain.config import paths
from llmtrain.config.groups.prepared import SamplesConfig
from llmtrain.config.groups.served import ServedConfig
from llmtrain.config.plan import load_plan
from llmtrain.config.schema import RunConfig
from llmtrain.config.store import load_run_config
from llmtrain.console import make_console, say
from llmtrain.data.cache import cache_path
from llmtrain.data.prepared import is_prepared
from llmtrain.data.step_samples import StepSamples
from llmtrain.errors import EXIT_OK, ConfigError, DataError
from llmtrain.tasks.assist import prepare_with_help
from llmtrain.tasks.pieces import show_pieces
from llmtrain.units import counted


def run_samples(config: SamplesConfig, console: Console) -> int:
    """Print what the steps of `config` train on; return the exit code.

    Raises:
        UserError: when the run or its data cannot be used, or it has no such step.
    """
    run_dir = Path(str(config.run)).expanduser()
    answer = list_samples(run_dir, config.steps, config.tokens)
    if config.json:
        print(json.dumps(answer, ensure_ascii=False))
        return EXIT_OK
    say(
        console,
        f"{answer['run']}: data {answer['folder']}, {answer['samples']} of {answer['seq_len']} "
        f"tokens, {answer['samples_per_epoch']:,} an epoch, seed {answer['seed']}",
    )
    for step in answer["steps"]:
        _print_step(console, step)
    return EXIT_OK


def list_samples(run_dir: Path, steps: range, tokens: int) -> dict[str, Any]:
    """Return what `steps`, counted from 1, of the run in `run_dir` train on, ready for JSON.

    Raises:
        UserError: as `run_samples`.
    """
    run, plan = load_run_config(run_dir / paths.CONFIG), load_plan(run_dir)
    if isinstance(run.sync, ServedConfig):
        raise ConfigError(
            f"run={run_dir}: under sync={run.sync.name} replicas take samples whenever they are "
            "ready, so no list of them belongs to a step."
        )
    if run.data.mode == "streaming":
        raise ConfigError(
            f"run={run_dir}: of data.mode=streaming no document has a number; --samples needs "
            "data.mode=prepared."
        )
    if plan.steps is not None and steps.stop - 1 > plan.steps:
        raise ConfigError(
            f"step={steps.stop - 1}: run={run_dir} has {counted(plan.steps, 'step')}."
        )
    saved = read_manifests(run_dir)
    folder = data_folder(run, saved)
    source = StepSamples(
        folder, run.model.seq_len, run.data.samples, run.train.seed, run.data.truncate
    )
    if saved and saved[-1].tokenizer_hash != source.tokenizer.hash():
        raise DataError(
            f"run={run_dir} was trained with another tokenizer than {folder} has: the text has "
            "changed since, and what was prepared of it then is gone."
        )
    return {
        "run": str(run_dir.absolute()),
        "folder": str(folder),
        "samples": run.data.samples,
        "seq_len": run.model.seq_len,
        "seed": run.train.seed,
        "samples_per_epoch": source.n_samples,
        "steps": [
            {
                "step": step,
                "samples": source.at(*_positions(step, plan.global_batch_size, saved), tokens),
            }
            for step in steps
        ],
    }


def read_manifests(run_dir: Path) -> list[Manifest]:
    """Return the manifests of the run's checkpoints, those that can be read, oldest first."""
    collection = CheckpointCollection(run_dir / paths.CHECKPOINTS, warn=lambda _: None)
    return [manifest for _, manifest in collection.finished()]


def data_folder(run: RunConfig, saved: list[Manifest]) -> Path:
    """Return what the run was trained on: as its newest checkpoint says, else as its text is now.

    Raises:
        UserError: it is to be prepared, and cannot be.
    """
    if saved:
        folder = cache_path(run.data.cache_dir) / saved[-1].data
        if is_prepared(folder):
            return folder
    return prepare_with_help(run.data, run.tokenizer, make_console(stderr=True))


def _positions(step: int, rows: int, saved: list[Manifest]) -> tuple[int, int]:
    """Return how many samples the run has seen before `step`, and how many the step has.

    The second is train.global_batch_size, with which a run may be resumed anew: then checkpoints
    on both sides of the step say what it was.

    Args:
        step: Counted from 1.
        rows: train.global_batch_size as it is now.
        saved: Of the run's checkpoints, oldest first.

    Raises:
        ConfigError: the batch changed near the step, and no checkpoint is left that says where.
    """
    marks = [(0, 0), *((m.step, int(m.train_state["samples"])) for m in saved)]
    done, seen = next(mark for mark in reversed(marks) if mark[0] < step)
    later = next((mark for mark in marks if mark[0] >= step), None)
    if later is not None:
        rows, rest = divmod(later[1] - seen, later[0] - done)
        if rest:
            raise ConfigError(
                f"step={step}: train.global_batch_size was changed between step {done} and step "
                f"{later[0]}, and no checkpoint between them is left that says where."
            )
    return seen + (step - 1 - done) * rows, rows


def _print_step(console: Console, step: dict[str, Any]) -> None:
    console.print(Text(f"\nstep {step['step']}", "bold cyan"))
    for sample in step["samples"]:
        spans = ", ".join(
            f"{span['document']}[{span['start']}:{span['end']}]" for span in sample["documents"]
        )
        source = f", source {sample['source']}" if "source" in sample else ""
        line = Text(
            f"position {sample['position']}, epoch {sample['epoch']}, sample {sample['sample']}"
            f"{source}, documents {spans}: "
        )
        console.print(line + show_pieces(console, sample["text"], ids=False), soft_wrap=True)
