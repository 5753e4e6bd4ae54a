"""What processes may leave on a machine when they are gone: shared memory, ports (Linux).

Others work on the machine at the same time, so only what nobody holds counts.
"""

import contextlib
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

SHARED = Path("/dev/shm")

LISTEN = "0A"
"""A socket's state in /proc/net/tcp."""


def shared_memory() -> set[str]:
    """Return the names of all shared memory."""
    return {path.name for path in SHARED.iterdir()}


def orphaned_memory(before: set[str]) -> set[str]:
    """Return the names of shared memory of this user which was not there `before`, and which no
    process has open or mapped."""
    held = {line.rpartition(f"{SHARED}/")[2] for line in _held() if f"{SHARED}/" in line}
    found = set()
    for name in shared_memory() - before - held:
        with contextlib.suppress(OSError):
            if (SHARED / name).stat().st_uid == os.getuid():
                found.add(name)
    return found


def ports(processes: Iterable[int]) -> set[int]:
    """Return the TCP ports on which these processes listen."""
    inodes = set()
    for pid in processes:
        for target in _files(Path("/proc", str(pid))):
            if found := re.fullmatch(r"socket:\[(\d+)\]", target):
                inodes.add(found[1])
    return {port for port, inode in _listening() if inode in inodes}


def open_ports() -> set[int]:
    """Return the TCP ports on which any process listens."""
    return {port for port, _ in _listening()}


def _listening() -> Iterator[tuple[int, str]]:
    for table in ("tcp", "tcp6"):
        for line in Path("/proc/net", table).read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == LISTEN:
                yield int(words[1].rpartition(":")[2], 16), words[9]


def _files(process: Path) -> Iterator[str]:
    with contextlib.suppress(OSError):  # it has ended, or is another user's
        for entry in (process / "fd").iterdir():
            with contextlib.suppress(OSError):
                yield str(entry.readlink())


def _held() -> Iterator[str]:
    """Yield what every process has open, and the lines of what it has mapped."""
    for process in Path("/proc").glob("[0-9]*"):
        yield from _files(process)
        with contextlib.suppress(OSError):
            yield from (process / "maps").read_text(errors="replace").splitlines()
