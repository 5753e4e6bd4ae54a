"""The task `replay`: a step of a run again, in one process, with every layer looked at."""

import contextlib
import json
import math
import tempfile
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from llmtrain.checkpoint.collection import CheckpointCollection
from llmtrain.checkpoint.manifest import Manifest
from llmtrain.config import paths
from llmtrain.config.groups.prepared import parse_steps
from llmtrain.config.groups.replay import ReplayConfig
from llmtrain.config.groups.strategy import SingleStrategyConfig
from llmtrain.config.groups.sync import AllReduceConfig
from llmtrain.config.plan import Plan, load_plan, make_plan
from llmtrain.config.schema import RunConfig
from llmtrain.config.store import load_run_config
from llmtrain.console import make_console, say
from llmtrain.distributed.env import (
    destroy_process_group,
    init_process_group,
    open_store,
    rank_info,
)
from llmtrain.errors import EXIT_OK, CheckpointError, ConfigError
from llmtrain.sync.interface import SyncStrategy
from llmtrain.tasks.report import make_table
from llmtrain.tasks.samples import data_folder, read_manifests
from llmtrain.train.audit import ROLLED_BACK, read_events
from llmtrain.train.build import build_parts, restore_from
from llmtrain.train.metrics import finite
from llmtrain.train.replay import Course, Replayed, replay
from llmtrain.train.trainer import Parts
from llmtrain.units import counted

COMPARED = ("loss", "grad_norm", "lr")


@dataclass(frozen=True)
class Request:
    """What is to be replayed, and from where."""

    steps: range
    """Counted from 1."""
    course: Course
    samples: int | None
    """Samples seen before the first of `steps`, where they are not those of the run's course."""
    folder: Path | None
    """The checkpoint; None: the initial weights."""
    manifest: Manifest | None

    @property
    def start(self) -> int:
        """Steps done there."""
        return 0 if self.manifest is None else self.manifest.step


def run_replay(config: ReplayConfig) -> int:
    """Compute the steps of `config` again and print what they were; return the exit code.

    Raises:
        UserError: when the run, its checkpoints or its data cannot be used.
    """
    run_dir = Path(str(config.run)).expanduser().absolute()
    run, plan = load_run_config(run_dir / paths.CONFIG), load_plan(run_dir)
    _require_replayable(run, run_dir)
    notes = make_console(stderr=True)
    request = find_start(config, run_dir, plan, notes)
    info = rank_info(config.device)
    saved = read_manifests(run_dir)
    prepared = data_folder(run, saved)
    init_process_group(info, open_store())
    try:
        with tempfile.TemporaryDirectory(prefix="llmtrain-replay-") as scratch:
            alone = _alone(run, plan, config.device)
            parts = build_parts(
                alone, make_plan(alone, gpus=0, world_size=1), paths.make_run_dir(Path(scratch)),
                prepared, info, Console(quiet=True),
            )  # fmt: skip
            if request.folder is not None:
                restore_from(request.folder, parts, Console(quiet=True))
            if request.samples is not None:
                parts.state.samples = request.samples
            steps = _replay(parts, request, notes)
            for writer in parts.writers:
                writer.close()
    finally:
        destroy_process_group()
    lines = _metrics(run_dir) if config.event is None else {}
    start = str(request.folder) if request.folder else "the initial weights"
    answer = {"run": str(run_dir), "from": start, "steps": [
        _plain(step, lines.get(step.step)) for step in steps
    ]}  # fmt: skip
    if config.json:
        print(json.dumps(answer, allow_nan=False))
    else:
        _show(answer, make_console())
    return EXIT_OK


def _require_replayable(run: RunConfig, run_dir: Path) -> None:
    if run.sync.name != "allreduce" or run.sync.simulate.workers is not None:
        raise ConfigError(
            f"run={run_dir}: under sync={run.sync.name} replicas step apart, each from weights of "
            "its own; only steps of sync=allreduce can be replayed."
        )


