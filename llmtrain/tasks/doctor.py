"""`python -m llmtrain.tasks.doctor [--json]`: what this machine offers, and what to mend.

Each check looks at one thing and says how it stands; a check that breaks is itself a finding. Exit
code 1 where something essential is broken: training would not start.
"""

import dataclasses
import errno
import importlib
import importlib.metadata
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from llmtrain import __version__
from llmtrain.console import answering, make_console
from llmtrain.errors import EXIT_BUG, EXIT_OK
from llmtrain.machine import gpu_count, usable_cores
from llmtrain.units import format_bytes

GIB = 2**30
PACKAGES = ("hydra-core", "omegaconf", "numpy", "datasets", "tokenizers", "rich", "xxhash")
EXTRAS = ("optuna", "tensorboard", "wandb")
ENOUGH_FILES = 1024
ENOUGH_DISK_BYTES = 5 * GIB
ENOUGH_SHM_BYTES = GIB
PING_S = 5.0
"""How long Slurm's controller may take to answer."""
FIRST_SANE_TIME = 1_700_000_000
"""Unix s; a clock before it (November 2023) is wrong."""


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's answer."""

    name: str
    status: str
    """ok | warning | broken (training would not start)."""
    value: str
    fix: str = ""


def check_versions() -> Iterator[Finding]:
    """Look at Python and at the packages."""
    old = sys.version_info < (3, 11)
    yield Finding(
        "python", "broken" if old else "ok", f"{platform.python_version()} ({sys.executable})",
        "Use Python 3.11 or newer." if old else "",
    )  # fmt: skip
    yield Finding("platform", "ok", platform.platform())
    yield Finding("llmtrain", "ok", __version__)
    for package in PACKAGES:
        yield _package(package, "broken", "Run make setup, or pip install llmtrain again.")
    for extra in EXTRAS:
        found = _package(extra, "ok", "")
        if found.value == "not installed":
            found = dataclasses.replace(found, value=f"not installed (llmtrain[{extra}])")
        yield found


