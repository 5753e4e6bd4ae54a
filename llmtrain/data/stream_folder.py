"""The folder of a stream: its parts, its tokenizer, and the validation split, which is kept.

A prepared folder like others, but for its split `train`, which is empty: it is read as it comes.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llmtrain.config.groups.data import DataConfig
from llmtrain.config.groups.tokenizer import TokenizerConfig
from llmtrain.config.stream import check_stream
from llmtrain.data.block import (
    Place,
    StreamedDocument,
    clean_documents,
    is_held_out,
    without_duplicates,
)
from llmtrain.data.cache import (
    NOT_CONTENT,
    PREPARE_VERSION,
    cache_root,
    settings_hash,
    tokenizer_settings,
)
from llmtrain.data.crew import Crew, one_message, until_finished
from llmtrain.data.library import library_versions
from llmtrain.data.locate import check_source, source_stamps
from llmtrain.data.manifest import Manifest, Shard, dtype_for, load_manifest, mend, verify_files
from llmtrain.data.part import Part
from llmtrain.data.publish import REPORT, TOKENIZER, bytes_per_token, json_bytes, publish
from llmtrain.data.record import Record
from llmtrain.data.shard import keep_file, write_file, write_shard
from llmtrain.data.skip import SkipCount
from llmtrain.data.source import list_parts
from llmtrain.errors import DataError
from llmtrain.tokenizer.base import Tokenizer
from llmtrain.tokenizer.build import train_tokenizer

PARTS = "parts.json"

VALIDATION_TOKENS = 1 << 20
"""Kept of the documents that are held out, about: the first of them."""

UNUSED = (*NOT_CONTENT, "near", "shard_mode", "shard_tokens")
"""Settings that change nothing in a stream, or its order alone."""


@dataclass(frozen=True)
class HeldOut:
    """The validation split."""

    documents: list[np.ndarray]
    """The tokens of each, its separator behind them."""
    bytes: int
    """Their text."""
    read: int
    """Documents that were looked at, on either side."""


def prepare_stream(data: DataConfig, tokenizer: TokenizerConfig) -> Path:
    """Return the folder of the stream of `data` under `tokenizer`, made if it is not there yet.

    Files are known by path, size and time, not by content. Of plain JSON lines the lines are
    counted first, at the pace of the disk; other files are not read to the end.

    Raises:
        ConfigError: a setting is missing, or a stream cannot do what is asked.
        DataError: an input cannot be used, or what the cache holds is corrupt.
    """
    check_stream(data, tokenizer)
    check_source(data)
    digest = settings_hash(
        {
            "prepare_version": PREPARE_VERSION,
            "data": {k: v for k, v in asdict(data).items() if k not in UNUSED},
            # Where blocks end.
            "shuffle_documents": data.shuffle_documents,
            "libraries": library_versions(data),
            "source": source_stamps(data),
            "tokenizer": tokenizer_settings(tokenizer),
        }
    )
    folder = cache_root(data) / f"{data.name}-stream-{digest[:16]}"
    if not folder.exists():
        crew = Crew(folder)
        with one_message(folder), until_finished(crew), crew:
            crew.once("finish", lambda: _publish(crew, data, tokenizer, digest))
    verify_files(folder, load_manifest(folder).files)
    return folder


def load_parts(folder: Path) -> list[Part]:
    """Return the parts of the stream in `folder`.

    Raises:
        DataError: it is not the folder of a stream.
    """
    try:
        facts = json.loads((folder / PARTS).read_text(encoding="utf-8"))
        return [Part.from_facts(part) for part in facts]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"{folder / PARTS} cannot be read ({error}). {mend(folder)}") from error


def _publish(crew: Crew, data: DataConfig, config: TokenizerConfig, digest: str) -> Record:
    parts = list_parts(data)
    tokenizer = train_tokenizer(config, ())
    tokenizer.save(crew.out / TOKENIZER)
    skipped = SkipCount()
    documents = without_duplicates(data, clean_documents(data, parts, Place(), skipped))
    held = _held_out(data, documents, tokenizer)
    lengths = np.array([len(ids) for ids in held.documents], dtype=np.int64)
    name = "validation-00000"
    files = write_shard(crew.out, name, lengths, held.documents)
    files[TOKENIZER] = keep_file(crew.out / TOKENIZER)
    files[PARTS] = write_file(crew.out / PARTS, _parts_bytes(parts))
    files[REPORT] = write_file(crew.out / REPORT, json_bytes(_report(tokenizer, held, skipped)))
    manifest = Manifest(
        dtype=dtype_for(tokenizer.vocab_size).name,
        settings_hash=digest,
        tokenizer_name=tokenizer.name,
        tokenizer_hash=tokenizer.hash(),
        vocab_size=tokenizer.vocab_size,
        separator_id=tokenizer.separator_id,
        splits={"train": [], "validation": [Shard(name, int(lengths.sum()), len(lengths))]},
        files=files,
    )
    return publish(crew, files, manifest.to_json())


def _held_out(
    data: DataConfig, documents: Iterator[StreamedDocument], tokenizer: Tokenizer
) -> HeldOut:
    """Return the first documents that are held out.

    Raises:
        DataError: there are none, or no others.
    """
    dtype = dtype_for(tokenizer.vocab_size)
    found: list[np.ndarray] = []
    tokens = count = size = 0
    for document in documents:
        count += 1
        if is_held_out(document.digest, data):
            ids = tokenizer.encode(document.text)
            found.append(np.append(ids, tokenizer.separator_id).astype(dtype))
            tokens += len(found[-1])
            size += len(document.text.encode("utf-8"))
        if tokens >= VALIDATION_TOKENS and count > len(found):
            break
    if not found or count == len(found):
        split = "validation" if not found else "training"
        raise DataError(
            f"data.mode=streaming leaves nothing for {split}: of {count} documents each goes to "
            f"validation with a chance of data.val_ratio={data.val_ratio}. Give more documents "
            "(data.max_document_bytes cuts long texts), another data.val_ratio or data.seed, or "
            "set data.mode=prepared."
        )
    return HeldOut(found, size, count)


def _parts_bytes(parts: list[Part]) -> bytes:
    return json.dumps([asdict(part) for part in parts]).encode("utf-8")


def _report(tokenizer: Tokenizer, held: HeldOut, skipped: SkipCount) -> dict[str, Any]:
    tokens = sum(map(len, held.documents))
    return {
        "documents": {"read": held.read, "validation": len(held.documents)},
        "tokens": {"validation": tokens},
        "bytes": {"validation": held.bytes},
        "bytes_per_token": bytes_per_token(held.bytes, tokens, len(held.documents)),
        "skipped": skipped.to_json(),
        "clean": {},
        "tokenizer": tokenizer.name,
        "vocab_size": tokenizer.vocab_size,
        "note": "data.mode=streaming: what is trained on is read as it comes; here is the first of "
        "what is held out.",
    }
