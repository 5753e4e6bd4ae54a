"""The task `train`: prepare the data if it is not cached, train, evaluate, checkpoint."""

import json
import logging
import shlex
import signal
import time
from pathlib import Path

import yaml
from rich.console import Console
from rich.rule import Rule
from torch.distributed import Store

from llmtrain.config import paths
from llmtrain.config.groups.inference import GenerateConfig
from llmtrain.config.plan import Plan
from llmtrain.config.schema import RunConfig
from llmtrain.config.store import load_run_config
from llmtrain.console import make_console
from llmtrain.data.prepare import load_report, prepare
from llmtrain.distributed.env import RankInfo, init_process_group, rank_info, share_text
from llmtrain.durable import replace_text
from llmtrain.errors import EXIT_OK, ConfigError, UserError
from llmtrain.tasks.generate import generate_texts
from llmtrain.tasks.inference import load_trained
from llmtrain.tasks.result import RunResult, load_result
from llmtrain.train.build import build_parts
from llmtrain.train.stop import StopRequest
from llmtrain.train.trainer import Parts, Trainer, TrainResult
from llmtrain.units import format_count, format_duration

log = logging.getLogger(__name__)

RULE_WIDTH = 80
"""Columns of the lines round a sample of text."""


class RefusedElsewhereError(UserError):
    """Rank 0 has refused and told the user; this rank only ends."""


class MainFailedError(Exception):
    """Rank 0 has failed and says why itself; this rank only ends."""


def load_plan(run_dir: Path) -> Plan:
    """Read RUN_DIR/plan.json.

    Raises:
        ConfigError: when it is missing or damaged.
    """
    try:
        return Plan(**json.loads((run_dir / paths.PLAN).read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{run_dir / paths.PLAN} cannot be read: {error}") from None


def start_rank(run_dir: Path | None, store: Store) -> tuple[RankInfo, Path]:
    """Join the process group; return this rank's identity and the run directory.

    Collective over the world.

    Args:
        run_dir: Known to rank 0 at least; the others learn it from there.
        store: The rendezvous store.

    Raises:
        ConfigError: when the device cannot be had.
    """
    run_dir = Path(share_text(store, "run_dir", str(run_dir) if run_dir else None))
    info = rank_info(load_run_config(run_dir / paths.CONFIG).train.device)
    init_process_group(info, store)
    return info, run_dir


def run_train(run_dir: Path, info: RankInfo, store: Store, stop: StopRequest) -> int:
    """Train the run of `run_dir`; return the exit code. Collective over the world.

    Raises:
        UserError: when the data or a checkpoint cannot be used.
    """
    t0 = time.monotonic()
    # Whoever reads along is gone, as when the terminal is: save, and end as for SIGTERM.
    console = make_console(stderr=True, on_closed=lambda: signal.raise_signal(signal.SIGTERM))
    run = load_run_config(run_dir / paths.CONFIG)
    plan = load_plan(run_dir)
    prepared = prepare_once(run, info, store, console)
    parts = build_parts(run, plan, run_dir, prepared, info, console)
    if info.is_main:
        # A run keeps its tokenizer: it can be read when the prepared data is long gone. Not before
        # the checkpoint was accepted: a refused start leaves the run as it was.
        replace_text(run_dir / paths.TOKENIZER, (prepared / paths.TOKENIZER).read_text())
    start, seen = parts.state.step, parts.state.tokens
    if start >= parts.plan.total_steps and info.is_main:
        console.print(f"already trained to step {start}: nothing left to do")
    stop.defer()
    try:
        result = Trainer(parts, stop, store).run()
    finally:
        for writer in parts.writers:
            writer.close()
    if info.is_main:
        _finish(parts, result, run_dir, console, time.monotonic() - t0, seen)
    return EXIT_OK if result.status == "completed" else stop.exit_code


def prepare_once(run: RunConfig, info: RankInfo, store: Store, console: Console) -> Path:
    """Let rank 0 prepare the data while the others wait for its word.

    Collective over the world.

    Raises:
        UserError: when the data cannot be used; on the other ranks, that rank 0 has said so.
    """
    if info.is_main:
        try:
            folder = prepare(run.data, run.tokenizer, console=console)
        except BaseException as error:
            kind = "refused" if isinstance(error, UserError) else "failed"
            share_text(store, "prepared", json.dumps({kind: str(error)}))
            raise
        share_text(store, "prepared", json.dumps({"folder": str(folder)}))
        note = load_report(folder).get("note")
        if note:
            console.print(f"note: {note}", highlight=False, markup=False, soft_wrap=True)
        return folder
    answer = json.loads(share_text(store, "prepared", None))
    if "refused" in answer:
        raise RefusedElsewhereError(answer["refused"])
    if "failed" in answer:
        raise MainFailedError(f"rank 0 could not prepare the data: {answer['failed']}")
    return Path(answer["folder"])


def _finish(
    parts: Parts, result: TrainResult, run_dir: Path, console: Console, wall_s: float, seen: int
) -> None:
    """Write result.json and tell what came out, with a sample of text.

    Args:
        parts: What was trained.
        result: How training ended.
        run_dir: The run directory.
        console: Where to tell.
        wall_s: Seconds since this start.
        seen: Tokens that earlier starts had seen.
    """
    state, run = parts.state, parts.run
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
        f"{result.status} at step {state.step}/{parts.plan.steps}, {now}{whole}"
        f"{''.join(f', {text}' for text in losses)}",
        highlight=False, soft_wrap=True,
    )  # fmt: skip
    if result.status != "completed":
        console.print(
            f"go on with: {resume_command(run_dir)}",
            soft_wrap=True, markup=False, highlight=False,
        )  # fmt: skip
    elif run.train.sample_tokens:
        _show_sample(parts, run_dir, console)
    console.print(f"run directory: {run_dir}", highlight=False, soft_wrap=True)


def resume_command(run_dir: Path) -> str:
    """Return the command line that goes on with the run: what was typed, with its run_dir."""
    try:
        typed = yaml.safe_load((run_dir / paths.OVERRIDES).read_text()) or []
    except (OSError, yaml.YAMLError):
        typed = ["..."]
    words = [str(word) for word in typed if not str(word).startswith("run_dir=")]
    return shlex.join(["llmtrain", "train", *words, f"run_dir={run_dir}"])


def _show_sample(parts: Parts, run_dir: Path, console: Console) -> None:
    """Print a sample of the newest checkpoint's text; a run is not lost for want of one."""
    try:
        config = GenerateConfig(
            run=str(run_dir),
            prompt=parts.run.train.sample_prompt,
            max_new_tokens=parts.run.train.sample_tokens,
            seed=parts.run.train.seed,
        )
        trained = load_trained(run_dir, "latest", parts.info.device)
        text = config.prompt + generate_texts(trained, config)[0]
    except Exception as error:
        log.exception("no sample")
        console.print(f"no sample: {error}", markup=False)
        return
    width = min(console.width, RULE_WIDTH)
    console.print(Rule("sample", align="left"), width=width)
    console.print(text.strip("\n"), markup=False, soft_wrap=True)
    console.print(Rule(), width=width)
