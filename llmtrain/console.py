"""Where a command speaks: consoles that suit a terminal, a log and a pipe; and a stdout that fails.

A pipe whose reader has gone ends a command quietly, with the exit code that a shell gives to a
program that SIGPIPE killed. A disk that is full is told once.
"""

import contextlib
import errno
import os
import re
import shlex
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from llmtrain.errors import EXIT_BUG

if TYPE_CHECKING:
    from rich.console import Console

EXIT_PIPE = 128 + signal.SIGPIPE
"""141: nobody reads the answer any more."""

PLAIN_WIDTH = 100_000
"""Columns where there is no terminal: a log or a pipe has no width that a line must be cut to."""


class _Trimmed:
    """A stream without the blanks by which tables fill their lines."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.encoding = stream.encoding

    def write(self, text: str) -> int:
        self._stream.write(re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE))
        return len(text)

    def flush(self) -> None:
        self._stream.flush()

    def isatty(self) -> bool:
        return False

    def fileno(self) -> int:
        return self._stream.fileno()


def say(console: "Console", text: str, style: str = "") -> None:
    """Print `text` as it is, however long: no markup in it, no line of it cut."""
    from rich.text import Text

    console.print(Text(text, style), soft_wrap=True)


def command_line(*words: str) -> str:
    """Return `llmtrain WORDS` as it can be typed here, where no environment may be active."""
    program = "llmtrain"
    if shutil.which(program) is None:
        program = os.path.relpath(Path(sys.executable).with_name(program))
    return shlex.join([program, *words])


def make_console(
    *, stderr: bool = False, width: int = PLAIN_WIDTH, on_closed: Callable[[], None] | None = None
) -> "Console":
    """Return a console on stdout, or on stderr.

    Args:
        stderr: Speak on stderr.
        width: Columns where it is no terminal.
        on_closed: Called once when nobody reads it any more, and the console is silent from then
            on; null: `BrokenPipeError` is raised.
    """
    from rich.console import Console

    class Speaker(Console):
        """Rich's own would end the process with exit code 1."""

        def on_broken_pipe(self) -> None:
            if on_closed is None:
                raise BrokenPipeError
            self.quiet = True
            _drop(sys.stderr if stderr else sys.stdout)
            on_closed()

    stream = sys.stderr if stderr else sys.stdout
    console = Speaker(stderr=stderr, highlight=False)
    if not console.is_terminal:
        console.file = _Trimmed(stream)  # type: ignore[assignment]
        console.width = width
    return console


def answering(work: Callable[[], int]) -> int:
    """Return the exit code of `work`, which answers on stdout; see that the answer arrives.

    For the outermost function of a process.
    """
    _open_missing()
    try:
        code = work()
        sys.stdout.flush()
    except BrokenPipeError:
        _drop(sys.stdout)
        return EXIT_PIPE
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EFBIG)
        if not full or not _fails(sys.stdout):
            raise
        _drop(sys.stdout)
        with contextlib.suppress(OSError):
            print(f"error: the answer cannot be written: {error.strerror}", file=sys.stderr)
        return EXIT_BUG
    return code


def _open_missing() -> None:
    """Give a process that was started without stdout or stderr (`>&-`) something to write to."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - for the whole process


def _fails(stream: TextIO) -> bool:
    """Whether `stream` takes nothing more: the error was this stream's."""
    try:
        stream.write("\n")
        stream.flush()
    except OSError:
        return True
    return False


def _drop(stream: TextIO) -> None:
    """Send what is left in `stream` nowhere: Python writes it out, and fails, as it ends."""
    with contextlib.suppress(OSError, ValueError):
        target = os.open(os.devnull, os.O_WRONLY)
        os.dup2(target, stream.fileno())
        os.close(target)