def find_start(config: ReplayConfig, run_dir: Path, plan: Plan, notes: Console) -> Request:
    """Return where to start for the steps of `config`.

    Raises:
        UserError: the run has no such step or event, or no checkpoint before it is left.
    """
    events = read_events(run_dir / paths.BAD_STEPS)
    event, later = None, []
    if config.event is not None:
        if config.event > len(events):
            raise ConfigError(
                f"event={config.event}: run={run_dir} has "
                f"{counted(len(events), 'line')} in {paths.BAD_STEPS}."
            )
        event, later = events[config.event - 1], events[config.event - 1 :]
        events = events[: config.event - 1]
        steps = range(event["step"], event["step"] + 1)
    else:
        steps = parse_steps(str(config.step))
    if plan.steps is not None and steps.stop - 1 > plan.steps:
        raise ConfigError(
            f"step={steps.stop - 1}: run={run_dir} has {counted(plan.steps, 'step')}."
        )
    # Checkpoints past a step that the run has gone back to since are of what came after.
    most = min([steps.start - 1, *(e["to_step"] for e in later if e["action"] == ROLLED_BACK)])
    collection = CheckpointCollection(run_dir / paths.CHECKPOINTS, warn=partial(say, notes))
    folder, manifest = None, None
    with contextlib.suppress(CheckpointError):  # that none is whole is as good as that none is left
        folder, manifest = collection.newest_valid(most) or (None, None)
    if folder is None and not config.from_start:
        raise ConfigError(_nothing_before(steps.start, run_dir))
    request = Request(steps, Course.of(events), None, folder, manifest)
    if event is not None:
        return replace(request, samples=_samples_before(event, request, plan.global_batch_size))
    _require_known_batches(request, plan.global_batch_size, run_dir)
    return request


def _samples_before(event: dict[str, Any], request: Request, rows: int) -> int | None:
    """Return the samples seen at the start of `request`, of which `event` tells.

    None: those that the checkpoint says. It says others where the run has gone back to it since.
    """
    before = event["step"] - 1
    if any(request.start < done <= before for done in request.course.jumps):
        return None
    return int(event["samples"][0]) - (before - request.start) * rows


def _nothing_before(step: int, run_dir: Path) -> str:
    kept = [manifest.step for manifest in read_manifests(run_dir)]
    can = f"its oldest is of step {kept[0]}: name a later one" if kept else "it has none at all"
    return (
        f"step={step}: run={run_dir} has no checkpoint before this step; {can}, or add "
        f"from_start=true to train {counted(step - 1, 'step')} from the initial weights first. "
        "checkpoint.keep_last says how many a run keeps."
    )


def _require_known_batches(request: Request, rows: int, run_dir: Path) -> None:
    """Refuse a start from which the run went on with batches of another size.

    Raises:
        ConfigError: a later checkpoint has seen other samples than the configuration says.
    """
    start, manifest = request.start, request.manifest
    seen = 0 if manifest is None else manifest.train_state["samples"]
    later = next((m for m in read_manifests(run_dir) if m.step > start), None)
    if later is None:
        return
    if request.course.samples_at(later.step, start, seen, rows) != later.train_state["samples"]:
        raise ConfigError(
            f"run={run_dir}: between step {start} and step {later.step} it was trained with "
            f"another train.global_batch_size than the {rows} it has now; name a step after "
            f"{later.step}."
        )


def _alone(run: RunConfig, plan: Plan, device: str) -> RunConfig:
    """Return the configuration of one process that computes what `run` does."""
    return replace(
        run,
        strategy=SingleStrategyConfig(),
        sync=AllReduceConfig(),
        launcher=replace(run.launcher, nproc_per_node=1),
        train=replace(
            run.train, device=device, compile=False, micro_batch_size=plan.micro_batch_size,
            on_bad_step="stop", spike_factor=None,
        ),
        metrics=replace(
            run.metrics, progress=False, tensorboard=False, wandb=False, record=False, trace=False,
            peak_tflops=1.0,
        ),
    )  # fmt: skip


def _replay(parts: Parts[SyncStrategy], request: Request, notes: Console) -> list[Replayed]:
    """Return the wanted steps; tell how far it is to them."""
    before = request.steps.start - 1 - request.start
    where = f"from {request.folder}" if request.folder else "from the initial weights"
    say(notes, f"{where}: {counted(before, 'step')} to train before step {request.steps.start}")
    found = replay(parts, request.course, request.steps)
    return [step for step in found if isinstance(step, Replayed)]


