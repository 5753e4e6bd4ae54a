"""Files that survive a crash: hashed, synced, renamed into place."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import xxhash

READ_BYTES = 1 << 22
"""How much of a file is read at once."""


HASHES: dict[str, Callable[[], Any]] = {"xxh3": xxhash.xxh3_128, "sha256": hashlib.sha256}
"""xxh3 finds every accident, at the speed of the disk; sha256 finds a forger too."""


def inside(folder: Path, name: str) -> Path:
    """Return the file `name` of `folder`, as a manifest from anywhere may call it.

    Raises:
        ValueError: when it is no plain name, or a link to outside of the folder.
    """
    if not name or name in (".", "..") or set(name) & set("/\\:\0"):
        raise ValueError(f"{name!r} is not the name of a file in the folder")
    path = folder / name
    if path.is_symlink() and path.resolve().parent != folder.resolve():
        raise ValueError(f"{name} is a link to a file outside of the folder")
    return path


def hash_file(path: Path, kind: str = "xxh3") -> str:
    """Return the hash of a file in hex digits, read in pieces.

    Args:
        path: The file.
        kind: One of `HASHES`; xxh3 is of 128 bits.
    """
    digest = HASHES[kind]()
    with path.open("rb") as stream:
        while piece := stream.read(READ_BYTES):
            digest.update(piece)
    return str(digest.hexdigest())


def sync_folder(folder: Path) -> None:
    """Make a folder's entries durable: a rename is not until its folder is synced."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_text(path: Path, text: str, *, durably: bool = True) -> None:
    """Write `text` to `path`, whole or not at all; `durably`: a crash of the machine keeps it."""
    staging = path.with_name(path.name + ".tmp")
    with staging.open("w") as stream:
        stream.write(text)
        stream.flush()
        if durably:
            os.fsync(stream.fileno())
    staging.replace(path)
    if durably:
        sync_folder(path.parent)
