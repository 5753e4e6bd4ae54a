"""The task of the server of a run: `python -m llmtrain.worker RUN_DIR --server 0`.

One thread watches the door, one talks to each process of each replica, and the main one looks at
the clock and at signals. It holds weights, never a model. Where `sync.servers` hold them together,
this one leads, and holds the first part (`follow.py` is the others').
"""

import logging
import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from rich.console import Console

from llmtrain.config import paths
from llmtrain.config.plan import Plan, load_plan
from llmtrain.config.schema import RunConfig
from llmtrain.config.store import load_run_config
from llmtrain.console import make_console
from llmtrain.distributed.env import BEGUN, STOPPING
from llmtrain.errors import EXIT_OK, EXIT_SIGINT, EXIT_SIGTERM
from llmtrain.models.build import build_model
from llmtrain.optim.optimizer import build_elementwise
from llmtrain.optim.scheduler import make_schedule
from llmtrain.sync.server.core import ServerCore
from llmtrain.sync.server.lead import Lead, Publish
from llmtrain.sync.server.opening import open_core
from llmtrain.sync.server.packing import WEIGHTS, under
from llmtrain.sync.server.recipe import build_core, core_settings
from llmtrain.sync.server.tensors import Tensors
from llmtrain.sync.transport.frame import Frame
from llmtrain.sync.transport.hub import Hub
from llmtrain.sync.transport.line import beat_key, own_client
from llmtrain.sync.transport.session import LostLineError, Session, knocks
from llmtrain.sync.transport.shards import Shards, Together
from llmtrain.tasks.ending import Ending, tell_end
from llmtrain.tasks.grace import limit_stop
from llmtrain.train.audience import build_journal
from llmtrain.train.conductor import Conductor, Stage
from llmtrain.train.state import TrainState
from llmtrain.train.stop import StopRequest
from llmtrain.train.token_clock import TokenClock
from llmtrain.train.trainer import TrainResult

log = logging.getLogger(__name__)

LOOK_S = 0.1
"""Seconds between two looks at signals."""
TICK_S = 0.5
"""Seconds between two ticks: how late a death or the end of a grace is noticed."""
GOODBYE_S = 10.0
"""Seconds in which replicas take their last answer."""


def run_server(run_dir: Path, store: dist.Store, stop: StopRequest) -> int:
    """Serve the run of `run_dir` to its end; return the exit code."""
    assert isinstance(store, dist.TCPStore)
    t0 = time.monotonic()
    console = make_console(stderr=True, on_closed=lambda: signal.raise_signal(signal.SIGTERM))
    run, plan = load_run_config(run_dir / paths.CONFIG), load_plan(run_dir)
    limit_stop(stop, run_dir, run.checkpoint.grace_s, tells=True)
    shards = (
        Shards(own_client(store), plan.servers, partial(open_shard, run))
        if plan.servers > 1
        else None
    )
    opening = partial(open_stage, run, run_dir, console, publish=shards.publish if shards else None)
    conductor = Conductor(run, plan.dp_replicate, opening, run_dir)
    hub = Hub(conductor if shards is None else Together(conductor, shards), plan.replica_size)
    watch_door(hub, store)
    _serve(hub, conductor, store, plan.dp_replicate, stop)
    if shards is not None:
        shards.end()
    assert conductor.journal is not None and conductor.plan is not None
    conductor.journal.close()
    ending = Ending(
        run,
        conductor.plan,
        conductor.state,
        torch.device("cpu"),
        start_tokens=conductor.start_tokens,
    )
    result = TrainResult(conductor.status, conductor.journal.train_loss, conductor.val_loss)
    tell_end(ending, result, run_dir, console, time.monotonic() - t0)
    codes = {"completed": EXIT_OK, "stopped": EXIT_SIGINT, "preempted": EXIT_SIGTERM}
    return codes[conductor.status]