def _package(name: str, missing: str, fix: str) -> Finding:
    try:
        return Finding(name, "ok", importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return Finding(name, missing, "not installed", fix)


def check_torch() -> Iterator[Finding]:
    """Look at torch, its backends and its devices."""
    try:
        torch = importlib.import_module("torch")
        dist = importlib.import_module("torch.distributed")
    except Exception as error:  # a broken native library raises anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        yield Finding("torch", "broken", reason, "Install torch 2.13 again: make setup.")
        return
    right = str(torch.__version__).startswith("2.13")
    yield Finding(
        "torch", "ok" if right else "warning", str(torch.__version__),
        "" if right else "llmtrain is made for torch 2.13: make setup.",
    )  # fmt: skip
    gloo = dist.is_available() and dist.is_gloo_available()
    yield Finding(
        "gloo", "ok" if gloo else "broken", "available" if gloo else "missing",
        "" if gloo else "This build of torch cannot train on several CPU processes.",
    )  # fmt: skip
    gpus, seen = gpu_count(), torch.cuda.device_count() if torch.cuda.is_available() else 0
    nccl = dist.is_available() and dist.is_nccl_available()
    bad = seen > 0 and not nccl
    yield Finding(
        "nccl", "warning" if bad else "ok",
        "available" if nccl else "not in this build of torch; only GPUs need it",
        "Install a CUDA build of torch." if bad else "",
    )  # fmt: skip
    yield Finding(
        "gpus", "warning" if gpus != seen else "ok",
        ", ".join(torch.cuda.get_device_name(i) for i in range(seen))
        or (f"{gpus} that torch cannot use" if gpus else "none: training runs on the processor"),
        f"The driver shows {gpus}, torch {seen}: install a CUDA build of torch that fits it."
        if gpus != seen else "",
    )  # fmt: skip
    mps = hasattr(torch.backends, "mps") and torch.backends.mps.is_available()
    yield Finding("mps", "ok", "available, and not used" if mps else "none")


def check_cpu() -> Iterator[Finding]:
    """Look at the processor: cores that may be used and number formats it computes in."""
    info = _proc_cpuinfo()
    present, usable = os.cpu_count() or 1, usable_cores()
    yield Finding("cpu", "ok", info.get("model name") or platform.processor() or "unknown")
    yield Finding("cores", "ok", f"{usable} usable of {present}")
    flags = set(info.get("flags", "").split())
    formats = [f for f in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if f in flags]
    yield Finding("cpu formats", "ok", " ".join(formats) or "none known")
    fast = bool({"avx512_bf16", "amx_bf16"} & flags)
    yield Finding(
        "bf16 on the cpu",
        "ok",
        "in hardware" if fast else "emulated: train.precision=fp32 is faster",
    )


def _proc_cpuinfo() -> dict[str, str]:
    try:
        text = Path("/proc/cpuinfo").read_text().partition("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in text.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def check_memory() -> Iterator[Finding]:
    """Look at memory and at /dev/shm."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}
        total, free = sizes["MemTotal"], sizes["MemAvailable"]
    except (OSError, KeyError, ValueError, IndexError):
        yield Finding("memory", "ok", "unknown")
    else:
        low = free < GIB
        yield Finding(
            "memory", "warning" if low else "ok",
            f"{format_bytes(free)} free of {format_bytes(total)}",
            "Under 1 GiB is free: end other programs, or use a smaller model." if low else "",
        )  # fmt: skip
    shm = Path("/dev/shm")
    if shm.is_dir():
        size = shutil.disk_usage(shm).total
        small = size < ENOUGH_SHM_BYTES
        yield Finding(
            "/dev/shm", "warning" if small else "ok", format_bytes(size),
            "Small for NCCL and loaders: docker run --shm-size=8g, or --ipc=host." if small else "",
        )  # fmt: skip


def check_disk() -> Iterator[Finding]:
    """Look at the folders that runs and prepared data go to: writable, and with room."""
    given = os.environ.get("LLMTRAIN_CACHE")
    cache = Path(given).expanduser() if given else Path.home() / ".cache" / "llmtrain"
    places = (
        ("current folder", Path.cwd(), "run_dir=DIR"),
        ("data cache", cache, "data.cache_dir=DIR or LLMTRAIN_CACHE"),
    )
    for name, folder, key in places:
        existing = next(path for path in (folder, *folder.parents) if path.exists())
        free = shutil.disk_usage(existing).free
        try:
            with tempfile.TemporaryFile(dir=existing):
                pass
        except OSError as error:
            yield Finding(name, "warning", f"{folder}: {error.strerror}", f"Use another: {key}.")
            continue
        low = free < ENOUGH_DISK_BYTES
        yield Finding(
            name, "warning" if low else "ok", f"{folder}: {format_bytes(free)} free",
            f"Make room, or use another disk: {key}." if low else "",
        )  # fmt: skip


def check_network() -> Iterator[Finding]:
    """Look at what ranks find each other by: the loopback device and this machine's name."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as server:
            server.bind(("127.0.0.1", 0))
            server.listen(1)
            with socket.create_connection(server.getsockname(), timeout=5):
                port = server.getsockname()[1]
        yield Finding("loopback", "ok", f"127.0.0.1 answers (tried port {port})")
    except OSError as error:
        yield Finding(
            "loopback", "broken", f"127.0.0.1: {error.strerror}",
            "Ranks meet on 127.0.0.1: bring the device up (ip link set lo up), open the firewall.",
        )  # fmt: skip
    name = socket.gethostname()
    try:
        yield Finding("host name", "ok", f"{name} -> {socket.gethostbyname(name)}")
    except OSError:
        yield Finding(
            "host name", "warning", f"{name} does not resolve",
            f"Add it to /etc/hosts (127.0.0.1 {name}); gloo uses the loopback device meanwhile.",
        )  # fmt: skip


def check_limits() -> Iterator[Finding]:
    """Look at open files and at the clock."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = soft != resource.RLIM_INFINITY and soft < ENOUGH_FILES
    yield Finding(
        "open files", "warning" if few else "ok", f"{soft} (hard limit {hard})",
        f"Raise it: ulimit -n {min(hard, 65536) if hard > 0 else 65536}." if few else "",
    )  # fmt: skip
    wrong = time.time() < FIRST_SANE_TIME
    yield Finding(
        "clock", "warning" if wrong else "ok",
        time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
        "Set the clock: names of run folders and logs come from it." if wrong else "",
    )  # fmt: skip


def check_launchers() -> Iterator[Finding]:
    """Look for schedulers and for a launcher that this process is already under."""
    yield _slurm()
    ranks = [
        f"{k}={os.environ[k]}" for k in ("RANK", "WORLD_SIZE", "SLURM_JOB_ID") if k in os.environ
    ]
    yield Finding("started by", "ok", " ".join(ranks) or "a shell")


def _slurm() -> Finding:
    """Return whether a job could be submitted: sbatch alone is installed on many machines."""
    sbatch = shutil.which("sbatch")
    if sbatch is None:
        return Finding("slurm", "ok", "not on this machine")
    ping = ["scontrol", "ping"]
    try:
        done = subprocess.run(
            ping, capture_output=True, text=True, timeout=PING_S, check=False, errors="replace"
        )
    except subprocess.TimeoutExpired:
        said, answers = f"no answer in {PING_S:g} s", False
    except OSError as error:
        said, answers = error.strerror or "cannot be started", False
    else:
        lines = (done.stdout.strip() or done.stderr.strip()).splitlines() or ["says nothing"]
        # Slurmctld(primary) at head is UP; of backups each has a line. Errors: the last tells most.
        up = [line for line in lines if line.split()[-1:] == ["UP"]]
        said, answers = (up or lines[-1:])[0].strip(), bool(up)
    return Finding(
        "slurm", "ok" if answers else "warning", f"{sbatch}; scontrol ping: {said}",
        "" if answers else "launcher=slurm works where a controller answers: on a login node.",
    )  # fmt: skip


CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    check_versions,
    check_torch,
    check_cpu,
    check_memory,
    check_disk,
    check_network,
    check_limits,
    check_launchers,
)


def examine() -> list[Finding]:
    """Return the findings of every check."""
    findings = []
    for check in CHECKS:
        try:
            findings += list(check())
        except Exception as error:
            code = getattr(error, "errno", None)
            reason = errno.errorcode.get(code, "") if code else ""
            name = check.__name__.removeprefix("check_")
            findings.append(Finding(name, "warning", f"{type(error).__name__} {reason}: {error}"))
    return findings


def show(findings: list[Finding]) -> None:
    """Print the findings as a table on stdout."""
    from rich.table import Table
    from rich.text import Text

    marks = {"ok": ("ok", "green"), "warning": ("!", "yellow"), "broken": ("BROKEN", "bold red")}
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    for finding in findings:
        table.add_row(
            Text(*marks[finding.status]), finding.name,
            Text(finding.value).append(f"\n{finding.fix}" if finding.fix else "", "bold"),
        )  # fmt: skip
    make_console().print(table)


def main(argv: list[str] | None = None) -> int:
    """Examine the machine and answer; return 1 where something essential is broken."""
    arguments = sys.argv[1:] if argv is None else argv
    findings = examine()
    broken = [finding.name for finding in findings if finding.status == "broken"]
    if "--json" in arguments:
        answer = {"ok": not broken, "findings": [dataclasses.asdict(f) for f in findings]}
        print(json.dumps(answer, indent=2))
    else:
        show(findings)
        verdict = f"broken: {', '.join(broken)}" if broken else "ready to train"
        print(verdict, file=sys.stderr)
    return EXIT_BUG if broken else EXIT_OK


if __name__ == "__main__":
    sys.exit(answering(main))
