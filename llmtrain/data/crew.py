"""The processes that make one folder together, whichever and wherever they are.

All of them run the same program, stage after stage, and meet in a folder that they all see:

    <folder>.work/locks              one byte a unit; who works on it holds its lock
    <folder>.work/<stage>/00000012   the record of unit 12, there when it is done
    <folder>.work/out/               becomes <folder> by one rename

A unit belongs to whoever gets its lock. A process that dies loses its locks, and another one takes
its unit, so it does not matter how many there are, when they come or which of them are killed: all
that is done stays done, also for the next start after all are gone. What a unit gives must depend
on its number alone.
"""

import errno
import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from safetensors import SafetensorError

from llmtrain.data.record import Record, RecordReader, is_whole
from llmtrain.errors import DataError

POLL_S = 0.02
"""How often a process that waits for others looks whether they are ready."""

TELL_S = 0.1
"""How often progress is told."""

PATIENCE_S = 2.0
"""How long a helper leaves a stage of one unit to the main process, whose terminal shows it."""

WORK_VERSION = 1
"""Raised whenever records of another llmtrain could not be gone on from."""

STAGES = ("list", "before", "read", "choose", "tokenizer", "encode", "shard", "finish")

_PRESENT = 0
"""The byte that everyone at work holds shared."""

Tick = Callable[[AbstractSet[int]], None]
"""Told the units of a stage that are done, now and then."""

Work = Callable[[int], Record]
"""Does the unit of this number."""


class FinishedError(Exception):
    """The folder is there: somebody else has finished it."""


@contextmanager
def one_message(folder: Path) -> Iterator[None]:
    """Say what to do where the disk is full, or cannot be written, while `folder` is made.

    Raises:
        DataError: instead of an OSError.
    """
    try:
        yield
    except OSError as error:
        raise DataError(
            f"Preparing {folder} failed: {error.strerror or error}. Free some space there, or set "
            "data.cache_dir to another folder. What is done is kept: the next start goes on from "
            "it."
        ) from error


@contextmanager
def until_finished(crew: "Crew") -> Iterator[None]:
    """Leave the block when the folder of `crew` is there, by whomever.

    Who is late finds the work cleared in the middle of what it was doing: that is no error.
    """
    try:
        yield
    except FinishedError:
        crew.clear()
    except (OSError, SafetensorError) as error:
        gone = isinstance(error, FileNotFoundError | SafetensorError) or error.errno == errno.ESTALE
        if not gone or not crew.final.exists():
            raise
        crew.clear()


def work_folder(final: Path) -> Path:
    """Return where the work on `final` lies."""
    return final.with_name(final.name + ".work")


def clear_work(final: Path) -> None:
    """Remove the work on `final`, which is there: who finished it may have died too early."""
    shutil.rmtree(work_folder(final), ignore_errors=True)


