"""One child process: started in a session of its own, signalled once, never orphaned.

    terminal: Ctrl-C -> llmtrain (this file) -> one SIGINT -> worker, or agent -> its workers

The terminal reaches only the launcher, because the child has a session of its own; so every process
gets each signal exactly once. A second Ctrl-C kills the child's whole group.

What a scheduler sends ahead of time (SIGUSR1, as Slurm's --signal) and a lost terminal (SIGHUP) are
passed on as SIGTERM.
"""

import contextlib
import os
import signal
import subprocess
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmtrain.errors import EXIT_SIGINT, EXIT_SIGTERM
from llmtrain.lifeline import PARENT_ENV, STOP_SIGNALS

PROCESS_ENV = "LLMTRAIN_PROCESS"
"""The number of a process among all of a run, where that is not its rank."""


def is_ready(pid: int) -> bool:
    """Whether a worker handles signals yet. True where that cannot be known.

    One that does not has nothing to lose: SIGTERM ends it quietly, where a SIGINT in the middle of
    its imports would end it with a traceback.
    """
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        caught = next(line for line in status.splitlines() if line.startswith("SigCgt:"))
        return bool(int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1)
    except (OSError, StopIteration, ValueError):
        return True


def as_sent(signum: int) -> signal.Signals:
    """Return what to pass on for a signal: a person's SIGINT, or SIGTERM for all others."""
    return signal.SIGINT if signum == signal.SIGINT else signal.SIGTERM


@dataclass(frozen=True)
class Ended:
    """How a child ended."""

    code: int
    """As Popen says it: minus the signal's number when one killed it."""
    stopped_by: signal.Signals | None
    """The first signal that the launcher got and passed on."""
    forced: bool
    """Whether a second Ctrl-C killed it."""

    @property
    def exit_code(self) -> int:
        """What a launcher should exit with: 130/143 after a signal that it passed on."""
        clean = self.code in (EXIT_SIGINT, EXIT_SIGTERM) or self.code < 0
        if self.stopped_by is not None and (clean or self.forced):
            return EXIT_SIGINT if self.stopped_by == signal.SIGINT else EXIT_SIGTERM
        return self.code if self.code >= 0 else 128 - self.code


class _Forwarder:
    """Passes the first signal on to the child; a second SIGINT kills the child's group."""

    def __init__(self) -> None:
        self.child: subprocess.Popen[bytes] | None = None
        self.stopped_by: signal.Signals | None = None
        self.forced = False

    def __call__(self, signum: int, frame: types.FrameType | None) -> None:
        sent = as_sent(signum)
        if self.stopped_by is None:
            self.stopped_by = sent
            if sent == signal.SIGINT and sys.stderr.isatty():
                os.write(2, b"\nsaving and stopping; Ctrl-C again ends it at once\n")
            self.pass_on()
        elif sent == signal.SIGINT and not self.forced:
            self.forced = True
            self.pass_on()

    def pass_on(self) -> None:
        if self.child is None or self.stopped_by is None:
            return
        with contextlib.suppress(ProcessLookupError):
            if self.forced:
                # Workers of an agent have sessions of their own; they die with the agent.
                os.killpg(self.child.pid, signal.SIGKILL)
            else:
                ready = is_ready(self.child.pid)
                self.child.send_signal(self.stopped_by if ready else signal.SIGTERM)


@contextlib.contextmanager
def handling(handler: Callable[[int, types.FrameType | None], None]) -> Iterator[None]:
    """Have `handler` called inside for every signal that ends a run."""
    before: dict[signal.Signals, Any] = {}
    for signum in STOP_SIGNALS:
        # nohup stays in force; SIGINT is handled even where a shell's `&` had it ignored.
        if signum != signal.SIGHUP or signal.getsignal(signum) != signal.SIG_IGN:
            before[signum] = signal.signal(signum, handler)
    try:
        yield
    finally:
        for signum, earlier in before.items():
            signal.signal(signum, earlier)


def supervise(command: Sequence[str], env: Mapping[str, str], output: Path | None = None) -> Ended:
    """Run `command` to its end, passing signals on. To be called in the main thread.

    Args:
        command: What to start.
        env: The child's whole environment.
        output: Takes all that the child prints; null: it prints where this process does.

    Raises:
        OSError: when it cannot be started.
    """
    forwarder = _Forwarder()
    sys.stdout.flush()
    with handling(forwarder), contextlib.ExitStack() as files:
        stream = files.enter_context(output.open("wb")) if output is not None else None
        child = subprocess.Popen(
            command, env={**env, PARENT_ENV: str(os.getpid())}, start_new_session=True,
            stdout=stream, stderr=stream,
        )  # fmt: skip
        forwarder.child = child
        forwarder.pass_on()  # what came while the child was being started
        code = child.wait()
    return Ended(code, forwarder.stopped_by, forwarder.forced)
