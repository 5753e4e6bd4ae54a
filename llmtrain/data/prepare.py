"""Raw text to shards: read, clean, dedup, split, tokenize, write; once for the same input.

Any number of processes may prepare the same folder at once: they share the work, see `data/crew.py`
for how and `data/work.py` for the stages. What they make does not depend on how many they are, nor
on what was killed on the way.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress

from llmtrain.config.groups.data import DataConfig
from llmtrain.config.groups.tokenizer import TokenizerConfig
from llmtrain.console import make_console
from llmtrain.data.cache import cache_root, settings_hash
from llmtrain.data.choose import Choice
from llmtrain.data.crew import Crew, FinishedError
from llmtrain.data.locate import check_source
from llmtrain.data.manifest import load_manifest, verify_files
from llmtrain.data.work import REPORT, SourceWork
from llmtrain.errors import DataError
from llmtrain.tokenizer.base import Tokenizer
from llmtrain.tokenizer.build import train_tokenizer

THREADS_ENV = "TOKENIZERS_PARALLELISM"
"""Read by the library `tokenizers` at every call: whether it uses threads."""


@dataclass(frozen=True)
class Preparation:
    """What is to be made, and where. Plain values: it goes to other processes."""

    data: DataConfig
    tokenizer: TokenizerConfig
    digest: str
    """32 hex digits for the content of the inputs and every setting that matters."""
    folder: Path
    """`<cache>/<data.name>-<first 16 digits>`."""

    @classmethod
    def plan(cls, data: DataConfig, tokenizer: TokenizerConfig) -> "Preparation":
        """Return what `data` under `tokenizer` means now; reads and hashes the inputs.

        Raises:
            ConfigError: a setting is missing.
            DataError: an input cannot be read, or the cache cannot be written.
        """
        check_source(data)
        root, digest = cache_root(data), settings_hash(data, tokenizer)
        return cls(data, tokenizer, digest, root / f"{data.name}-{digest[:16]}")

    def is_done(self) -> bool:
        """Say whether the folder is there.

        Raises:
            DataError: it is there and corrupt.
        """
        if not self.folder.exists():
            return False
        verify_files(self.folder, load_manifest(self.folder))
        return True

    def run(self, console: Console | None = None, *, helps: bool = False) -> None:
        """Make the folder, together with every other process that does so now.

        Args:
            console: Where progress goes; None, or no terminal: nowhere.
            helps: Whether another process shows the progress.

        Raises:
            DataError: an input cannot be used, or the cache cannot be written.
        """
        silent = console is None or not console.is_terminal
        crew = Crew(self.folder, helps=helps)
        try:
            with crew, Progress(console=console, transient=True, disable=silent) as bars:
                self._work(crew, bars)
        except FinishedError:
            crew.clear()
        except OSError as error:
            raise DataError(
                f"Preparing {self.folder} failed: {error.strerror or error}. Free some space "
                "there, or set data.cache_dir to another folder. What is done is kept: the next "
                "start goes on from it."
            ) from error

    def _work(self, crew: Crew, bars: Progress) -> None:
        earlier = np.zeros((0, 16), dtype=np.uint8)
        work = SourceWork(crew, self.data, self.digest, earlier, bars)
        choice = work.choose()
        tokenizer = work.tokenizer(lambda: train(self.tokenizer, choice))
        work.finish(choice, tokenizer)


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


def train(config: TokenizerConfig, choice: Choice) -> Tokenizer:
    """Learn from the training split; `char` from both, for it has no id for what is new."""
    numbers = choice.orders["train"]
    if config.name == "char":
        numbers = np.concatenate(list(choice.orders.values()))
    total = int(choice.corpus.sizes()[numbers].sum())
    with threads():  # the other processes of the crew are waiting
        return train_tokenizer(config, choice.corpus.texts(numbers), total)


@contextmanager
def threads() -> Iterator[None]:
    """Let the library `tokenizers` use every core meanwhile."""
    before = os.environ.get(THREADS_ENV)
    os.environ[THREADS_ENV] = "true"
    try:
        yield
    finally:
        if before is None:
            del os.environ[THREADS_ENV]
        else:
            os.environ[THREADS_ENV] = before


def load_report(folder: Path) -> dict[str, Any]:
    """Return what `prepare` counted when it made `folder`.

    Raises:
        DataError: there is no report.
    """
    try:
        return json.loads((folder / REPORT).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{folder / REPORT} cannot be read ({error}).") from error
