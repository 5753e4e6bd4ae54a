"""Ranks that another launcher has started: torchrun, srun or mpirun. Each becomes its worker.

    torchrun --nproc-per-node N -m llmtrain train ...
    srun -n N llmtrain train ...
    mpirun -n N llmtrain train ...

Rank 0 alone composes and freezes the run directory; the others become workers at once and learn its
path from rank 0's over the rendezvous store, or that rank 0 has refused (`tasks/foreign.py`).
"""

import os
import re
import subprocess
import sys
import time
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

from llmtrain.config.groups.launcher import LauncherConfig, LocalLauncherConfig
from llmtrain.distributed.node import interface_towards
from llmtrain.errors import ConfigError
from llmtrain.launch.environment import worker_environment
from llmtrain.launch.local import PYTHON

SILENCE_S = 20.0
"""How long a refused rank leaves the word to rank 0; after that the fault is its own machine's."""

PORTS = range(20000, 30000)
"""Where ranks meet that were told no port: below those that the kernel gives away, in Linux."""


def rank() -> int | None:
    """Return this process' rank where another launcher started it as one of several, else null."""
    world = ranks_of(os.environ)
    return int(world["RANK"]) if world else None


def world_size() -> int:
    """Return how many processes that launcher started."""
    return int(ranks_of(os.environ)["WORLD_SIZE"])


def let_rank_0_speak() -> None:
    """On another rank than 0, wait to be ended; return when rank 0 seems to have no error.

    A command line that cannot be read is refused on every rank, and told by rank 0 alone. Launchers
    end the others as soon as one rank has ended, so one that ended before it would take away its
    words.
    """
    if rank():
        time.sleep(SILENCE_S)


