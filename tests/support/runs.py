"""Small real runs: composed by Hydra, frozen, trained by the real trainer."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from llmtrain.config import paths, store
from llmtrain.config.plan import make_plan
from llmtrain.config.register import register
from llmtrain.config.schema import RunConfig, run_of

TINY = (
    "model.n_layers=2",
    "model.dim=32",
    "model.n_heads=4",
    "model.seq_len=16",
    "tokenizer=byte",
    "scheduler=cosine",
    "scheduler.warmup_steps=3",
    "train.global_batch_size=8",
    "train.log_every_steps=1",
    "train.eval_every_steps=null",
    "train.eval_tokens=512",
    "train.sample_tokens=0",
    "train.precision=fp64",
    "checkpoint.every_steps=null",
    "metrics.progress=false",
    "metrics.peak_tflops=1.0",
)
"""A model that trains hundreds of steps a second on one core."""

SYNTHETIC = ("data=synthetic", "data.documents=40", "data.words_per_document=60")
"""Its text, where a test brings none."""


def compose_run(*overrides: str) -> RunConfig:
    """Return the typed configuration of `llmtrain train` with `overrides`."""
    register()
    with initialize_config_dir(str(paths.conf_dir()), version_base="1.3"):
        run = OmegaConf.to_object(compose("train", list(overrides)))
    assert isinstance(run, RunConfig)
    return run_of(run)


def freeze_run(run_dir: Path, *overrides: str, world_size: int = 1) -> Path:
    """Write a run directory as the launching tower does; return it."""
    run = compose_run(*overrides)
    paths.make_run_dir(run_dir)
    store.save(run, run_dir / paths.CONFIG)
    make_plan(run, gpus=0, world_size=world_size).save(run_dir / paths.PLAN)
    return run_dir


def tiny_run(run_dir: Path, *overrides: str, world_size: int = 1) -> Path:
    """Freeze a run of the `TINY` model."""
    data = () if any(o.startswith("data=") for o in overrides) else SYNTHETIC
    return freeze_run(run_dir, *TINY, *data, *overrides, world_size=world_size)


def train_recorded(run_dir: Path) -> tuple[dict[str, torch.Tensor], list[dict[str, torch.Tensor]]]:
    """Train as `train_frozen`; return the weights, and the whole gradients of every step."""
    gradients: list[dict[str, torch.Tensor]] = []
    weights = train_frozen(run_dir, gradients=gradients)
    return weights, gradients


def train_frozen(
    run_dir: Path,
    stop_after: int | None = None,
    start: int | None = None,
    gradients: list[dict[str, torch.Tensor]] | None = None,
    plant: Callable[[Any], None] | None = None,
) -> dict[str, torch.Tensor]:
    """Train a frozen run in this process (or on every rank of a pool); return whole weights.

    The process group is the pool's, or one of this process alone.

    Args:
        run_dir: A frozen run.
        stop_after: Behave as if SIGTERM had come in this step; None: train to the end.
        start: The step that must have been resumed: a run is a function of its seed, so one that
            began anew could not be told by its numbers.
        gradients: Takes every step's whole gradients, before clipping.
        plant: Called with the trainer's parts before it begins, to put a fault into them.
    """
    import torch.distributed as dist

    if dist.is_initialized():
        return _train(run_dir, stop_after, start, gradients, plant)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        return _train(run_dir, stop_after, start, gradients, plant)
    finally:
        dist.destroy_process_group()


def _train(
    run_dir: Path,
    stop_after: int | None,
    start: int | None,
    gradients: list[dict[str, torch.Tensor]] | None,
    plant: Callable[[Any], None] | None,
) -> dict[str, torch.Tensor]:
    from rich.console import Console

    from llmtrain.config.plan import load_plan
    from llmtrain.distributed.env import rank_info
    from llmtrain.tasks.assist import prepare_with_help
    from llmtrain.train.build import build_parts
    from llmtrain.train.stop import StopRequest
    from llmtrain.train.trainer import Trainer

    run = store.load_run_config(run_dir / paths.CONFIG)
    info = rank_info("cpu")
    with Console(stderr=True, quiet=True) as console:
        prepared = prepare_with_help(run.data, run.tokenizer, console=console)
        parts = build_parts(run, load_plan(run_dir), run_dir, prepared, info, console)
    assert start is None or parts.state.step == start, f"resumed at {parts.state.step}"
    stop = StopRequest()
    parts.step = _WatchedStep(parts, stop_after, gradients)
    if plant is not None:
        plant(parts)
    Trainer(parts, stop, _store(f"{run_dir}/{parts.state.step}")).run()
    for writer in parts.writers:
        writer.close()
    return whole_weights(parts.model.module)


def _store(prefix: str) -> Any:
    """Return a store that the ranks of the pool share, or one of this process alone."""
    import torch.distributed as dist
    from torch.distributed.distributed_c10d import _get_default_store

    return dist.PrefixStore(prefix, _get_default_store())


class _WatchedStep:
    """A step that asks to stop on cue, and takes note of gradients."""

    def __init__(
        self, parts: Any, stop_after: int | None, gradients: list[dict[str, torch.Tensor]] | None
    ) -> None:
        self._parts, self._inner = parts, parts.step
        self._stop_after, self._gradients = stop_after, gradients
        self.evaluate = parts.step.evaluate

    def __call__(self, batches: Any, *, team: Any, stop: bool) -> Any:
        asked = self._parts.state.step + 1 == self._stop_after
        result = self._inner(batches, team=team, stop=stop or asked)
        if self._gradients is not None:
            named = self._parts.model.module.named_parameters()
            self._gradients.append({name: whole(p.grad) for name, p in named})
        return result


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return a copy of `tensor`, unsharded. Collective where it is sharded."""
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).detach().clone()