def _serve(
    hub: Hub, conductor: Conductor, store: dist.TCPStore, replicas: int, stop: StopRequest
) -> None:
    """Look at the clock until training is over."""
    beats: dict[int, int] = {}
    ticked = 0.0
    begun = False
    while not conductor.finished:
        time.sleep(LOOK_S)
        if hub.error is not None:
            raise hub.error
        if not conductor.begun:
            continue
        if not begun:
            begun = True
            store.set(BEGUN, "")
            stop.defer()
        if stop.asked:
            store.set(STOPPING, "")
            hub.act(partial(conductor.stop, stop.status))
        if time.monotonic() - ticked >= TICK_S:
            ticked = time.monotonic()
            now = {worker: store.add(beat_key(worker), 0) for worker in range(replicas)}
            alive = [worker for worker, count in now.items() if count != beats.get(worker)]
            hub.act(partial(conductor.tick, alive))
            beats = now
    until = time.monotonic() + GOODBYE_S
    while hub.lines and time.monotonic() < until:
        time.sleep(LOOK_S)


def watch_door(hub: Hub, store: dist.TCPStore, server: int = 0) -> None:
    """Let everyone in who knocks, each with a thread of its own; returns at once."""
    threading.Thread(target=_watch, args=(hub, own_client(store), server), daemon=True).start()


def _watch(hub: Hub, store: dist.TCPStore, server: int) -> None:
    def let_in(worker: int, place: int, restart: int, name: str) -> None:
        try:
            # Not the door's connection: a caller that has died since would keep all others out.
            session = Session(own_client(store), name, answers=True)
        except LostLineError as error:
            log.info("replica %d, place %d did not come in: %s", worker, place, error)
            return
        hub.serve(worker, place, restart, session)

    try:
        for knock in knocks(store, server):
            if knock is not None:
                caller, name = knock
                args = (caller.worker, caller.place, caller.restart, name)
                threading.Thread(target=let_in, args=args, daemon=True).start()
    except dist.DistError:
        log.info("the store is gone")


def open_stage(
    run: RunConfig,
    run_dir: Path,
    console: Console,
    weights: Tensors,
    plan: Plan,
    state: TrainState,
    *,
    publish: Publish | None = None,
) -> Stage:
    """Build the server where training stands at `state`; one that leads others by `publish`."""
    clock = TokenClock(
        tokens_per_step=plan.tokens_per_step, total_steps=plan.total_steps,
        eval_every_steps=run.train.eval_every_steps, save_every_steps=run.checkpoint.every_steps,
    )  # fmt: skip
    if publish is None:
        core = _core(run, weights, plan)
    else:
        core = Lead(
            core_settings(
                run.sync, total_tokens=plan.total_steps * plan.tokens_per_step,
                step_tokens=_step_tokens(plan),
            ), publish,
        )  # fmt: skip
    journal = build_journal(run, plan, run_dir, console, state)
    return Stage(core, make_lr(run, plan), clock, journal)


def open_shard(run: RunConfig, opening: Frame) -> ServerCore:
    """Build one server of several from its part of what the first replica gave."""
    said = opening.fields
    plan, plain = Plan(**said["plan"]), said["server"]
    core = _core(run, under(WEIGHTS, opening.tensors), plan)
    tokens = said["train_state"]["step"] * plan.tokens_per_step
    open_core(core, plain and plain["core"], opening.tensors, tokens, said["rule"])
    return core


def _core(run: RunConfig, weights: Tensors, plan: Plan) -> ServerCore:
    assert plan.vocab_size is not None
    no_decay = build_model(run.model, plan.vocab_size).NO_DECAY
    return build_core(
        run.sync, weights, replicas=plan.dp_replicate,
        total_tokens=plan.total_steps * plan.tokens_per_step, step_tokens=_step_tokens(plan),
        lr=make_lr(run, plan),
        optimizer=lambda named: build_elementwise(run.optimizer, named, no_decay=no_decay),
    )  # fmt: skip


def _step_tokens(plan: Plan) -> int:
    """Return the tokens of a replica's step."""
    return plan.tokens_per_step // plan.dp_replicate


def make_lr(run: RunConfig, plan: Plan) -> Callable[[int], float]:
    """Return the learning rate of the run's optimizer as a function of tokens."""
    schedule = make_schedule(run.scheduler, plan.total_steps)

    def lr(tokens: int) -> float:
        step = min(tokens // plan.tokens_per_step, plan.total_steps - 1)
        return run.optimizer.lr * schedule(step)

    return lr
