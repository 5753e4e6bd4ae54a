"""Which files a source means, and the cheap checks that need no reading.

Standard library only: the command line calls `check_source` before any process starts.
"""

import fnmatch
import glob
import os
from pathlib import Path
from typing import Any

from llmtrain.config.groups.data import (
    DataConfig,
    FileDataConfig,
    HuggingFaceDataConfig,
    SyntheticDataConfig,
)
from llmtrain.config.groups.mixture import MixtureDataConfig, sources_of
from llmtrain.data.library import check_libraries
from llmtrain.errors import ConfigError, DataError, UserError, did_you_mean, require

SHAKESPEARE = Path(__file__).parent / "corpus" / "shakespeare"

COMPRESSED = {".gz": "gzip", ".zst": "zstd"}
"""Suffixes of compressed files; each is also the name of the tool that tests them."""

PATTERNS = {
    "text": ("*.txt", "*.md"),
    "jsonl": ("*.jsonl",),
    "csv": ("*.csv", "*.tsv"),
    "parquet": ("*.parquet",),
}
"""What a folder is searched for, each also compressed, but for Parquet."""

PAGES = ("*.html", "*.htm")
"""What it is searched for too where data.clean.html makes text of pages."""

EXAMPLES = {
    "text": "data.path=notes.txt",
    "jsonl": "data.path=corpus.jsonl",
    "csv": "data.path=corpus.csv",
    "parquet": "data.path=corpus.parquet",
    "huggingface": "data.path=roneneldan/TinyStories",
}

STDIN = "-"
"""The `data.path` that is the standard input."""

NAMES_SHOWN = 8
"""Names of neighbours that a message lists."""


def check_source(config: DataConfig) -> None:
    """Refuse a source that cannot be read or prepared, as far as that shows without reading it.

    Raises:
        ConfigError: a setting that the source needs is missing or makes no sense, or a rule needs a
            package that is not there.
        DataError: a file is missing or not readable, or a folder holds none of its kind.
    """
    if isinstance(config, MixtureDataConfig):
        require(
            bool(config.sources),
            "data=mixture needs data.sources, such as 'data.sources={web: {kind: jsonl, path: "
            "web.jsonl, weight: 0.7}, books: {kind: text, path: books, weight: 0.3}}'.",
        )
        for name, source in sources_of(config).items():
            try:
                check_source(source)
            except UserError as error:
                raise type(error)(f"data.sources.{name}: {error}") from error
        return
    check_libraries(config)
    if isinstance(config, SyntheticDataConfig):
        for key in ("documents", "words_per_document", "vocabulary"):
            value = getattr(config, key)
            require(value >= 1, f"data.{key}={value} must be at least 1.")
    elif isinstance(config, HuggingFaceDataConfig):
        _check_huggingface(config, _given_path(config))
    else:
        for file in find_files(config):
            if not os.access(file, os.R_OK):
                raise DataError(f"{file} may not be read: check its permissions.")


def find_files(config: DataConfig) -> list[Path]:
    """Return the files of a source that is made of files, sorted by path.

    Raises:
        ConfigError: no path is given, or the standard input, which only a command line has.
        DataError: the path does not exist, nothing there matches, or a link leads nowhere.
    """
    if not isinstance(config, FileDataConfig):
        return sorted(SHAKESPEARE.glob("*.txt"))
    path = _given_path(config)
    if path == STDIN:
        raise ConfigError(
            "data.path=- can be read once, by a `llmtrain train` or `llmtrain prepare` that starts "
            "at once, and not by --dry-run, sweeps, verify or torchrun: save it to a file, and "
            "name that."
        )
    root = Path(path).expanduser()
    if root.is_dir():
        return _files_in_folder(root, path, config)
    if root.is_file():
        return [root]
    if root.exists():
        raise DataError(f"data.path={path} is no regular file; to read a pipe, set data.path=-")
    if root.is_symlink():
        raise _dangling(root)
    if glob.has_magic(path):
        names = glob.glob(str(root), recursive=True)  # noqa: PTH207 - any root, absolute or not
        files = sorted(f for f in map(Path, names) if _is_file(f))
        if not files:
            raise DataError(f"data.path={path} matches no file (looked from {Path.cwd()}).")
        return files
    raise DataError(f"data.path={path} does not exist.{_neighbours(root)}")


