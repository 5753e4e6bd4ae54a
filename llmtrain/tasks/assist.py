"""More processes to prepare data with, started by one that shows how far they all are."""

import multiprocessing
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from rich.console import Console

from llmtrain.config.groups.data import (
    DataConfig,
    HuggingFaceDataConfig,
    SyntheticDataConfig,
)
from llmtrain.config.groups.tokenizer import TokenizerConfig
from llmtrain.data.locate import find_files
from llmtrain.data.prepare import Preparation
from llmtrain.data.source import BYTES_A_WORD
from llmtrain.data.stream_folder import prepare_stream
from llmtrain.errors import UserError
from llmtrain.lifeline import die_with_parent
from llmtrain.machine import usable_cores
from llmtrain.tokenizer.threads import threads

WORTH_BYTES = 8 << 20
"""Input that is worth one more process: starting one takes up to a second, in which another does
half of it."""

GOODBYE_S = 10.0
"""How long helpers may take to notice that the work is done, or that it cannot be done."""


def prepare_with_help(
    data: DataConfig,
    tokenizer: TokenizerConfig,
    console: Console,
    announce: Callable[[bool], object] = lambda _: None,
) -> Path:
    """Return the folder with the shards, made by `data.processes` processes if need be.

    Under data.mode=streaming it is the folder of the stream, which one process makes.

    Args:
        data: The source.
        tokenizer: How text becomes ids.
        console: Where progress goes.
        announce: Told, before anything is made, whether there is work that others can help with.

    Raises:
        UserError: a setting is missing, or an input cannot be used.
    """
    if data.mode == "streaming":
        announce(False)
        return prepare_stream(data, tokenizer)
    preparation = Preparation.plan(data, tokenizer)
    done = preparation.is_done()
    announce(not done)
    if not done:
        run_with_help(preparation, console)
    return preparation.folder


def run_with_help(preparation: Preparation, console: Console | None) -> None:
    """Make the folder of `preparation` with `data.processes` processes, this one among them.

    By default as many as there are cores, but no more than there is work for.

    Raises:
        UserError: an input cannot be used.
    """
    processes = preparation.data.processes or min(usable_cores(), _useful(preparation))
    with _helpers(preparation, processes - 1):
        preparation.run(console, helps=console is None)


def _useful(preparation: Preparation) -> int:
    """Return for how many processes there is work that is worth their start."""
    size = 0
    for source in preparation.sources:
        if isinstance(source.data, HuggingFaceDataConfig):
            return usable_cores()  # how large it is takes loading
        if isinstance(source.data, SyntheticDataConfig):
            size += BYTES_A_WORD * source.data.words_per_document * source.data.documents
        else:
            size += sum(file.stat().st_size for file in find_files(source.data))
    return 1 + size // WORTH_BYTES


@contextmanager
def _helpers(preparation: Preparation, count: int) -> Iterator[None]:
    """Let `count` processes help meanwhile."""
    if not count:
        yield
        return
    context: Any = multiprocessing.get_context(_start_method())
    helpers = [
        context.Process(target=_help, args=(preparation,), daemon=True) for _ in range(count)
    ]
    try:
        # Each process encodes on its own: threads would only be in each other's way.
        with threads(False):
            for helper in helpers:
                helper.start()
            yield
        _say_goodbye(helpers)
    except Exception:
        _say_goodbye(helpers)  # who leaves last after a refusal takes the work along
        raise
    finally:
        for helper in helpers:
            if helper.is_alive():
                helper.kill()


def _start_method() -> str:
    """Return fork, which costs nothing, for a process that is nothing but Python yet; else spawn:
    threads, process groups and GPUs do not live through a fork."""
    plain = threading.active_count() == 1 and "torch" not in sys.modules
    return "fork" if plain and sys.platform == "linux" else "spawn"


def _say_goodbye(helpers: Sequence[BaseProcess]) -> None:
    until = time.monotonic() + GOODBYE_S
    for helper in helpers:
        helper.join(max(0.0, until - time.monotonic()))


def _help(preparation: Preparation) -> None:
    parent = multiprocessing.parent_process()
    die_with_parent(parent=parent.pid if parent else None)
    try:
        preparation.run(helps=True)
    except (UserError, KeyboardInterrupt):
        return  # the process that started this one meets the same, and says so
