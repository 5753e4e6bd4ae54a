"""Raw text to shards: read, clean, dedup, split, tokenize, write; once for the same input.

Any number of processes may prepare the same folder at once: they share the work, see `data/crew.py`
for how and `data/work.py` for the stages. What they make does not depend on how many they are, nor
on what was killed on the way.

The sources of a mixture get a folder each. What one holds depends on itself, on the tokenizer and,
for duplicates, on the sources before it; so a new source behind the others leaves theirs as they
are, unless the tokenizer is learned from all of them.
"""

import json
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from llmtrain.config.groups.data import DataConfig
from llmtrain.config.groups.mixture import MixtureDataConfig, sources_of
from llmtrain.config.groups.tokenizer import GIVEN_TOKENIZERS, TokenizerConfig
from llmtrain.console import make_console
from llmtrain.data.cache import cache_root, settings_hash, source_settings, tokenizer_settings
from llmtrain.data.choose import Choice, Earlier
from llmtrain.data.crew import Crew, clear_work, one_message, until_finished
from llmtrain.data.learn import learn_tokenizer
from llmtrain.data.locate import check_source, source_stamps
from llmtrain.data.manifest import load_manifest, verify_files
from llmtrain.data.mixture import publish_mixture, verify_mixture
from llmtrain.data.publish import (
    REPORT,
    TOKENIZER,
    load_digests,
    shared_tokenizer,
)
from llmtrain.data.work import SourceWork
from llmtrain.errors import DataError
from llmtrain.tokenizer.base import Tokenizer
from llmtrain.tokenizer.build import load_tokenizer


@dataclass(frozen=True)
class PlannedSource:
    """A source, and where it is prepared."""

    name: str
    data: DataConfig
    digest: str
    """32 hex digits for the content of the inputs and every setting that matters."""
    folder: Path

    def is_done(self) -> bool:
        """Say whether the folder is there.

        Raises:
            DataError: it is there and corrupt.
        """
        if not self.folder.exists():
            return False
        verify_files(self.folder, load_manifest(self.folder).files)
        clear_work(self.folder)
        return True


@dataclass(frozen=True)
class Preparation:
    """What is to be made, and where. Plain values: it goes to other processes."""

    data: DataConfig
    tokenizer: TokenizerConfig
    digest: str
    """As of a source, for all of them."""
    folder: Path
    """`<cache>/<data.name>-<first 16 digits>`."""
    sources: tuple[PlannedSource, ...]
    """One, unless `data` is a mixture."""

    @classmethod
    def plan(cls, data: DataConfig, tokenizer: TokenizerConfig) -> "Preparation":
        """Return what `data` under `tokenizer` means now; reads and hashes the inputs.

        Raises:
            ConfigError: a setting is missing.
            DataError: an input cannot be read, or the cache cannot be written.
        """
        check_source(data)
        root = cache_root(data)
        named = sources_of(data)
        contents = [source_settings(source) for source in named.values()]
        ids = tokenizer_settings(tokenizer)
        sources: list[PlannedSource] = []
        for number, (name, source) in enumerate(named.items()):
            settings: dict[str, Any] = {"source": contents[number], "tokenizer": ids}
            if source.dedup != "none":
                settings["earlier"] = contents[:number]
            if tokenizer.name not in GIVEN_TOKENIZERS:
                weights = {} if tokenizer.name == "char" else _weights(data)
                settings["learned_from"] = [contents, weights]
            digest = settings_hash(settings)
            sources.append(PlannedSource(name, source, digest, root / f"{name}-{digest[:16]}"))
        if not isinstance(data, MixtureDataConfig):
            return cls(data, tokenizer, sources[0].digest, sources[0].folder, tuple(sources))
        parts = [[source.name, source.digest] for source in sources]
        digest = settings_hash({"mixture": parts, "weights": _weights(data)})
        return cls(data, tokenizer, digest, root / f"{data.name}-{digest[:16]}", tuple(sources))

    def is_done(self) -> bool:
        """Say whether everything is there.

        Raises:
            DataError: it is there and corrupt.
        """
        done = [source.is_done() for source in self.sources]
        if isinstance(self.data, MixtureDataConfig):
            if not self.folder.exists():
                return False
            verify_mixture(self.folder)
            clear_work(self.folder)
        return all(done)

    def run(self, console: Console | None = None, *, helps: bool = False) -> None:
        """Make the folder, together with every other process that does so now.

        Args:
            console: Where progress goes; None, or no terminal: nowhere.
            helps: Whether another process shows the progress.

        Raises:
            DataError: an input cannot be used, or the cache cannot be written.
        """
        silent = console is None or not console.is_terminal
        bars = Progress(console=console, transient=True, disable=silent)
        with one_message(self.folder), bars:
            _Making(self, bars, helps).run()