def kind_of_path(path: str) -> str:
    """Return which of the sources that read files `path` is for, by names: text where unclear."""
    root = Path(path).expanduser()
    names = [p.name for p in root.iterdir()] if root.is_dir() else [root.name]
    kinds = {
        kind: sum(_matches(Path(name), patterns) for name in names)
        for kind, patterns in PATTERNS.items()
    }
    return max(kinds, key=lambda kind: kinds[kind])


def source_stamps(data: DataConfig) -> Any:
    """Return what a source is known by without reading it: paths, sizes and times of its files."""
    if isinstance(data, SyntheticDataConfig):
        return "synthetic"
    if isinstance(data, HuggingFaceDataConfig):
        root = Path(str(data.path)).expanduser()
        if not root.is_dir():
            return f"hub:{data.path}"
        files = sorted(file for file in root.rglob("*") if file.is_file())
    else:
        files = find_files(data)
    stats = [(file.absolute(), file.stat()) for file in files]
    return [[str(file), stat.st_size, stat.st_mtime_ns] for file, stat in stats]


def is_compressed(file: Path | str) -> bool:
    """Say whether the name of `file` says that it is compressed."""
    return Path(file).suffix in COMPRESSED


def is_local(path: str) -> bool:
    """Say whether `path` can only mean a folder of this machine, not a name on the hub."""
    return Path(path).expanduser().exists() or path.startswith(("/", "./", "../", "~"))


def _given_path(config: DataConfig) -> str:
    path = None
    if isinstance(config, FileDataConfig | HuggingFaceDataConfig):
        path = config.path
    if not path:
        example = EXAMPLES.get(config.name, "data=shakespeare")
        raise ConfigError(f"data={config.name} needs data.path, such as {example}.")
    return path


def _files_in_folder(root: Path, path: str, config: FileDataConfig) -> list[Path]:
    patterns = PATTERNS[config.name]
    if config.name == "text" and config.clean.html:
        patterns += PAGES
    found: list[Path] = []
    others = 0
    for folder, folders, names in os.walk(root, onerror=_refuse_folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            file = Path(folder, name)
            if name.startswith("."):
                continue
            if config.pattern is not None:
                wanted = file.relative_to(root).match(config.pattern)
            else:
                wanted = _matches(file, patterns)
            if wanted and _is_file(file):
                found.append(file)
            else:
                others += 1
    if found:
        return sorted(found)
    kinds = config.pattern or " or ".join(patterns)
    if not others:
        raise DataError(
            f"data.path={path} is a folder that holds no files ({root.resolve()}). Put {kinds} "
            "files into it, or name another."
        )
    raise DataError(
        f"data.path={path} is a folder without {kinds} files.{_listing(root)} Name those to read, "
        f"such as data.pattern='*.log'.{_pages_hint(root, config)}"
    )


def _matches(file: Path, patterns: tuple[str, ...]) -> bool:
    packed = is_compressed(file) and patterns != PATTERNS["parquet"]
    name = file.stem if packed else file.name
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)


def _is_file(file: Path) -> bool:
    """Say whether `file` is a regular file, at the end of links.

    Raises:
        DataError: it is a link that leads nowhere.
    """
    if file.is_symlink() and not file.exists():
        raise _dangling(file)
    return file.is_file()


def _dangling(link: Path) -> DataError:
    return DataError(
        f"{link} is a link to {link.readlink()}, which does not exist. Mend it, or remove it."
    )


def _refuse_folder(error: OSError) -> None:
    raise DataError(f"The folder {error.filename} cannot be read: {error.strerror}.") from error


def _pages_hint(root: Path, config: FileDataConfig) -> str:
    pages = config.name == "text" and any(next(root.rglob(page), None) for page in PAGES)
    return " Pages of HTML are read with data.clean.html=true." if pages else ""


def _check_huggingface(config: HuggingFaceDataConfig, path: str) -> None:
    root = Path(path).expanduser()
    if is_local(path) and not root.exists():
        raise DataError(f"data.path={path} does not exist.{_neighbours(root)}")
    if root.is_file():
        raise DataError(
            f"data.path={path} is a file; data=huggingface takes a hub name or a folder. "
            f"Use data={kind_of_path(path)} for this file."
        )
    if is_local(path):
        require(
            config.revision is None,
            f"data.revision={config.revision} is of datasets on the hub, and data.path={path} is a "
            "folder here: leave data.revision out.",
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
