"""The task `train`: prepare the data if it is not cached, train, evaluate, checkpoint."""

import contextlib
import json
import logging
import signal
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from torch.distributed import Store, TCPStore

from llmtrain.config import paths
from llmtrain.config.groups.served import ServedConfig
from llmtrain.config.plan import Plan, load_plan, make_plan
from llmtrain.config.schema import RunConfig
from llmtrain.config.store import load_run_config
from llmtrain.console import make_console
from llmtrain.data.prepare import Preparation, load_report
from llmtrain.distributed.env import STOPPING, RankInfo, init_process_group, rank_info, share_text
from llmtrain.durable import replace_text
from llmtrain.errors import EXIT_OK, RefusedElsewhereError, UserError
from llmtrain.startup import uncollected
from llmtrain.sync.server.packing import owners
from llmtrain.sync.transport.line import Line
from llmtrain.sync.transport.lines import Lines
from llmtrain.sync.transport.session import Caller
from llmtrain.tasks.assist import prepare_with_help, run_with_help
from llmtrain.tasks.ending import Ending, tell_end
from llmtrain.tasks.foreign import tell_run_dir
from llmtrain.tasks.grace import limit_stop
from llmtrain.tasks.report import data_notes
from llmtrain.train.build import build_parts, build_replica
from llmtrain.train.hang import HangError
from llmtrain.train.replica import Replica
from llmtrain.train.stop import StopRequest
from llmtrain.train.trainer import Trainer
from llmtrain.train.watch import watching
from llmtrain.train.whereabouts import Whereabouts

log = logging.getLogger(__name__)

COLLECTIVE_TIMEOUT_S = 1800.0
"""How long a collective may wait at least, before it gives up."""


class MainFailedError(Exception):
    """Rank 0 has failed and says why itself; this rank only ends."""


def start_rank(run_dir: Path, store: Store) -> RankInfo:
    """Join the process group; return this rank's identity. Collective over the world.

    Args:
        run_dir: The run directory.
        store: The rendezvous store.

    Raises:
        ConfigError: when the device cannot be had.
    """
    tell_run_dir(store, run_dir)
    train = load_run_config(run_dir / paths.CONFIG).train
    info = rank_info(train.device)
    # A hang is to be told by who watches, before a collective gives up without a word of whom.
    patience_s = 2 * max(train.hang_timeout_s or 0.0, train.hang_timeout_slow_s)
    init_process_group(info, store, timeout_s=max(COLLECTIVE_TIMEOUT_S, patience_s))
    return info


def run_train(
    run_dir: Path,
    info: RankInfo,
    store: Store,
    stop: StopRequest,
    *,
    hung: Callable[[HangError], None],
) -> int:
    """Train the run of `run_dir`; return the exit code. Collective over the world.

    Args:
        run_dir: A frozen run directory.
        info: This rank.
        store: The rendezvous store.
        stop: Says when this process is asked to stop.
        hung: Leaves word of a hang, before the process ends because of it.

    Raises:
        UserError: when the data or a checkpoint cannot be used.
    """
    t0 = time.monotonic()
    # Whoever reads along is gone, as when the terminal is: save, and end as for SIGTERM.
    console = make_console(stderr=True, on_closed=lambda: signal.raise_signal(signal.SIGTERM))
    run = load_run_config(run_dir / paths.CONFIG)
    limit_stop(stop, run_dir, run.checkpoint.grace_s, tells=info.is_main)
    plan = plan_for(run, run_dir, info, console)
    prepared = prepare_once(run, info, store, console)
    if run.sync.simulate.workers is not None:
        # Imported here: it costs a start-up that others need not pay.
        from llmtrain.tasks.simulate import run_simulated

        return run_simulated(run, plan, run_dir, prepared, info, console, stop)
    where = Whereabouts(paths.place_path(run_dir, info.rank))
    with watching(where, run.train, info, store, run_dir, hung):
        with uncollected():
            parts = build_parts(run, plan, run_dir, prepared, info, console)
        parts.where = where
        if info.is_main:
            # A run keeps its tokenizer: it can be read when the prepared data is long gone. Not
            # before the checkpoint was accepted: a refused start leaves the run as it was.
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
        ending = Ending(run, parts.plan, parts.state, info.device, start_tokens=seen)
        tell_end(ending, result, run_dir, console, time.monotonic() - t0)
    return EXIT_OK if result.status == "completed" else stop.exit_code