def whole_weights(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return every parameter unsharded. Collective where it is sharded."""
    return {name: whole(parameter) for name, parameter in module.named_parameters()}


def metric_lines(run_dir: Path) -> list[dict[str, Any]]:
    """Return the training lines of metrics.jsonl."""
    lines = (json.loads(line) for line in (run_dir / paths.METRICS).read_text().splitlines())
    return [line for line in lines if "loss" in line]


def validation_losses(run_dir: Path) -> list[tuple[int, float, int]]:
    """Return (step, loss, tokens) of every evaluation in metrics.jsonl."""
    lines = map(json.loads, (run_dir / paths.METRICS).read_text().splitlines())
    return [(x["step"], x["val_loss"], x["val_tokens"]) for x in lines if "val_loss" in x]


def write_documents(path: Path, lengths: list[int], seed: int = 0) -> Path:
    """Write a JSON-lines corpus of random words, one document a length (in words)."""
    import random

    draw = random.Random(seed)
    with path.open("w") as stream:
        for number, length in enumerate(lengths):
            words = [draw.choice(("to", "be", "or", "not", "that", "is")) for _ in range(length)]
            stream.write(json.dumps({"text": f"{number} " + " ".join(words)}) + "\n")
    return path


def environment(**extra: str) -> dict[str, str]:
    """Return the environment for a subprocess: this one's, without torchrun's variables."""
    left_out = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    return {k: v for k, v in os.environ.items() if k not in left_out} | extra


def train_command(run_dir: Path, base: Sequence[str], words: Sequence[str]) -> list[str]:
    """Return the command that trains with the overrides `base`, but for those that `words` give."""
    given = {word.partition("=")[0] for word in words}
    kept = [word for word in base if word.partition("=")[0] not in given]
    return [sys.executable, "-m", "llmtrain", "train", *kept, *words, f"run_dir={run_dir}"]


def train_to_end(
    run_dir: Path, base: Sequence[str], words: Sequence[str], deadline_s: float
) -> Path:
    """Train in processes of their own, which must complete; return the run directory."""
    done = subprocess.run(
        train_command(run_dir, base, words), env=environment(), capture_output=True, text=True,
        timeout=deadline_s, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads((run_dir / "result.json").read_text())["status"] == "completed"
    return run_dir
