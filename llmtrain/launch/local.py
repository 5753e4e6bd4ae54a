"""Start the workers of one run on this machine, and see them to their end.

One process is started as it is; several, or one that may be started again, under torchrun's elastic
agent (`llmtrain/agent.py`), which gives them a rendezvous store and stops all when one dies.
"""

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmtrain.config.groups.launcher import LocalLauncherConfig
from llmtrain.config.groups.served import ServedConfig
from llmtrain.config.plan import Plan
from llmtrain.config.schema import RunConfig
from llmtrain.distributed.node import Node, interface_towards
from llmtrain.errors import EXIT_BUG, EXIT_OK
from llmtrain.launch.environment import worker_environment
from llmtrain.launch.failure import (
    before_training,
    complete_result,
    put_by,
    read_failures,
    report_failure,
    stop_status,
)
from llmtrain.launch.kills import Kills
from llmtrain.launch.process import Ended, supervise
from llmtrain.panel import show_error, show_note

PYTHON = (sys.executable, "-P", "-m")
"""-P: a stray `random.py` in the current folder is not imported in place of the real one."""


def launch(
    run_dir: Path, run: RunConfig, plan: Plan, *, output: Path | None = None,
    node: Node | None = None, digest: str = "",
) -> int:  # fmt: skip
    """Train from the frozen `run_dir`; return the exit code.

    Args:
        run_dir: The run directory.
        run: Its configuration.
        plan: Its plan.
        output: Takes all that is printed, failures too; null: the terminal does.
        node: This host, the first of several; null: it is alone.
        digest: Of the configuration, which the other hosts must have, too.
    """
    assert node is not None or plan.nnodes == 1, "one host of several would train alone"
    put_by(run_dir)
    since, before = time.time(), Kills.now()
    processes = plan.nproc_per_node + plan.servers
    alone = processes == 1 and run.launcher.max_restarts == 0 and node is None
    if alone:
        command = [*PYTHON, "llmtrain.worker", str(run_dir)]
    else:
        command = _agent(str(run_dir), plan, node, digest)
    if isinstance(run.sync, ServedConfig) and plan.servers:
        command += ["--replicas", str(plan.dp_replicate)]
    ended = supervise(command, _environment(run, plan, node), output)
    if ended.stopped_by is not None and ended.exit_code > 128:
        status = stop_status(ended.exit_code)
        untold = complete_result(run_dir, status, None, since=since)
        if untold and output is None:
            killed = "killed: the same run_dir goes on from its newest checkpoint"
            show_note(killed if ended.forced else before_training(status))
        return ended.exit_code
    if ended.code == EXIT_OK:
        return EXIT_OK
    shown = output is None
    if alone:
        failures = read_failures(run_dir, {0: (ended.code, time.time())})
        return report_failure(run_dir, failures, since=since, shown=shown, before=before)
    return _after_agent(run_dir, ended, since, shown=shown)


def join(run: RunConfig, plan: Plan, node: Node, digest: str) -> int:
    """Train as another host than the first, which has the run directory; return the exit code.

    Args:
        run: The configuration as this host has it.
        plan: Its plan.
        node: This host.
        digest: Of the configuration.
    """
    ended = supervise(_agent("-", plan, node, digest), _environment(run, plan, node))
    if ended.code < 0 and ended.stopped_by is None:
        show_error("launch failed", f"the agent was killed by signal {-ended.code}.")
        return EXIT_BUG
    return ended.exit_code


def _agent(run_dir: str, plan: Plan, node: Node | None, digest: str) -> list[str]:
    words = [] if node is None else [*node.words(), "--digest", digest]
    processes = str(plan.nproc_per_node)
    return [*PYTHON, "llmtrain.agent", run_dir, "--nproc-per-node", processes, *words]


def _environment(run: RunConfig, plan: Plan, node: Node | None) -> dict[str, str]:
    interface = None if node is None else interface_towards(node.host, node.port)
    return worker_environment(
        run.launcher, plan.nproc_per_node, hosts=plan.nnodes, interface=interface
    )


def _after_agent(run_dir: Path, ended: Ended, since: float, *, shown: bool) -> int:
    """Return the exit code after an agent, which has told its workers' failure if it could."""
    if ended.code < 0:
        error = f"the agent was killed by signal {-ended.code}"
        complete_result(run_dir, "failed", error, since=since)
        if shown:
            show_error("launch failed", f"{error}; its workers ended with it.", footer=str(run_dir))
        return EXIT_BUG
    return ended.code


def run_task(task: str, request: Mapping[str, Any]) -> int:
    """Have one worker do `task` with the plain values of `request`; return the exit code."""
    command = [*PYTHON, "llmtrain.worker", "--task", task, "--request", json.dumps(request)]
    ended = supervise(command, worker_environment(LocalLauncherConfig(), 1))
    if ended.code < 0 and ended.stopped_by is None:
        show_error(f"{task} failed", f"The process was killed by signal {-ended.code}.")
        return EXIT_BUG
    if ended.stopped_by is not None:
        show_note(f"{task} {stop_status(ended.exit_code)}")
    return ended.exit_code
