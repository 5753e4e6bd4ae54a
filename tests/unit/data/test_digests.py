"""Files that have not changed are not read again; those that have are."""

import os
import time
from pathlib import Path

import pytest

from llmtrain.data import digests
from llmtrain.data.digests import hash_files


def make(folder: Path, *contents: str, age_s: float = 60) -> list[Path]:
    files = []
    for i, content in enumerate(contents):
        files.append(folder / f"{i}.txt")
        files[-1].write_text(content)
        set_age(files[-1], age_s)
    return files


def set_age(file: Path, age_s: float) -> None:
    then = time.time_ns() - int(age_s * 1e9)
    os.utime(file, ns=(then, then))


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Return the list of files that were read, and let the clock of changes stand still.

    The time of change of an inode cannot be set: only the times that are long past are.
    """
    read: list[Path] = []
    hash_file = digests.hash_file

    def noted(file: Path) -> str:
        read.append(file)
        return hash_file(file)

    monkeypatch.setattr(digests, "hash_file", noted)
    monkeypatch.setattr(digests, "RACY_NS", -(10**18))
    return read


def test_what_is_known_is_not_read(tmp_path: Path, read: list[Path]) -> None:
    files = make(tmp_path, "one", "two", "three")
    known = tmp_path / "digests.sqlite"
    first = hash_files(files, known)
    assert read == files
    assert hash_files(files, known) == first == hash_files(files)
    assert len(read) == 6  # the three without what is known
    files[1].write_text("TWO")
    read.clear()
    assert hash_files(files, known) == hash_files(files) != first
    assert read[0] == files[1]
    assert read[1:] == files


def test_a_change_with_the_same_size_and_time_is_seen(tmp_path: Path, read: list[Path]) -> None:
    files = make(tmp_path, "one")
    known = tmp_path / "digests.sqlite"
    before = files[0].stat()
    first = hash_files(files, known)
    files[0].write_text("eno")
    os.utime(files[0], ns=(before.st_mtime_ns, before.st_mtime_ns))
    assert files[0].stat().st_mtime_ns == before.st_mtime_ns
    assert hash_files(files, known) != first


def test_a_file_that_was_just_written_is_read_again(
    tmp_path: Path, read: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digests, "RACY_NS", 2_000_000_000)
    files = make(tmp_path, "one", age_s=0)
    known = tmp_path / "digests.sqlite"
    hash_files(files, known)
    hash_files(files, known)
    assert len(read) == 2


@pytest.mark.parametrize("state", ["broken", "a folder", "nowhere"])
def test_without_a_usable_file_all_is_read(tmp_path: Path, read: list[Path], state: str) -> None:
    files = make(tmp_path, "one", "two")
    known = tmp_path / "digests.sqlite"
    if state == "broken":
        known.write_bytes(b"no database" * 1000)
    elif state == "a folder":
        known.mkdir()
    else:
        known = tmp_path / "no" / "such"
    assert hash_files(files, known) == hash_files(files, known) == hash_files(files)
    assert len(read) == 6
