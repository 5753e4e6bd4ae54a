"""Which prepared folder a user means."""

import json
from pathlib import Path

from llmtrain.data.cache import cache_path
from llmtrain.data.manifest import MANIFEST
from llmtrain.errors import DataError, did_you_mean

SHOWN = 5
"""Folders that a refusal names."""


def find_prepared(name: str) -> Path:
    """Return the prepared folder `name`: a path, or the name of a folder in the cache.

    Its manifest may be damaged: who reads it says so.

    Raises:
        DataError: there is none; names those that are near.
    """
    path = Path(name).expanduser()
    if is_prepared(path):
        return path
    cache = cache_path()
    if (cache / name).parent == cache and is_prepared(cache / name):
        return cache / name
    if path.is_dir():
        inside = _prepared_in(path)
        if inside:
            raise DataError(f"{name} holds prepared folders, and is none itself: {_some(inside)}")
        raise DataError(f"{name} is not a folder of prepared data.{_known()}")
    known = _prepared_in(cache)
    beside = _prepared_in(path.parent) if path.parent != Path() else []
    hint = did_you_mean(path.name, [folder.name for folder in [*beside, *known]])
    if hint:
        raise DataError(f"{name}: there is no such prepared folder.{hint}")
    alike = [folder for folder in known if folder.name.startswith(f"{path.name}-")]
    if alike:
        raise DataError(f"{name}: there is no such prepared folder. There is {_some(alike)}")
    raise DataError(f"{name}: there is no such folder.{_known()}")


def is_prepared(folder: Path) -> bool:
    """Say whether `folder` is one that `prepare` made, whole or damaged.

    A checkpoint has a manifest of that name too, of another kind.
    """
    try:
        content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except ValueError:
        return True
    except OSError:
        return False
    return not isinstance(content, dict) or str(content.get("format", "")).startswith("llmtrain-")


def _prepared_in(folder: Path) -> list[Path]:
    """Return the prepared folders in `folder`, the newest first."""
    found = [path.parent for path in folder.glob(f"*/{MANIFEST}") if is_prepared(path.parent)]
    return sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)


def _some(folders: list[Path]) -> str:
    more = f" and {len(folders) - SHOWN} more" if len(folders) > SHOWN else ""
    return ", ".join(path.name for path in folders[:SHOWN]) + more + "."


def _known() -> str:
    known = _prepared_in(cache_path())
    if not known:
        return f" Nothing is prepared in {cache_path()}: llmtrain prepare data=... does it."
    return f" In {cache_path()} there is {_some(known)}"