def _metrics(run_dir: Path) -> dict[int, dict[str, Any]]:
    """Return the run's own lines of training, by step."""
    path = run_dir / paths.METRICS
    found = {}
    for text in path.read_text().splitlines() if path.is_file() else ():
        with contextlib.suppress(ValueError):  # a crash tore it
            line = json.loads(text)
            if "loss" in line:
                found[line["step"]] = line
    return found


def _plain(step: Replayed, line: dict[str, Any] | None) -> dict[str, Any]:
    """Return a step for JSON, beside the run's own `line` of it."""
    own = finite({"loss": step.loss, "grad_norm": step.grad_norm, "lr": step.lr})
    said = {name: line.get(name) for name in COMPARED} if line else None
    return {
        "step": step.step,
        **own,
        "tokens": step.tokens,
        "applied": step.is_applied,
        "metrics": said,
        "equal": None if said is None else said == own,
        "positions": [step.first, step.first + len(step.samples)],
        "samples": step.samples,
        "first_not_finite": asdict(step.diagnosis) if step.diagnosis else None,
        "text": step.diagnosis.text if step.diagnosis else None,
        "layers": [
            {"layer": layer.name, **finite({
                "output_norm": layer.output.norm,
                "output_max": layer.output.largest,
                "output_not_finite": layer.output.not_finite,
                "output_gradient_norm": g.norm if (g := layer.output_gradient) else None,
                "output_gradient_not_finite": g.not_finite if g else 0,
                "parameter_gradient_norm": (norm := layer.parameter_gradient_norm),
                "parameter_gradient_finite": norm is None or math.isfinite(norm),
            })}
            for layer in step.layers
        ],
    }  # fmt: skip


def _show(answer: dict[str, Any], console: Console) -> None:
    for step in answer["steps"]:
        first, end = step["positions"]
        console.print(Text(f"\nstep {step['step']}", "bold cyan"))
        say(console, f"samples {' '.join(map(str, step['samples']))} (positions {first} to "
                      f"{end - 1}), {step['tokens']:,} tokens")  # fmt: skip
        table = make_table("", "here", "metrics.jsonl", "difference")
        for name in COMPARED:
            table.add_row(name, *_beside(step[name], step["metrics"], name))
        console.print(table)
        if not step["applied"]:
            say(console, "The run left its update out, and so does what follows here.")
        layers = make_table(
            "layer", "|output|", "max", "|d output|", "|d parameters|", "not finite"
        )
        for layer in _shown(step):
            bad_gradients = layer["output_gradient_not_finite"]
            bad = layer["output_not_finite"] + bad_gradients
            finite_weights = layer["parameter_gradient_finite"]
            layers.add_row(
                layer["layer"], _number(layer["output_norm"]), _number(layer["output_max"]),
                _number(layer["output_gradient_norm"], missing=bad_gradients),
                _number(layer["parameter_gradient_norm"], missing=not finite_weights),
                f"{bad:,}" if bad else "", style="red" if bad else None,
            )  # fmt: skip
        console.print(layers)
        if step["text"]:
            console.print(Text(step["text"], "bold red"), soft_wrap=True)


def _shown(step: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the layers for a person: all of the block that went bad, of others the whole alone."""
    found = step["first_not_finite"]
    bad = ".".join(found["layer"].split(".")[:2]) if found else None
    return [
        layer
        for layer in step["layers"]
        if layer["layer"].count(".") < 2 or (bad and layer["layer"].startswith(f"{bad}."))
    ]


def _beside(here: float | None, line: dict[str, Any] | None, name: str) -> tuple[str, str, str]:
    if line is None:
        return _number(here, digits=10), "no line", ""
    there = line[name]
    if here == there:
        return _number(here, digits=10), _number(there, digits=10), "none"
    if here is None or there is None:
        return _number(here, digits=10), _number(there, digits=10), ""
    return (
        _number(here, digits=10), _number(there, digits=10), f"{abs(here - there) / abs(there):.1e}"
    )  # fmt: skip


def _number(value: float | None, *, digits: int = 4, missing: object = True) -> str:
    """Return `value` in some digits; of none "not finite", or nothing where none was `missing`."""
    if value is None:
        return "not finite" if missing else ""
    return f"{value:.{digits}g}"
