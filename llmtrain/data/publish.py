"""What a crew puts into a folder beside its shards, and how the folder becomes real."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import Progress

from llmtrain.data.crew import Crew
from llmtrain.data.dedup import Digests
from llmtrain.data.manifest import MANIFEST, FileCheck
from llmtrain.data.record import Record
from llmtrain.data.shard import keep_file, write_file
from llmtrain.durable import sync_folder
from llmtrain.tokenizer.base import Tokenizer
from llmtrain.tokenizer.build import load_tokenizer

REPORT = "report.json"
TOKENIZER = "tokenizer.json"
DIGESTS = "digests.bin"
"""The content hash of every document, 16 bytes each, ascending: for sources that come later."""


def shared_tokenizer(crew: Crew, make: Callable[[], Tokenizer], bars: Progress) -> Tokenizer:
    """Return the tokenizer of the folder of `crew`; one process makes it, the others load it.

    Raises:
        DataError: it cannot be made.
        FinishedError: the folder is there.
    """
    made: list[Tokenizer] = []

    def keep() -> Record:
        bars.add_task("train tokenizer", total=None)
        made.append(make())
        made[0].save(crew.out / TOKENIZER)
        return Record({"files": {TOKENIZER: asdict(keep_file(crew.out / TOKENIZER))}})

    crew.once("tokenizer", keep)
    return made[0] if made else load_tokenizer(crew.out / TOKENIZER)


def load_digests(folder: Path) -> Digests:
    """Return what `Choice.digests` gave for the finished `folder`."""
    return np.fromfile(folder / DIGESTS, dtype=np.uint8).reshape(-1, 16)


def publish(crew: Crew, files: dict[str, FileCheck], manifest: dict[str, Any]) -> Record:
    """Write the manifest beside `files`, and make the folder of `crew` real."""
    write_file(crew.out / MANIFEST, json_bytes(manifest))
    for left in crew.out.iterdir():
        if left.name not in {*files, MANIFEST}:
            left.unlink()  # of a process that was killed while it wrote
    sync_folder(crew.out)
    crew.out.rename(crew.final)
    sync_folder(crew.final.parent)
    return Record()


def bytes_per_token(text_bytes: int, tokens: int, documents: int) -> float:
    """Return how many bytes of text a token stands for; a separator a document is no text."""
    return round(text_bytes / max(1, tokens - documents), 4)


def json_bytes(content: dict[str, Any]) -> bytes:
    """Return `content` as the bytes of a file."""
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode("utf-8")
