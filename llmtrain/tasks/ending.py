"""The end of a run: result.json, what came out, and a sample of text."""

import logging
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from rich.console import Console
from rich.rule import Rule

from llmtrain.config import paths
from llmtrain.config.groups.inference import GenerateConfig
from llmtrain.config.plan import Plan
from llmtrain.config.schema import RunConfig
from llmtrain.config.sweep import SUMMARY
from llmtrain.console import command_line
from llmtrain.lifeline import is_launched
from llmtrain.tasks.generate import generate_texts
from llmtrain.tasks.inference import load_trained
from llmtrain.tasks.result import RunResult, load_result
from llmtrain.train.state import TrainState
from llmtrain.train.trainer import TrainResult
from llmtrain.units import format_count, format_duration

log = logging.getLogger(__name__)

RULE_WIDTH = 80
"""Columns of the lines round a sample of text."""


@dataclass(frozen=True)
class Ending:
    """A run that has ended."""

    run: RunConfig
    plan: Plan
    state: TrainState
    device: torch.device
    """Where a sample is computed."""
    start_tokens: int
    """Tokens that earlier starts had seen."""


def tell_end(
    ending: Ending, result: TrainResult, run_dir: Path, console: Console, wall_s: float
) -> None:
    """Write result.json and tell what came out, with a sample of text.

    Args:
        ending: What was trained.
        result: How training ended.
        run_dir: The run directory.
        console: Where to tell.
        wall_s: Seconds since this start.
    """
    state, run, seen = ending.state, ending.run, ending.start_tokens
    before = load_result(run_dir)
    train_loss, val_loss = result.train_loss, result.val_loss
    if before is not None and before.step == state.step:
        train_loss = before.train_loss if train_loss is None else train_loss
        val_loss = before.val_loss if val_loss is None else val_loss
    RunResult(
        status=result.status, step=state.step, tokens=state.tokens, train_loss=train_loss,
        val_loss=val_loss, wall_s=wall_s,
    ).save(run_dir)  # fmt: skip
    losses = [
        f"{name} loss {value:.4f}"
        for name, value in (("train", train_loss), ("validation", val_loss))
        if value is not None
    ]
    # Tokens and seconds of the same time: this start's.
    now = f"{format_count(state.tokens - seen)} tokens in {format_duration(wall_s)}"
    whole = f" ({format_count(state.tokens)} since step 0)" if seen else ""
    console.print(
        f"{result.status} at step {state.step}/{ending.plan.steps}, {now}{whole}"
        f"{''.join(f', {text}' for text in losses)}",
        highlight=False, soft_wrap=True,
    )  # fmt: skip
    # A sweep says itself how it goes on, and what it gave up does not.
    of_sweep = (run_dir.parent / SUMMARY).is_file()
    if result.status != "completed" and not of_sweep:
        console.print(
            f"{_go_on()}: {resume_command(run_dir)}",
            soft_wrap=True, markup=False, highlight=False,
        )  # fmt: skip
    elif result.status == "completed" and run.train.sample_tokens:
        _show_sample(ending, run_dir, console)
    console.print(f"run directory: {run_dir}", highlight=False, soft_wrap=True)


def resume_command(run_dir: Path) -> str:
    """Return the command line that goes on with the run: what was typed, with its run_dir."""
    try:
        typed = yaml.safe_load((run_dir / paths.OVERRIDES).read_text()) or []
    except (OSError, yaml.YAMLError):
        typed = ["..."]
    words = [str(word) for word in typed if not str(word).startswith("run_dir=")]
    return command_line("train", *words, f"run_dir={run_dir}")


def _go_on() -> str:
    return "go on with" if is_launched() else "go on, under the launcher of before, with"


def _show_sample(ending: Ending, run_dir: Path, console: Console) -> None:
    """Print a sample of the newest checkpoint's text; a run is not lost for want of one."""
    try:
        config = GenerateConfig(
            run=str(run_dir),
            prompt=ending.run.train.sample_prompt,
            max_new_tokens=ending.run.train.sample_tokens,
            seed=ending.run.train.seed,
        )
        trained = load_trained(run_dir, "latest", ending.device)
        text = config.prompt + generate_texts(trained, config)[0]
    except Exception as error:
        log.exception("no sample")
        console.print(f"no sample: {error}", markup=False)
        return
    width = min(console.width, RULE_WIDTH)
    console.print(Rule("sample", align="left"), width=width)
    console.print(text.strip("\n"), markup=False, soft_wrap=True)
    console.print(Rule(), width=width)
