"""Which files a source means, and the cheap checks that need no reading.

Standard library only: the command line calls `check_source` before any process starts.
"""

import fnmatch
import glob
import os
from pathlib import Path

from llmtrain.config.groups.data import (
    DataConfig,
    HuggingFaceDataConfig,
    JsonlDataConfig,
    ParquetDataConfig,
    SyntheticDataConfig,
    TextDataConfig,
)
from llmtrain.data.library import check_libraries
from llmtrain.errors import ConfigError, DataError, did_you_mean, require

SHAKESPEARE = Path(__file__).parent / "corpus" / "shakespeare"

PATTERNS = {
    "text": ("*.txt", "*.md"),
    "jsonl": ("*.jsonl", "*.jsonl.gz"),
    "parquet": ("*.parquet",),
}
"""What a folder is searched for."""

EXAMPLES = {
    "text": "data.path=notes.txt",
    "jsonl": "data.path=corpus.jsonl",
    "parquet": "data.path=corpus.parquet",
    "huggingface": "data.path=roneneldan/TinyStories",
}

NAMES_SHOWN = 8
"""Names of neighbours that a message lists."""


def check_source(config: DataConfig) -> None:
    """Refuse a source that cannot be read or prepared, as far as that shows without reading it.

    Raises:
        ConfigError: a setting that the source needs is missing or makes no sense, or a rule needs a
            package that is not there.
        DataError: a file is missing or not readable, or a folder holds none of its kind.
    """
    check_libraries(config)
    if isinstance(config, SyntheticDataConfig):
        for key in ("documents", "words_per_document", "vocabulary"):
            value = getattr(config, key)
            require(value >= 1, f"data.{key}={value} must be at least 1.")
    elif isinstance(config, HuggingFaceDataConfig):
        _check_huggingface(_given_path(config))
    else:
        for file in find_files(config):
            if not os.access(file, os.R_OK):
                raise DataError(f"{file} may not be read: check its permissions.")


def find_files(config: DataConfig) -> list[Path]:
    """Return the files of a source that is made of files, sorted by path.

    Raises:
        ConfigError: no path is given.
        DataError: the path does not exist, or nothing there matches.
    """
    if config.name == "shakespeare":
        return sorted(SHAKESPEARE.glob("*.txt"))
    path = _given_path(config)
    root = Path(path).expanduser()
    if root.is_dir():
        return _files_in_folder(root, path, PATTERNS[config.name])
    if root.exists():
        return [root]
    if glob.has_magic(path):
        names = glob.glob(str(root), recursive=True)  # noqa: PTH207 - any root, absolute or not
        files = sorted(f for f in map(Path, names) if f.is_file())
        if not files:
            raise DataError(f"data.path={path} matches no file (looked from {Path.cwd()}).")
        return files
    raise DataError(f"data.path={path} does not exist.{_neighbours(root)}")


def kind_of_path(path: str) -> str:
    """Return which of the sources that read files `path` is for, by names: text where unclear."""
    root = Path(path).expanduser()
    names = [p.name for p in root.iterdir()] if root.is_dir() else [root.name]
    kinds = {
        kind: sum(fnmatch.fnmatch(name, pattern) for name in names for pattern in patterns)
        for kind, patterns in PATTERNS.items()
    }
    return max(kinds, key=lambda kind: kinds[kind])


def is_local(path: str) -> bool:
    """Say whether `path` can only mean a folder of this machine, not a name on the hub."""
    return Path(path).expanduser().exists() or path.startswith(("/", "./", "../", "~"))


def _given_path(config: DataConfig) -> str:
    path = None
    if isinstance(
        config, TextDataConfig | JsonlDataConfig | ParquetDataConfig | HuggingFaceDataConfig
    ):
        path = config.path
    if not path:
        example = EXAMPLES.get(config.name, "data=shakespeare")
        raise ConfigError(f"data={config.name} needs data.path, such as {example}.")
    return path


def _files_in_folder(root: Path, path: str, patterns: tuple[str, ...]) -> list[Path]:
    found = {file for pattern in patterns for file in root.rglob(pattern) if file.is_file()}
    shown = [f for f in found if not any(p.startswith(".") for p in f.relative_to(root).parts)]
    if not any(file.is_file() for file in root.rglob("*")):
        raise DataError(
            f"data.path={path} is a folder that holds no files ({root.resolve()}). Put "
            f"{' or '.join(patterns)} files into it, or name another."
        )
    if not shown:
        raise DataError(
            f"data.path={path} is a folder without {' or '.join(patterns)} files."
            f"{_listing(root)} Name files with a glob, such as data.path='{path.rstrip('/')}/*'."
        )
    return sorted(shown)


def _check_huggingface(path: str) -> None:
    root = Path(path).expanduser()
    if is_local(path) and not root.exists():
        raise DataError(f"data.path={path} does not exist.{_neighbours(root)}")
    if root.is_file():
        raise DataError(
            f"data.path={path} is a file; data=huggingface takes a hub name or a folder. "
            "Use data=text, data=jsonl or data=parquet for a file."
        )


def _neighbours(root: Path) -> str:
    """Return what a message can say about a missing `root`: the nearest name, or what is there."""
    folder = root.parent
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    if folder != root.parent:
        return f" Its folder is missing too; the nearest that exists is {folder.resolve()}."
    try:
        names = sorted(p.name for p in folder.iterdir())
    except OSError:
        return ""
    return did_you_mean(root.name, names) or _listing(folder)


def _listing(folder: Path) -> str:
    names = sorted(p.name for p in folder.iterdir() if not p.name.startswith("."))
    if not names:
        return f" {folder.resolve()} is empty."
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return f" {folder.resolve()} holds {', '.join(names[:NAMES_SHOWN])}{more}."