def prepare(
    data: DataConfig, tokenizer: TokenizerConfig, *, console: Console | None = None
) -> Path:
    """Return the folder with the shards of `data` under `tokenizer`, made if it is not there yet.

    Args:
        data: The source and what is done to it.
        tokenizer: How text becomes ids.
        console: Where progress goes; None: stderr. Silent where it is no terminal.

    Raises:
        ConfigError: a setting is missing.
        DataError: an input cannot be used, the cache cannot be written, or what it holds is
            corrupt.
    """
    preparation = Preparation.plan(data, tokenizer)
    if not preparation.is_done():
        preparation.run(console or make_console(stderr=True))
    return preparation.folder


def load_report(folder: Path) -> dict[str, Any]:
    """Return what `prepare` counted when it made `folder`.

    Raises:
        DataError: there is no report.
    """
    try:
        return json.loads((folder / REPORT).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{folder / REPORT} cannot be read ({error}).") from error


class _Making:
    """One process that makes a preparation: first what all sources hold, then their shards."""

    def __init__(self, preparation: Preparation, bars: Progress, helps: bool) -> None:
        self._preparation = preparation
        self._bars = bars
        self._helps = helps
        self._choices: dict[str, Choice] = {}
        """By source, of those whose folder is not there yet."""
        self._tokenizers: dict[Path, Tokenizer] = {}
        """By folder."""

    def run(self) -> None:
        with ExitStack() as joined:
            works = self._choose(joined)
            mixture, folder = self._preparation.data, self._preparation.folder
            if isinstance(mixture, MixtureDataConfig) and not folder.exists():
                crew = Crew(folder, helps=self._helps)
                with until_finished(crew):
                    joined.enter_context(crew)
                    tokenizer = shared_tokenizer(crew, self._make_tokenizer, self._bars)
                    self._finish(works, lambda: tokenizer)
                    publish_mixture(crew, mixture, self._folders())
            else:
                self._finish(works, self._make_tokenizer)

    def _folders(self) -> dict[str, Path]:
        return {source.name: source.folder for source in self._preparation.sources}

    def _choose(self, joined: ExitStack) -> dict[str, tuple[Crew, SourceWork]]:
        """Read and choose what is not there yet; each source knows what those before it keep."""
        works: dict[str, tuple[Crew, SourceWork]] = {}
        earlier, unread = Earlier(), list[DataConfig]()
        for source in self._preparation.sources:
            if not source.is_done():
                key = settings_hash({"stamps": source_stamps(source.data)})
                crew = Crew(source.folder, key=key, helps=self._helps)
                work = SourceWork(crew, source.data, source.digest, self._bars)
                with until_finished(crew):
                    joined.enter_context(crew)
                    needed = unread if source.data.dedup == "near" else ()
                    if self._preparation.tokenizer.name in GIVEN_TOKENIZERS and not self._helps:
                        work.parts(needed)
                        self._tokenizer(crew, self._make_tokenizer)  # while helpers read already
                    self._choices[source.name] = work.choose(earlier, needed)
                    works[source.name] = crew, work
            if source.name in works:
                choice = self._choices[source.name]
                earlier = earlier.add(choice.digests(), choice.records)
            else:
                earlier = earlier.add(load_digests(source.folder), [])
                unread.append(source.data)
        return works

    def _make_tokenizer(self) -> Tokenizer:
        """Learn from what was chosen; a source that is there was made with the same tokenizer."""
        for made in self._tokenizers.values():
            return made
        for source in self._preparation.sources:
            if source.folder.exists():
                return load_tokenizer(source.folder / TOKENIZER)
        data = self._preparation.data
        return learn_tokenizer(self._preparation.tokenizer, self._choices, _weights(data))

    def _finish(
        self, works: dict[str, tuple[Crew, SourceWork]], make: Callable[[], Tokenizer]
    ) -> None:
        for name, (crew, work) in works.items():
            with until_finished(crew):
                work.finish(self._choices[name], self._tokenizer(crew, make))

    def _tokenizer(self, crew: Crew, make: Callable[[], Tokenizer]) -> Tokenizer:
        """Return the tokenizer for the folder of `crew`, made or loaded once."""
        if crew.final not in self._tokenizers:
            self._tokenizers[crew.final] = shared_tokenizer(crew, make, self._bars)
        return self._tokenizers[crew.final]


def _weights(data: DataConfig) -> dict[str, float]:
    return data.weights if isinstance(data, MixtureDataConfig) else {}
