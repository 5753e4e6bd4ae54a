"""What a command answers on stdout, as tables."""

import dataclasses
import shlex
from collections.abc import Sequence

from rich.table import Table

from llmtrain.config.groups.launcher import TorchrunLauncherConfig, split_endpoint
from llmtrain.config.meetings import advice
from llmtrain.config.plan import AXES, Plan
from llmtrain.config.schema import RunConfig
from llmtrain.console import make_console
from llmtrain.units import counted, format_count


def plain_table(*columns: str) -> Table:
    """Return an empty table without frame; columns that begin with ">" are right-aligned."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(
            column.lstrip(">"), justify="right" if column.startswith(">") else "left",
            overflow="fold",
        )  # fmt: skip
    return table


def print_plan(run: RunConfig, plan: Plan, *, stderr: bool = False) -> None:
    """Print the plan of a run that has not started; on stderr where the answer is another."""
    axes = " x ".join(f"{axis} {plan.axis(axis)}" for axis in AXES if plan.axis(axis) > 1)
    steps = f"{plan.steps:,}" if plan.steps is not None else counted(run.train.epochs or 0, "epoch")
    rows = {
        "model": f"{run.model.name}, {run.model.n_layers} layers, dim {run.model.dim}, "
        f"{run.model.n_heads} heads, sequence {run.model.seq_len}",
        "data": run.data.name + (f" {path}" if (path := getattr(run.data, "path", None)) else ""),
        "tokenizer": run.tokenizer.name,
        "strategy": f"{run.strategy.name}"
        + (f", zero {run.strategy.zero}" if run.strategy.zero else ""),
        "processes": f"{plan.world_size}"
        + (f" on {plan.nnodes} hosts" if plan.nnodes > 1 else "")
        + (f" = {axes}" if axes else ""),
        "sync": describe_sync(run, plan),
        "batch": f"{counted(plan.global_batch_size, 'sequence')} = {plan.dp} data-parallel x "
        f"{counted(plan.gradient_accumulation_steps, 'micro-batch', 'micro-batches')} x "
        f"{plan.micro_batch_size}",
        "tokens a step": format_count(plan.tokens_per_step),
        "steps": steps,
        "optimizer": f"{run.optimizer.name}, lr {run.optimizer.lr:g}, {run.scheduler.name}",
        "precision": run.train.precision,
    }
    if plan.steps is not None:
        rows["tokens"] = format_count(plan.steps * plan.tokens_per_step)
    table = plain_table("", "")
    table.show_header = False
    for name, value in rows.items():
        table.add_row(name, value)
    console = make_console(stderr=stderr)
    console.print(table)
    if plan.steps is not None and (note := advice(run, plan.steps, plan.dp_replicate)):
        console.print(f"note: {note}", highlight=False, markup=False, soft_wrap=True)


def print_hosts(launcher: TorchrunLauncherConfig, typed: Sequence[str]) -> None:
    """Print what to start on each host, where `typed` was typed on this one."""
    console = make_console()
    words = [word for word in typed if not word.startswith("launcher.node_rank=")]
    line = shlex.join(["llmtrain", "train", *words])
    said = [(f"host {n}", f"{line} launcher.node_rank={n}") for n in range(launcher.nnodes)]
    if launcher.node_rank is None and launcher.rdzv_backend == "c10d":
        endpoint = launcher.rdzv_endpoint
        name = split_endpoint(endpoint)[0] if endpoint else "this machine"
        said = [("on every host", f"{line}    # {name} is the first")]
    console.print("\nto be started, with the same code and a file system that all hosts share:")
    for host, command in said:
        console.print(f"  {host}: {command}", highlight=False, markup=False, soft_wrap=True)


def describe_sync(run: RunConfig, plan: Plan) -> str:
    """Return when replicas exchange what, in a line."""
    sync = run.sync
    every = getattr(sync, "sync_every_steps", None)
    levels = [
        f"{'all' if lv.replicas < 0 else lv.replicas} every {counted(lv.every_steps, 'step')}"
        for lv in getattr(sync, "levels", [])
    ]
    parts = [
        sync.name,
        counted(plan.dp_replicate, "replica"),
        f"every {counted(every, 'step')}" if every else "",
        ", ".join(levels),
        f"after {counted(start, 'synchronous step')}"
        if (start := getattr(sync, "warmup_sync_steps", 0))
        else "",
        counted(plan.servers, "server") if plan.servers else "",
        "on a virtual clock, in one process" if sync.simulate.workers is not None else "",
    ]
    return ", ".join(part for part in parts if part)


def as_plain(config: object) -> dict[str, object]:
    """Return a typed configuration as plain dicts and scalars."""
    assert dataclasses.is_dataclass(config)
    return dataclasses.asdict(config)  # type: ignore[arg-type]