def ranks_of(env: Mapping[str, str]) -> dict[str, str]:
    """Return RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE as another launcher gave them.

    Empty where none did: a batch script has most of Slurm's variables too, and one rank needs no
    other. A torchrun inside a job step is torchrun's.
    """
    if all(name in env for name in ("RANK", "WORLD_SIZE", "TORCHELASTIC_RUN_ID")):
        local = env.get("LOCAL_RANK", "0"), env.get("LOCAL_WORLD_SIZE", "1")
        return _named(env["RANK"], env["WORLD_SIZE"], *local)
    if "SLURM_STEP_ID" in env and env.get("SLURM_STEP_NUM_TASKS", "1") != "1":
        node = int(env.get("SLURM_NODEID", "0"))
        local_size = _tasks_per_node(env.get("SLURM_STEP_TASKS_PER_NODE", "1"))[node]
        return _named(
            env["SLURM_PROCID"], env["SLURM_STEP_NUM_TASKS"], env["SLURM_LOCALID"], str(local_size)
        )
    if env.get("OMPI_COMM_WORLD_SIZE", "1") != "1":
        prefix = "OMPI_COMM_WORLD_"
        return _named(*(env[prefix + k] for k in ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE")))
    if env.get("PMI_SIZE", "1") != "1" and "MPI_LOCALRANKID" in env:  # MPICH and Intel
        return _named(
            env["PMI_RANK"], env["PMI_SIZE"], env["MPI_LOCALRANKID"], env["MPI_LOCALNRANKS"]
        )
    return {}


def meeting_of(env: Mapping[str, str]) -> dict[str, str]:
    """Return MASTER_ADDR and MASTER_PORT, where ranks meet that another launcher started.

    Raises:
        ConfigError: when ranks of several hosts were not told where, and cannot find out.
    """
    if "TORCHELASTIC_RUN_ID" in env:
        return {name: env[name] for name in ("MASTER_ADDR", "MASTER_PORT") if name in env}
    world = ranks_of(env)
    job = env.get("PMIX_NAMESPACE") or f"{env.get('SLURM_JOB_ID')}.{env.get('SLURM_STEP_ID')}"
    port = env.get("MASTER_PORT") or str(PORTS[zlib.crc32(job.encode()) % len(PORTS)])
    if "MASTER_ADDR" in env:
        return {"MASTER_ADDR": env["MASTER_ADDR"], "MASTER_PORT": port}
    if world["WORLD_SIZE"] == world["LOCAL_WORLD_SIZE"]:
        return {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    if "SLURM_STEP_NODELIST" in env:
        return {"MASTER_ADDR": _first_host(env["SLURM_STEP_NODELIST"]), "MASTER_PORT": port}
    raise ConfigError(
        f"the {world['WORLD_SIZE']} ranks of several hosts do not know where to meet: name the "
        "host of rank 0, as `mpirun -x MASTER_ADDR=HOST -x MASTER_PORT=29500 ...`."
    )


def check_meeting() -> None:
    """See that this rank knows where the others are.

    Raises:
        ConfigError: when it does not.
    """
    meeting_of(os.environ)


def become_worker(run_dir: Path, launcher: LauncherConfig) -> NoReturn:
    """Replace this process by the worker of `run_dir`.

    Raises:
        ConfigError: when the ranks do not know where to meet.
    """
    _become(launcher, str(run_dir))


def become_follower() -> NoReturn:
    """Replace this process, another rank than 0, by a worker that rank 0 tells what to train.

    Raises:
        ConfigError: when the ranks do not know where to meet.
    """
    _become(LocalLauncherConfig(), "-")


def become_refusal() -> NoReturn:
    """Replace this process, rank 0, by one that tells the others that it has refused, and ends.

    Not every launcher ends the others: srun does so only when told to.

    Raises:
        ConfigError: when the ranks do not know where to meet.
    """
    _become(LocalLauncherConfig(), "--refuse")


def settle(run_dir: Path, launcher: LauncherConfig) -> None:
    """Become the worker of `run_dir` anew where it asks for another environment than a follower's.

    Threads and allocator are read as a process starts, before it can know of them.
    """
    if launcher.threads_per_process is not None or not launcher.tune_allocator:
        become_worker(run_dir, launcher)


def _become(launcher: LauncherConfig, argument: str) -> NoReturn:
    world = ranks_of(os.environ)
    base = {**os.environ, **world, **meeting_of(os.environ)}
    processes = int(world["LOCAL_WORLD_SIZE"])
    if processes > 1 and base.get("OMP_NUM_THREADS") == "1":
        # torchrun's own default, which leaves most cores idle.
        del base["OMP_NUM_THREADS"]
    apart = world["WORLD_SIZE"] != world["LOCAL_WORLD_SIZE"]
    interface = None
    if apart and "MASTER_ADDR" in base:
        interface = interface_towards(base["MASTER_ADDR"], int(base["MASTER_PORT"]))
    env = worker_environment(launcher, processes, base, hosts=1 + apart, interface=interface)
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, [*PYTHON, "llmtrain.worker", argument], env)


def _named(rank: str, size: str, local_rank: str, local_size: str) -> dict[str, str]:
    return {
        "RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": local_rank, "LOCAL_WORLD_SIZE": local_size,
    }  # fmt: skip


def _tasks_per_node(text: str) -> list[int]:
    """Return tasks of each node, of Slurm's `2(x3),1`."""
    tasks: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        assert found, f"SLURM_STEP_TASKS_PER_NODE={text}"
        tasks += [int(found[1])] * int(found[2] or 1)
    return tasks


def _first_host(nodes: str) -> str:
    """Return the first of Slurm's `node[1-2]`.

    Raises:
        ConfigError: when `scontrol`, which knows how to read it, cannot be run.
    """
    try:
        listed = subprocess.run(
            ["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, timeout=30,
            check=True,
        )  # fmt: skip
        return listed.stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        raise ConfigError(
            f"SLURM_STEP_NODELIST={nodes}: `scontrol show hostnames` does not answer here; set "
            "MASTER_ADDR to the host of rank 0."
        ) from None