def plan_for(run: RunConfig, run_dir: Path, info: RankInfo, console: Console) -> Plan:
    """Return the plan for as many processes as there are: hosts may have been lost, or come back.

    Raises:
        ConfigError: when the strategy cannot be cut over them.
    """
    plan = load_plan(run_dir)
    if plan.world_size == info.world_size:
        return plan
    gpus = torch.cuda.device_count() if info.device.type == "cuda" else 0
    plan = make_plan(run, gpus=gpus, world_size=info.world_size)
    if info.is_main:
        plan.save(run_dir / paths.PLAN)
        console.print(f"note: going on with {info.world_size} processes", highlight=False)
    return plan


def run_replica(run_dir: Path, info: RankInfo, store: Store, stop: StopRequest) -> int:
    """Train one replica of a run with a server; return the exit code. Collective over it.

    Raises:
        UserError: when the data or a checkpoint cannot be used.
        LostLineError: when the server is gone.
    """
    assert info.replica is not None and isinstance(store, TCPStore)
    console = make_console(stderr=True)
    run = load_run_config(run_dir / paths.CONFIG)
    assert isinstance(run.sync, ServedConfig)
    limit_stop(stop, run_dir, run.checkpoint.grace_s, tells=False)
    prepared = prepare_once(run, info, store, console)
    parts = build_replica(run, load_plan(run_dir), run_dir, prepared, info, console)
    if info.is_main:
        replace_text(run_dir / paths.TOKENIZER, (prepared / paths.TOKENIZER).read_text())
    stop.defer()
    caller = Caller(info.replica, info.rank, info.restart)
    line = _line(store, caller, run.sync, parts.sync.sizes())
    replica = Replica(parts, line, stop, leaves=lambda: store.check([STOPPING]))
    status = replica.run(line)
    log.info("%s", status)
    return EXIT_OK


def _line(
    store: TCPStore, caller: Caller, sync: ServedConfig, sizes: dict[str, int]
) -> Line | Lines:
    """Return the line to whoever holds the weights."""
    if sync.servers == 1:
        return Line(store, caller, sync.dead_after_s)
    return Lines(store, caller, sync.dead_after_s, owners(sizes, sync.servers), sync.servers)


def prepare_once(run: RunConfig, info: RankInfo, store: Store, console: Console) -> Path:
    """Let rank 0's machine prepare the data, and the first rank of every other one help.

    Collective over the world.

    Raises:
        UserError: when the data cannot be used; on the other ranks, that rank 0 has said so.
    """
    if info.is_main:
        try:
            folder = prepare_with_help(
                run.data,
                run.tokenizer,
                console,
                lambda busy: share_text(store, "preparing", json.dumps(busy)),
            )
        except BaseException as error:
            kind = "refused" if isinstance(error, UserError) else "failed"
            if info.replica is None or kind == "refused":
                # Else this replica is started again, and prepares for the others who wait.
                share_text(store, "preparing", "false")
                share_text(store, "prepared", json.dumps({kind: str(error)}))
            raise
        share_text(store, "prepared", json.dumps({"folder": str(folder)}))
        for note in data_notes(load_report(folder), run.data):
            console.print(f"note: {note}", highlight=False, markup=False, soft_wrap=True)
        return folder
    if info.local_rank == 0 and info.replica is None:
        _help_prepare(run, store)
    answer = json.loads(share_text(store, "prepared", None))
    if "refused" in answer:
        raise RefusedElsewhereError(answer["refused"])
    if "failed" in answer:
        raise MainFailedError(f"rank 0 could not prepare the data: {answer['failed']}")
    return Path(answer["folder"])


def _help_prepare(run: RunConfig, store: Store) -> None:
    """Let this machine help rank 0's, which sees the same errors and says so."""
    if json.loads(share_text(store, "preparing", None)):
        with contextlib.suppress(UserError):
            run_with_help(Preparation.plan(run.data, run.tokenizer), None)
