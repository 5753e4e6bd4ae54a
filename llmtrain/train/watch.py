"""The watchdog of a rank: when nothing in the run moves any more, it says why, and ends the run.

    main thread    start, step 1, step 2, ... -> Whereabouts
    watch thread   looks once or more a second whether it has moved -> Board -> all other ranks

A run hangs when every rank has stood longer than its limit, or says nothing any more: one that
waits for a slower replica which still trains does not. The first rank that sees it writes
logs/hang_report.txt, and all end.

The thread takes no part in collectives, and runs while the main thread waits in one, which
releases the interpreter. Time is counted in its own looks: a run that was suspended as a whole has
not hung.
"""

import contextlib
import faulthandler
import itertools
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from torch.distributed import Store

from llmtrain.config import paths
from llmtrain.config.groups.train import TrainConfig
from llmtrain.distributed.board import Board
from llmtrain.distributed.env import RankInfo
from llmtrain.distributed.pending import Traffic, read_traffic
from llmtrain.durable import replace_text
from llmtrain.errors import EXIT_BUG
from llmtrain.train.calls import main_calls, told, waits_in
from llmtrain.train.hang import Hang, HangError, Silence, Standing
from llmtrain.train.whereabouts import Whereabouts

log = logging.getLogger(__name__)

SILENT_S = 3.0
"""A rank that has not looked for so long while others did is silent."""
HELD_S = 30.0
"""After so long without a look of its own a rank's calls are written down, for others to read."""
LOST_S = 15.0
"""A store that has not answered for so long is gone."""
WORDS_S = 5.0
"""How long the others wait for the words of the one that speaks."""
READERS, TURN_S = 8, 5.0
"""Not all of a thousand ranks read what a thousand say: the first eight do, and if they cannot, the
next eight seconds later."""
LONG_STEPS = 3.0
"""A step may take so many times the longest before it, whatever the limit."""
LOST = "the rendezvous store does not answer: its machine, rank 0's, is gone or cut off"
STATES = {
    "T": "its process is stopped, as by SIGSTOP",
    "t": "a debugger holds its process",
    "D": "its process waits in the kernel, for a disk or a device",
    "Z": "its process is dead",
}
"""Letter of /proc/PID/stat -> what it means."""
SHOW_CURSOR = "\x1b[?25h\n"
"""What a live line of progress has hidden."""


@dataclass(frozen=True)
class Limits:
    """How long a rank may stand."""

    step_s: float
    """In a step."""
    slow_s: float
    """Where it may take long."""

    def of(self, takes_long: bool, longest_s: float) -> tuple[float, str]:
        """Return the limit in seconds, and as people say it.

        Args:
            takes_long: Whether the place is one where it may.
            longest_s: The longest step so far, the first left out.
        """
        if takes_long:
            return self.slow_s, f"train.hang_timeout_slow_s={self.slow_s:g}"
        if LONG_STEPS * longest_s > self.step_s:
            return LONG_STEPS * longest_s, f"{LONG_STEPS:g} times the longest step so far"
        return self.step_s, f"train.hang_timeout_s={self.step_s:g}"


