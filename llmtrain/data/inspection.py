"""What a prepared folder holds, as plain values: for a look at it, and for JSON."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llmtrain.data.lengths import describe_lengths
from llmtrain.data.manifest import Manifest, load_manifest, verify_files
from llmtrain.data.mixture import PreparedSource, prepared_sources, verify_mixture
from llmtrain.data.prepare import load_report
from llmtrain.data.publish import TOKENIZER
from llmtrain.data.split_documents import Documents
from llmtrain.tokenizer.base import Tokenizer
from llmtrain.tokenizer.build import load_tokenizer

REPORTED = (
    "documents", "tokens", "bytes", "bytes_per_token", "replaced", "skipped", "clean", "dedup",
    "note", "tokenizer_report",
)  # fmt: skip
"""What is told of a report; folders that an earlier llmtrain made have less."""


@dataclass(frozen=True)
class Shown:
    """How much is shown of documents."""

    documents: int
    """Of each split, spread evenly."""
    tokens: int
    """Of the start, and of the end, of each."""


def inspect_folder(folder: Path, shown: Shown) -> dict[str, Any]:
    """Return what is in the prepared `folder` of a source or of a mixture.

    Raises:
        DataError: it is damaged; names the file and the fix.
    """
    sources = prepared_sources(folder)
    if [source.folder for source in sources] == [folder]:
        return {"folder": str(folder.absolute()), "kind": "source", **_inspect(folder, shown)}
    verify_mixture(folder)
    tokenizer = load_tokenizer(folder / TOKENIZER)
    return {
        "folder": str(folder.absolute()),
        "kind": "mixture",
        "tokenizer": _describe_tokenizer(tokenizer),
        **_reported(folder),
        "sources": [_of_mixture(source, shown) for source in sources],
    }


def _of_mixture(source: PreparedSource, shown: Shown) -> dict[str, Any]:
    inspected = _inspect(source.folder, shown)
    return {
        "name": source.name,
        "weight": source.weight,
        "folder": str(source.folder.absolute()),
        **inspected,
    }


def _inspect(folder: Path, shown: Shown) -> dict[str, Any]:
    manifest = load_manifest(folder)
    verify_files(folder, manifest.files)
    tokenizer = load_tokenizer(folder / TOKENIZER)
    return {
        "tokenizer": _describe_tokenizer(tokenizer),
        "dtype": manifest.dtype,
        "splits": {
            split: _inspect_split(folder, manifest, split, tokenizer, shown)
            for split in manifest.splits
        },
        **_reported(folder),
    }


def _describe_tokenizer(tokenizer: Tokenizer) -> dict[str, Any]:
    return {
        "name": tokenizer.name,
        "vocab_size": tokenizer.vocab_size,
        "separator": tokenizer.separator,
        "separator_id": tokenizer.separator_id,
        "hash": tokenizer.hash(),
    }


def _reported(folder: Path) -> dict[str, Any]:
    report = load_report(folder)
    return {name: report[name] for name in REPORTED if name in report}


def _inspect_split(
    folder: Path, manifest: Manifest, split: str, tokenizer: Tokenizer, shown: Shown
) -> dict[str, Any]:
    documents = Documents(folder, manifest, split)
    files = manifest.files
    return {
        "tokens": int(documents.starts[-1]),
        "documents": len(documents),
        "shards": [
            {
                **asdict(shard),
                "bytes": sum(c.bytes for n, c in files.items() if n.startswith(f"{shard.name}.")),
            }
            for shard in documents.shards
        ],
        # The separator is no part of a document's text.
        "lengths": describe_lengths(documents.lengths - 1),
        "examples": [
            _example(documents, number, tokenizer, shown.tokens)
            for number in spread(len(documents), shown.documents)
        ],
    }


def spread(count: int, wanted: int) -> list[int]:
    """Return `wanted` of the numbers below `count`, or all, each in the middle of its share."""
    wanted = min(count, wanted)
    return [(2 * number + 1) * count // (2 * wanted) for number in range(wanted)]


def _example(
    documents: Documents, number: int, tokenizer: Tokenizer, tokens: int
) -> dict[str, Any]:
    """Return the start and the end of a document; the whole of a short one is its start."""
    length = int(documents.lengths[number])
    whole = length <= 2 * tokens
    parts = [(0, length), (length, length)] if whole else [(0, tokens), (length - tokens, length)]
    start, end = (documents.pieces(number, *part, tokenizer) for part in parts)
    return {
        "document": number,
        "shard": documents.shards[documents.shard_of(number)].name,
        "tokens": length - 1,
        "prompt_tokens": documents.prompt_tokens(number),
        "start": [asdict(piece) for piece in start],
        "end": [asdict(piece) for piece in end],
    }