class Crew:
    """One process among those that make `final`. POSIX locks: one `Crew` a folder and process."""

    def __init__(self, final: Path, *, key: str = "", helps: bool = False) -> None:
        """Prepare to join.

        Args:
            final: The folder to be made; work lies beside it.
            key: Of what is worked on; work that was left with another key is made again.
            helps: Whether another process shows how far it is.
        """
        self.final = final
        self.folder = work_folder(final)
        self.out = self.folder / "out"
        """What becomes `final`. Records name files of it under the fact `files`."""
        self._key = f"{WORK_VERSION} {key}"
        self._patience_s = PATIENCE_S if helps else 0.0
        self._locks = -1
        self._told = 0.0
        self._refusal: DataError | None = None

    def __enter__(self) -> Self:
        """Join; what an earlier crew left is looked through by the first of the next.

        Raises:
            DataError: the file system has no locks.
            OSError: the folder cannot be made.
            FinishedError: the final folder is there.
        """
        while not self._join():
            time.sleep(POLL_S)  # what was being cleared is gone by now
        return self

    def _join(self) -> bool:
        """Take part; return False where the folder was cleared meanwhile."""
        if self.final.exists():
            raise FinishedError
        try:
            self.folder.mkdir(exist_ok=True)
            self.out.mkdir(exist_ok=True)
            self._locks = os.open(self.folder / "locks", os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:
            if not self.folder.parent.exists():
                raise
            return False
        try:
            alone = self._lock(_PRESENT, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if alone and self._is_current():
                self._look_through()
            self._lock(_PRESENT, fcntl.LOCK_SH)
            if self._is_current():
                return True
        except BaseException:
            self._leave()
            raise
        self._leave()
        return False

    def _is_current(self) -> bool:
        """Say whether the file of locks is the one that others find under its name."""
        try:
            named = (self.folder / "locks").stat()
        except FileNotFoundError:
            return False
        return named.st_ino == os.fstat(self._locks).st_ino

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave; after a refusal here the last one out takes the work along: nobody needs it.

        An input that could not be read may be there again at the next start, which goes on.
        """
        own = error is not None and error is self._refusal
        useless = own and not isinstance(error.__cause__ if error else None, OSError)
        if useless and self._lock(_PRESENT, fcntl.LOCK_EX | fcntl.LOCK_NB):
            self.clear()
        self._leave()

    def clear(self) -> None:
        """Remove the work. What others still hold open they can go on using."""
        clear_work(self.final)

    def record(self, stage: str, number: int = 0) -> Path:
        """Return where the record of a unit is, when it is done."""
        return self.folder / stage / f"{number:08d}"

    def each(self, stage: str, count: int, work: Work, tick: Tick | None = None) -> list[Path]:
        """Return the records of units 0 to `count`-1 of `stage`, when the last of them is done.

        Args:
            stage: One of STAGES.
            count: Units.
            work: Does one of them.
            tick: For a progress bar.

        To be called under `until_finished`.

        Raises:
            FinishedError: the final folder has appeared.
        """
        folder = self.folder / stage
        paths = [self.record(stage, number) for number in range(count)]
        folder.mkdir(exist_ok=True)
        while len(done := self._done(folder, paths)) < count:
            self._tell(tick, done)
            if not self._work(stage, paths, done, work, tick):
                time.sleep(POLL_S)
        if tick is not None:
            tick(done)
        return paths

    def once(self, stage: str, work: Callable[[], Record]) -> Path:
        """Return the record of a stage that one process does while the others wait.

        Raises:
            FinishedError: the final folder has appeared.
        """
        path = self.record(stage)
        patient_until = time.monotonic() + self._patience_s
        while time.monotonic() < patient_until and not path.exists():
            if self.final.exists():
                raise FinishedError
            time.sleep(POLL_S)
        return self.each(stage, 1, lambda _: work())[0]

    def _done(self, folder: Path, paths: Sequence[Path]) -> set[int]:
        if self.final.exists():
            raise FinishedError
        with os.scandir(folder) as entries:
            names = {entry.name for entry in entries}
        return {number for number, path in enumerate(paths) if path.name in names}

    def _work(
        self, stage: str, paths: Sequence[Path], done: set[int], work: Work, tick: Tick | None
    ) -> bool:
        """Do what is not `done` and nobody else is doing; say whether there was something."""
        worked = False
        for number, path in enumerate(paths):
            byte = ((1 + STAGES.index(stage)) << 40) + number
            if number in done or not self._lock(byte, fcntl.LOCK_EX | fcntl.LOCK_NB):
                continue
            try:
                if self.final.exists():
                    raise FinishedError
                if not path.exists():
                    work(number).save(path)
                    worked = True
            except DataError as error:
                self._refusal = error
                raise
            finally:
                self._lock(byte, fcntl.LOCK_UN)
            done.add(number)
            self._tell(tick, done)
        return worked

    def _tell(self, tick: Tick | None, done: set[int]) -> None:
        """Call `tick`, but not so often that it costs anything with very many units."""
        now = time.monotonic()
        if tick is not None and now - self._told >= TELL_S:
            tick(done)
            self._told = now

    def _lock(self, byte: int, kind: int) -> bool:
        """Change the lock of `byte`; say whether nobody else's stood against it."""
        try:
            fcntl.lockf(self._locks, kind, 1, byte)
        except (BlockingIOError, PermissionError):
            return False
        except OSError as error:
            raise DataError(
                f"{self.folder / 'locks'} cannot be locked: {error.strerror}. Set data.cache_dir "
                "to a folder whose file system has locks."
            ) from error
        return True

    def _look_through(self) -> None:
        """Remove what a power cut has torn, and what was made of other files than those of now.

        Stages behind a plan or a tokenizer that has to be made again are made again too.
        """
        known = self.folder / "key"
        if not known.exists() or known.read_text() != self._key:
            for stage in STAGES:
                shutil.rmtree(self.folder / stage, ignore_errors=True)
            known.write_text(self._key)
        spoilt = False
        for stage in STAGES:
            for path in sorted((self.folder / stage).glob("*")):
                if spoilt or not is_whole(path) or not self._has_files(path):
                    path.unlink()
                    spoilt |= stage in ("list", "choose", "tokenizer")

    def _has_files(self, path: Path) -> bool:
        """Say whether the files that a record names have their sizes; they were synced first."""
        files: dict[str, dict[str, Any]] = RecordReader(path).facts.get("files", {})
        return all(
            (self.out / name).is_file() and (self.out / name).stat().st_size == check["bytes"]
            for name, check in files.items()
        )

    def _leave(self) -> None:
        os.close(self._locks)
        self._locks = -1