class Watch:
    """Watches one rank's main thread."""

    def __init__(
        self,
        where: Whereabouts,
        limits: Limits,
        info: RankInfo,
        store: Store,
        run_dir: Path,
        end: Callable[[HangError], None],
    ) -> None:
        """Start watching.

        Args:
            where: What the main thread tells.
            limits: How long it may stand.
            info: This rank.
            store: The rendezvous store.
            run_dir: The run directory.
            end: Leaves word of how this rank ended.
        """
        self._where, self._limits, self._info, self._end = where, limits, info, end
        self._run_dir = run_dir
        self._every_s = min(1.0, max(0.1, limits.step_s / 10))
        self._held_s = min(limits.step_s / 2, HELD_S) + self._every_s
        self._looks, self._moves, self._place = 0, -1, where.now[1]
        self._idle_s = self._longest_s = self._unheard_s = 0.0
        self._answers = 0
        self._took_long = True
        self._limit = ""
        self._stuck: Standing | None = None
        self._last_looks: dict[int, tuple[int, float]] = {}
        """Rank -> how often it had looked when last read, and for how long that has not changed."""
        self._calls = calls_path(run_dir, info.rank)
        self._calls_file = self._calls.open("w")
        self._closed = threading.Event()
        self._board = Board(store, rank=info.rank, world_size=info.world_size,
                            every_s=self._every_s) if info.world_size > 1 else None  # fmt: skip
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop watching: this rank has nothing more to do with the others."""
        self._closed.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()
        self._calls_file.close()
        self._calls.unlink(missing_ok=True)
        if self._board is not None:
            self._board.say(self._standing(has_left=True).to_json())
            self._board.close()

    # -- looking ---------------------------------------------------------------------------------

    def _run(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # they are the main's
        before = time.monotonic()
        while not self._closed.wait(self._every_s):
            now = time.monotonic()
            # More than that has passed only where this process, or the machine, was suspended.
            self._look(min(now - before, 5 * self._every_s))
            before = now

    def _look(self, passed_s: float) -> None:
        """Look once, `passed_s` after the last time; does not return from a hang."""
        self._looks += 1
        moves, place, takes_long = self._where.now
        if moves == self._moves:
            self._idle_s += passed_s
        else:
            if not self._took_long:
                self._longest_s = max(self._longest_s, self._idle_s)
            self._moves, self._place, self._took_long = moves, place, takes_long
            self._idle_s, self._stuck = 0.0, None
        limit_s, self._limit = self._limits.of(takes_long, self._longest_s)
        # Written by a thread in C, where this one cannot run: native code holds the interpreter.
        faulthandler.dump_traceback_later(self._held_s, file=self._calls_file)
        if self._idle_s > limit_s and self._stuck is None:
            self._stuck = self._standing(is_stuck=True)
        board = self._board
        if board is None:
            if self._stuck is not None:
                self._speak(Hang({self._info.rank: self._stuck}, {}, self._limit))
            return
        board.say(self._standing().to_json())
        self._unheard_s = 0.0 if board.answers != self._answers else self._unheard_s + passed_s
        self._answers = board.answers
        if board.is_over:
            self._obey(board)
        turn_s = limit_s + TURN_S * (self._info.rank // READERS)
        board.reads = self._idle_s > turn_s - 2 * SILENT_S  # to know by then who is silent
        hang = self._hang(board, passed_s) if board.reads else None
        if hang is not None and self._idle_s > turn_s:
            if not board.take_word():
                self._obey(board)
            self._speak(hang)

    def _standing(self, *, is_stuck: bool = False, has_left: bool = False) -> Standing:
        """Return what to say; in full once, when this rank gets stuck."""
        stack: tuple[str, ...] = ()
        traffic, waits = Traffic(), ""
        if is_stuck:
            calls, traffic = main_calls(), read_traffic()
            stack = told(calls)
            waits = waits_in(calls, traffic, on_cuda=self._info.device.type == "cuda")
        elif self._stuck is not None:
            is_stuck, stack = True, self._stuck.stack
            traffic, waits = self._stuck.traffic, self._stuck.waits_in
        return Standing(
            node=socket.gethostname(), pid=os.getpid(), looks=self._looks, place=self._place,
            idle_s=self._idle_s, is_stuck=is_stuck, has_left=has_left, stack=stack,
            waits_in=waits, traffic=traffic,
        )  # fmt: skip

    # -- judging ---------------------------------------------------------------------------------

    def _hang(self, board: Board, passed_s: float) -> Hang | None:
        """Return the hang, if nobody moves any more."""
        standing = {self._info.rank: self._stuck} if self._stuck else {}
        if self._unheard_s > LOST_S:
            return Hang(standing, {0: Silence(None, LOST)}, self._limit)
        silent: dict[int, Silence] = {}
        moving = self._stuck is None
        for rank in range(self._info.world_size):
            if rank == self._info.rank:
                continue
            said = board.others.get(rank)
            one = Standing.from_json(said) if said else None
            looks, since_s = self._last_looks.get(rank, (0, 0.0))
            is_new = one is not None and one.looks != looks
            since_s = 0.0 if is_new else since_s + passed_s
            self._last_looks[rank] = (one.looks if one else 0, since_s)
            if one is not None and one.has_left:
                continue
            if since_s >= max(SILENT_S, 3 * self._every_s):
                silent[rank] = self._silence(rank, one)
            elif one is not None and one.is_stuck:
                standing[rank] = one
            else:
                moving = True
        return None if moving else Hang(standing, silent, self._limit)

    def _silence(self, rank: int, last: Standing | None) -> Silence:
        """Return what is known of a silent rank; more where it is on this machine."""
        place = _text(paths.place_path(self._run_dir, rank))
        if last is None or last.node != socket.gethostname():
            return Silence(last, place=place)
        # Of all threads the main one comes last; its innermost call stands first.
        calls = _text(calls_path(self._run_dir, rank)).rpartition("Thread 0x")[2].splitlines()[1:]
        return Silence(last, process_state(last.pid), place, tuple(c.strip() for c in calls[::-1]))

    # -- ending ----------------------------------------------------------------------------------

    def _speak(self, hang: Hang) -> NoReturn:
        """Write the report, tell the others, end."""
        cause = hang.cause()
        log.error("%s", cause)
        try:
            replace_text(report_path(self._run_dir), hang.report(self._run_dir))
        except OSError:
            log.exception("no report")
        self._leave(HangError(cause, speaks=True), hang)

    def _obey(self, board: Board) -> NoReturn:
        """End as the rank that speaks for all says."""
        until = time.monotonic() + WORDS_S
        while board.verdict is None and time.monotonic() < until:
            time.sleep(0.05)
        cause = board.verdict or "the run hung"
        self._leave(HangError(cause, speaks=False), None)

    def _leave(self, error: HangError, hang: Hang | None) -> NoReturn:
        with contextlib.suppress(Exception):
            self._end(error)
        if self._board is not None and error.speaks:
            self._board.speak(str(error))
            time.sleep(2 * self._every_s)  # the others leave of themselves, not for a lost peer
        for silence in hang.silent.values() if hang else ():
            if silence.last is not None and silence.last.node == socket.gethostname():
                kill_sibling(silence.last.pid)
        if sys.stderr.isatty():
            sys.stderr.write(SHOW_CURSOR)
            sys.stderr.flush()
        os._exit(EXIT_BUG)


@contextlib.contextmanager
def watching(
    where: Whereabouts,
    train: TrainConfig,
    info: RankInfo,
    store: Store,
    run_dir: Path,
    end: Callable[[HangError], None],
) -> Iterator[None]:
    """Watch meanwhile, unless train.hang_timeout_s is null. Every rank of the world calls it.

    Args:
        where: What the main thread tells.
        train: Has the limits.
        info: This rank.
        store: The rendezvous store.
        run_dir: The run directory.
        end: Leaves word of how this rank ended.
    """
    if train.hang_timeout_s is None:
        yield
        return
    if info.is_main:
        set_aside(report_path(run_dir))
    limits = Limits(train.hang_timeout_s, max(train.hang_timeout_s, train.hang_timeout_slow_s))
    watch = Watch(where, limits, info, store, run_dir, end)
    try:
        yield
    finally:
        watch.close()


def report_path(run_dir: Path) -> Path:
    """Return RUN_DIR/logs/hang_report.txt."""
    return run_dir / paths.LOGS / paths.HANG_REPORT


def calls_path(run_dir: Path, rank: int) -> Path:
    """Return the file for the calls of a rank that native code holds."""
    return run_dir / paths.LOGS / f"rank_{rank}.calls"


def _text(path: Path) -> str:
    """Return what stands in a file that may not be there."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def set_aside(report: Path) -> None:
    """Number an earlier start's report, so that it is not taken for this one's."""
    numbers = itertools.count(1)
    free = (report.with_name(f"{report.stem}.{n}{report.suffix}") for n in numbers)
    with contextlib.suppress(FileNotFoundError):
        report.rename(next(path for path in free if not path.exists()))


def process_state(pid: int) -> str:
    """Return what this machine's kernel says of a process that says nothing (Linux)."""
    try:
        letter = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "its process is gone" if Path("/proc/self").exists() else Silence(None).state
    return STATES.get(letter, "its process lives, but native code holds its interpreter")


def kill_sibling(pid: int) -> None:
    """Kill a process of the same parent: one that is stopped would outlast the run."""
    try:
        parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return
    if parent == os.getppid():
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
