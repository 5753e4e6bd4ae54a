"""Hashes of files, kept so that a file that has not changed is not read again.

As git's index does: a file counts as unchanged where its size, inode and times are those that were
noted. A file that was written moments before it was hashed is not noted, for a second write within
the resolution of the clock would leave the same times ("racy git", git's
Documentation/technical/racy-git).

SQLite, of the standard library, takes care of several writers and of crashes. It is a cache: where
it cannot be used, all is hashed.
"""

import contextlib
import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import xxhash

from llmtrain.durable import hash_file
from llmtrain.errors import DataError

DIGESTS = "digests.sqlite"
"""The file of the cache folder in which they are kept."""

RACY_NS = 2_000_000_000
"""The coarsest times of a file system: two seconds, those of FAT."""

LOCK_S = 5.0
"""How long to wait for another process that writes."""

SAVE_EVERY_S = 5.0
"""How often what was hashed is kept, so that a stop loses little."""

TABLE = (
    "CREATE TABLE IF NOT EXISTS digests "
    "(path TEXT PRIMARY KEY, state TEXT NOT NULL, digest TEXT NOT NULL)"
)


def hash_files(files: list[Path], known: Path | None = None) -> str:
    """Return 32 hex digits that stand for the contents of `files`, in their order.

    Args:
        files: What to hash.
        known: Where hashes are kept, made if need be; None: all files are read.

    Raises:
        DataError: a file cannot be read.
    """
    whole = xxhash.xxh3_128()
    with _Known.opened(known) as digests:
        for file in files:
            try:
                whole.update(bytes.fromhex(digests.of(file)))
            except OSError as error:
                raise DataError(f"{file} cannot be read: {error.strerror}.") from error
    return whole.hexdigest()


class _Known:
    """Hashes by path and state."""

    def __init__(self, table: sqlite3.Connection | None) -> None:
        self.table = table
        self.new: dict[str, tuple[str, str]] = {}
        self.saved_s = time.monotonic()

    @classmethod
    @contextlib.contextmanager
    def opened(cls, path: Path | None) -> Iterator["_Known"]:
        table = None
        if path is not None:
            with contextlib.suppress(sqlite3.Error):
                table = sqlite3.connect(path, timeout=LOCK_S)
                table.execute(TABLE)
        digests = cls(table)
        try:
            yield digests
        finally:
            digests.save()
            if table is not None:
                table.close()

    def of(self, file: Path) -> str:
        """Return the hash of `file`, read where it is not known.

        Raises:
            OSError: it cannot be read.
        """
        name, before = str(file.absolute()), file.stat()
        state = _state(before)
        kept = self._look_up(name)
        if kept is not None and kept[0] == state:
            return kept[1]
        now = time.time_ns()
        digest = hash_file(file)
        settled = max(before.st_mtime_ns, before.st_ctime_ns) + RACY_NS < now
        if settled and _state(file.stat()) == state:
            self.new[name] = (state, digest)
        if time.monotonic() - self.saved_s > SAVE_EVERY_S:
            self.save()
        return digest

    def save(self) -> None:
        """Keep what was hashed."""
        if self.table is not None and self.new:
            rows = [(name, *values) for name, values in self.new.items()]
            with contextlib.suppress(sqlite3.Error), self.table:
                self.table.executemany("INSERT OR REPLACE INTO digests VALUES (?, ?, ?)", rows)
        self.new, self.saved_s = {}, time.monotonic()

    def _look_up(self, name: str) -> tuple[str, str] | None:
        if self.table is None:
            return None
        with contextlib.suppress(sqlite3.Error):
            found = self.table.execute("SELECT state, digest FROM digests WHERE path = ?", (name,))
            return found.fetchone()
        return None


def _state(stat: os.stat_result) -> str:
    # The time of change of the inode too: it tells of writes that set the other one back.
    return f"{stat.st_size} {stat.st_ino} {stat.st_mtime_ns} {stat.st_ctime_ns}"
