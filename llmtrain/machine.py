"""What this machine offers, asked without importing torch. Standard library only."""

import os
import statistics
import subprocess
import time
from pathlib import Path

CORES_ENV = "LLMTRAIN_CORES"
"""Cores of this process, where several runs share the machine."""


def usable_cores() -> int:
    """Return the CPU cores this process may run on: affinity, cgroup quota and share counted."""
    share = os.environ.get(CORES_ENV, "")
    if share.isdigit() and int(share):
        return min(int(share), _machine_cores())
    return _machine_cores()


def _machine_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    quota = _cgroup_cores()
    return max(1, min(cores, quota) if quota else cores)


def _cgroup_cores() -> int | None:
    """Return the whole cores a container's CPU quota allows, rounded up; null: no quota."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return None if quota == "max" else max(1, -(-int(quota) // int(period)))
    except (OSError, ValueError):
        return None


def busy_cores() -> int | None:
    """Return how many threads other than this one are running now; null where unknown.

    The median of a few looks: the kernel's own short jobs come and go.
    """
    looks = []
    for _ in range(7):
        try:
            running = Path("/proc/loadavg").read_text().split()[3].partition("/")[0]
        except OSError:
            return None
        looks.append(int(running) - 1)
        time.sleep(0.005)
    return max(0, int(statistics.median(looks)))


def gpu_count() -> int:
    """Return the CUDA devices that a process started here would see."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    present = _gpus_present()
    if visible is None:
        return present
    # As the driver reads it: the list ends at the first device that does not exist.
    count = 0
    for device in visible.split(","):
        name = device.strip()
        if not name or name.startswith("-") or (name.isdigit() and int(name) >= present):
            break
        count += 1
    return min(count, present)


def _gpus_present() -> int:
    try:
        return len(list(Path("/proc/driver/nvidia/gpus").iterdir()))
    except OSError:
        pass
    try:
        listed = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())
