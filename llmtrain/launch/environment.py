"""The environment variables of worker processes. What the user has set is never overridden."""

import os
import socket
import sys
from collections.abc import Mapping
from pathlib import Path

from llmtrain.config.groups.launcher import LauncherConfig
from llmtrain.machine import busy_cores, usable_cores

TUNABLES = {
    "glibc.malloc.mmap_threshold": str(4 * 2**30),
    "glibc.malloc.trim_threshold": str(16 * 2**30),
    "glibc.malloc.hugetlb": "1",
}
"""glibc gives freed tensors over 32 MiB back to the kernel, and the top of the heap after every
step; the next step pays for the same pages again, zeroed one fault at a time.

Measured on 2 cores, glibc 2.36, one step of a GPT, page faults and kernel time a step:

                                    0.8 M parameters        10.6 M parameters, 256 x 8 tokens
    default                         1000 faults   2.2 ms    44000 faults    65-100 ms
    mmap_threshold alone            1500          3.8       11000           20
    trim_threshold alone           15000         30        169000          300 (worse: it also
                                                            freezes the dynamic mmap threshold)
    both                               3          0.1         360            4-12
    both and hugetlb=1 (madvise)       0          0.1           1           14-17

So the two thresholds belong together and take a tenth off a step. Huge pages are for what the
kernel's TLB misses cost in models that are larger than these; they do no harm here. mmap_max=0
does what mmap_threshold does, and top_pad adds nothing to the three.
"""


PATIENT_SPINS = "2000"
"""How often a thread of libgomp looks for work before it sleeps, where cores are shared.

By default (300000) threads spin at every barrier for milliseconds: best where the cores are theirs,
ruinous where something else wants them. Measured, one step of a GPT of 0.8 M parameters on 2 cores,
medians of interleaved rounds: with a third process busy 180 ms by default, 192 ms with 10000 spins,
129 ms with 2000; idle 54.0 ms, 55.3 ms and 57.1 ms.
"""


def worker_environment(
    launcher: LauncherConfig,
    processes: int,
    base: Mapping[str, str] = os.environ,
    *,
    hosts: int = 1,
    interface: str | None = None,
) -> dict[str, str]:
    """Return the environment in which `processes` workers of this machine run.

    Args:
        launcher: Threads and allocator, as asked for.
        processes: Workers on this machine, which share its cores.
        base: The environment it starts from.
        hosts: Machines of the run.
        interface: The network interface by which the others are reached; None: not known.
    """
    env = dict(base)
    if launcher.threads_per_process is not None:
        env["OMP_NUM_THREADS"] = str(launcher.threads_per_process)
    env.setdefault("OMP_NUM_THREADS", str(max(1, usable_cores() // processes)))
    threads = env["OMP_NUM_THREADS"].partition(",")[0].strip()  # then come nested levels
    if not threads.isdigit() or _is_shared(processes * int(threads)):
        env.setdefault("GOMP_SPINCOUNT", PATIENT_SPINS)
    env.setdefault("PYTHONUNBUFFERED", "1")
    # Of a lost peer every rank's C++ would complain; the launcher tells whose fault it was.
    env.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    if sys.platform.startswith("linux"):
        env.update(_tunables(env) if launcher.tune_allocator else _untuned(env))
    loopback = "lo" if sys.platform.startswith("linux") else "lo0"
    if hosts > 1:
        if interface is not None:
            env.setdefault("GLOO_SOCKET_IFNAME", interface)
            env.setdefault("NCCL_SOCKET_IFNAME", interface)
    elif env.get("WORLD_SIZE", str(processes)) == str(processes):
        # All ranks are on this machine: they listen where no other machine can reach them.
        env.setdefault("GLOO_SOCKET_IFNAME", loopback)
        env.setdefault("NCCL_SOCKET_IFNAME", loopback)
    elif not _hostname_resolves():
        env.setdefault("GLOO_SOCKET_IFNAME", loopback)
    env.update(python_path(env))
    return env


def _is_shared(threads: int) -> bool:
    """Whether `threads` more would not find a core each."""
    busy = busy_cores()
    return busy is None or busy + threads > usable_cores()


def _tunables(env: Mapping[str, str]) -> dict[str, str]:
    """Return GLIBC_TUNABLES with ours added, the user's first and unchanged."""
    given = env.get("GLIBC_TUNABLES", "")
    names = {part.partition("=")[0] for part in given.split(":")}
    ours = [f"{name}={value}" for name, value in TUNABLES.items() if name not in names]
    return {"GLIBC_TUNABLES": ":".join([*([given] if given else []), *ours])} if ours else {}


def _untuned(env: Mapping[str, str]) -> dict[str, str]:
    """Return GLIBC_TUNABLES without ours, which a follower of rank 0 has before it knows better."""
    given = env.get("GLIBC_TUNABLES", "").split(":")
    ours = {f"{name}={value}" for name, value in TUNABLES.items()}
    left = [part for part in given if part not in ours]
    return {} if left == given else {"GLIBC_TUNABLES": ":".join(left)}


def _hostname_resolves() -> bool:
    """Whether gloo would find an address under this machine's name."""
    try:
        socket.getaddrinfo(socket.gethostname(), None)
    except OSError:
        return False
    return True


def python_path(env: Mapping[str, str]) -> dict[str, str]:
    """Return PYTHONPATH with this package's parent where only the current folder leads to it.

    Workers start with `python -P`, so that a stray `random.py` in the current folder is not
    imported in place of the real one.
    """
    root = str(Path(__file__).resolve().parents[2])
    if root != str(Path.cwd()):
        return {}
    given = env.get("PYTHONPATH", "")
    return {"PYTHONPATH": f"{given}{os.pathsep}{root}" if given else root}
