"""The task of a run on a virtual clock: `sync.simulate.workers=W`."""

import dataclasses
import time
from functools import partial
from pathlib import Path

from rich.console import Console

from llmtrain.config import paths
from llmtrain.config.groups.served import as_served
from llmtrain.config.groups.simulate import SimulateConfig
from llmtrain.config.plan import Plan
from llmtrain.config.schema import RunConfig
from llmtrain.distributed.env import RankInfo
from llmtrain.durable import replace_text
from llmtrain.errors import EXIT_OK
from llmtrain.sync.virtual.durations import Durations, constant, straggler, transient
from llmtrain.tasks.ending import Ending, tell_end
from llmtrain.tasks.serve import open_stage
from llmtrain.train.build import build_replica
from llmtrain.train.conductor import Conductor
from llmtrain.train.replica import Replica
from llmtrain.train.simulation import Simulation, VirtualLine
from llmtrain.train.stop import StopRequest
from llmtrain.train.trainer import TrainResult
from llmtrain.units import format_duration


def run_simulated(
    run: RunConfig,
    plan: Plan,
    run_dir: Path,
    prepared: Path,
    info: RankInfo,
    console: Console,
    stop: StopRequest,
) -> int:
    """Train the virtual replicas of `run` in this process; return the exit code.

    Raises:
        UserError: when a checkpoint, or the log to replay, cannot be used.
    """
    t0, simulate = time.monotonic(), run.sync.simulate
    assert simulate.workers is not None
    run = dataclasses.replace(run, sync=as_served(run.sync))
    lines = [VirtualLine() for _ in range(simulate.workers)]
    replicas = []
    for worker, line in enumerate(lines):
        one = dataclasses.replace(info, replica=worker)
        parts = build_replica(run, plan, run_dir, prepared, one, console)
        replicas.append(Replica(parts, line, stop))
    replace_text(run_dir / paths.TOKENIZER, (prepared / paths.TOKENIZER).read_text())
    opening = partial(open_stage, run, run_dir, console)
    conductor = Conductor(
        run, simulate.workers, opening, run_dir, lambda: simulation.now_s, is_virtual=True
    )
    simulation = Simulation(conductor, replicas, lines)
    stop.defer()
    try:
        _run(simulation, simulate, run.train.seed, stop)
    finally:
        for replica in replicas:
            replica.close()
        if conductor.journal is not None:
            conductor.journal.close()
    assert conductor.journal is not None and conductor.plan is not None
    result = TrainResult(conductor.status, conductor.journal.train_loss, conductor.val_loss)
    ending = Ending(run, conductor.plan, conductor.state, info.device, conductor.start_tokens)
    tell_end(ending, result, run_dir, console, time.monotonic() - t0)
    most = max(range(simulate.workers), key=lambda worker: simulation.waited_s[worker])
    waited_s = simulation.waited_s[most]
    waited = f"replica {most} waited longest, {format_duration(waited_s)} in this start"
    console.print(
        f"virtual time {format_duration(conductor.now())}; {waited if waited_s else 'none waited'}",
        highlight=False,
    )
    return EXIT_OK if conductor.status == "completed" else stop.exit_code


def _run(simulation: Simulation, config: SimulateConfig, seed: int, stop: StopRequest) -> None:
    def asked() -> str | None:
        return stop.status if stop.asked else None

    if config.log is None:
        simulation.run(_durations(config, seed), asked)
        return
    simulation.replay(Path(config.log), asked)


def _durations(config: SimulateConfig, seed: int) -> Durations:
    assert config.workers is not None
    if config.schedule == "straggler":
        return straggler(config.workers - 1, config.factor, config.step_s)
    if config.schedule == "transient":
        return transient(config.probability, config.factor, seed, config.step_s)
    return constant(config.step_s)
