"""Hosts of their own: network namespaces with names and addresses, on a switch that tests can cut.

    host0 10.77.0.1 --+
    host1 10.77.0.2 --+-- tests/support/switch.py
    host2 10.77.0.3 --+

Nothing of it is seen outside, so several can be there at once. They share files, as hosts of a
cluster share a file system. Needs root, `ip` (iproute2), `unshare` and /dev/net/tun.
"""

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.runs import environment
from tests.support.switch import TUN, Switch
from tests.support.waiting import wait_until

NAMES = Path("/etc/netns")
"""Where `ip netns exec` looks for a namespace's own /etc/hosts."""


@dataclass
class Program:
    """What was started on a host."""

    process: "subprocess.Popen[bytes]"
    err_path: Path

    @property
    def err(self) -> str:
        """What it has printed to stderr so far."""
        return self.err_path.read_text()

    def ended(self, deadline_s: float) -> int:
        """Wait for its end; return its exit code."""
        wait_until(lambda: self.process.poll() is not None, f"an end; {self.err}", deadline_s)
        return self.process.returncode


class Hosts:
    """Some hosts on one switch."""

    def __init__(self, number: int, prefix: str) -> None:
        """Make them.

        Args:
            number: How many.
            prefix: Begins the names of their namespaces; nobody else's.
        """
        self.names = [f"host{n}" for n in range(number)]
        self._prefix = prefix
        self._started: list[Program] = []
        self.switch = Switch()
        lines = ["127.0.0.1 localhost"]
        lines += [f"{self.address(n)} {name}" for n, name in enumerate(self.names)]
        for number, name in enumerate(self.names):
            space = self._space(name)
            _run("ip", "netns", "add", space)
            (NAMES / space).mkdir(parents=True)
            (NAMES / space / "hosts").write_text("\n".join(lines) + "\n")
            card = f"{prefix}t{number}"
            self.switch.plug(card)
            _run("ip", "link", "set", card, "netns", space, "name", "eth0")
            for words in (
                ("link", "set", "lo", "up"),
                ("addr", "add", f"{self.address(number)}/24", "dev", "eth0"),
                ("link", "set", "eth0", "up"),
            ):
                _run("ip", "-n", space, *words)
        self.switch.start()

    def address(self, number: int) -> str:
        """Return the address of host `number`."""
        return f"10.77.0.{number + 1}"

    def start(
        self, number: int, words: Sequence[str], *, cwd: Path, env: Mapping[str, str] | None = None
    ) -> Program:
        """Start `words` on host `number`, under its name."""
        name = self.names[number]
        inside = ["unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', name, *words]
        err = cwd / f"{name}_{len(self._started)}.err"
        with err.open("w") as stream:
            process = subprocess.Popen(
                ["ip", "netns", "exec", self._space(name), *inside], cwd=cwd,
                stdout=subprocess.DEVNULL, stderr=stream, env=environment(**(env or {})),
            )  # fmt: skip
        self._started.append(Program(process, err))
        return self._started[-1]

    def cut(self, number: int) -> None:
        """Take the cable of host `number` out of the switch."""
        self.switch.ports[number].is_cut = True

    def mend(self, number: int) -> None:
        """Put it back."""
        self.switch.ports[number].is_cut = False

    def hinder(self, number: int, *, delay_s: float = 0.0, loss: float = 0.0) -> None:
        """Delay what goes to host `number`, and lose a part of what goes to or comes from it."""
        self.switch.ports[number].delay_s, self.switch.ports[number].loss = delay_s, loss

    def kill(self, number: int) -> None:
        """End host `number` as a power cut does: nothing says goodbye."""
        self.cut(number)
        for pid in self.pids(number):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def pids(self, number: int) -> list[int]:
        """Return the processes on host `number`."""
        found = _run("ip", "netns", "pids", self._space(self.names[number]))
        return [int(pid) for pid in found.split()]

    def close(self) -> None:
        """End everything on the hosts, and the hosts."""
        for number in range(len(self.names)):
            with contextlib.suppress(subprocess.CalledProcessError):
                self.kill(number)
        for program in self._started:
            program.process.wait()
        self.switch.close()
        for name in self.names:
            subprocess.run(["ip", "netns", "delete", self._space(name)], check=False)
            shutil.rmtree(NAMES / self._space(name), ignore_errors=True)

    def _space(self, name: str) -> str:
        return f"{self._prefix}-{name}"


def _run(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, f"{' '.join(words)}: {done.stderr}"
    return done.stdout


def why_none() -> str:
    """Return why no hosts can be made here; "": they can."""
    if os.geteuid() != 0:
        return "NO HOSTS: namespaces need root; nothing of several hosts is tested"
    if shutil.which("ip") is None or shutil.which("unshare") is None:
        return "NO HOSTS: `ip` or `unshare` is missing (iproute2, util-linux); nothing of several "
    if not os.access(TUN, os.W_OK):
        return f"NO HOSTS: {TUN} is not there; nothing of several hosts is tested"
    probe = f"lt{os.getpid()}-probe"
    made = subprocess.run(["ip", "netns", "add", probe], capture_output=True, check=False)
    subprocess.run(["ip", "netns", "delete", probe], capture_output=True, check=False)
    return "" if made.returncode == 0 else f"NO HOSTS: {made.stderr.decode().strip()}"


@contextlib.contextmanager
def hosts(number: int) -> Iterator[Hosts]:
    """Have `number` hosts; skips, loudly, where none can be had."""
    why = why_none()
    if why:
        pytest.skip(why)
    made = Hosts(number, f"lt{os.getpid()}")
    try:
        yield made
    finally:
        made.close()
