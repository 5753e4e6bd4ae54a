"""A prepared mixture: a manifest that names the folders of its sources, beside them in the cache.

{"format": "llmtrain-mixture", "version": 1,
 "sources": [{"name": "web", "folder": "web-0123456789abcdef", "weight": 0.7}, ...],
 "files": {"tokenizer.json": {...}, "report.json": {...}}}
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llmtrain.config.groups.mixture import MixtureDataConfig
from llmtrain.data.crew import Crew
from llmtrain.data.manifest import FORMAT, VERSION, FileCheck, mend, read_manifest, verify_files
from llmtrain.data.publish import REPORT, TOKENIZER, bytes_per_token, json_bytes, publish
from llmtrain.data.record import Record
from llmtrain.data.shard import keep_file, write_file
from llmtrain.errors import DataError

MIXTURE = "llmtrain-mixture"

SUMS = ("documents", "tokens", "bytes")
"""Counts of a report that add up over sources."""


@dataclass(frozen=True)
class PreparedSource:
    """A source in its folder."""

    name: str
    folder: Path
    weight: float | None
    """Relative to the others'; None for all: by their tokens."""


def prepared_sources(folder: Path) -> list[PreparedSource]:
    """Return what a prepared folder holds: the sources of a mixture, or the one it is.

    Raises:
        DataError: the manifest cannot be read.
    """
    content = read_manifest(folder, (FORMAT, MIXTURE))
    if content["format"] == FORMAT:
        return [PreparedSource(folder.name, folder, None)]
    try:
        return [
            PreparedSource(s["name"], folder.parent / Path(s["folder"]).name, s["weight"])
            for s in content["sources"]
        ]
    except (KeyError, TypeError) as error:
        raise DataError(f"{folder}: its manifest lacks {error}. {mend(folder)}") from error


def verify_mixture(folder: Path) -> None:
    """Check the files of a mixture's own folder, those of its sources left out.

    Raises:
        DataError: one is missing or is not what was written.
    """
    files = read_manifest(folder, (MIXTURE,))["files"]
    verify_files(folder, {name: FileCheck(**check) for name, check in files.items()})


def publish_mixture(crew: Crew, data: MixtureDataConfig, folders: dict[str, Path]) -> None:
    """Make the folder of the mixture whose sources are in `folders`, by name.

    Raises:
        FinishedError: always: the folder is there.
    """
    crew.once("finish", lambda: _publish(crew, data, folders))


def _publish(crew: Crew, data: MixtureDataConfig, folders: dict[str, Path]) -> Record:
    files = {
        TOKENIZER: keep_file(crew.out / TOKENIZER),
        REPORT: write_file(crew.out / REPORT, json_bytes(_report(folders))),
    }
    sources = [
        {"name": name, "folder": folder.name, "weight": data.sources[name].weight}
        for name, folder in folders.items()
    ]
    manifest = {
        "format": MIXTURE,
        "version": VERSION,
        "sources": sources,
        "files": {name: asdict(check) for name, check in files.items()},
    }
    return publish(crew, files, manifest)


def _report(folders: dict[str, Path]) -> dict[str, Any]:
    """Return the sums over all sources, and the report of each."""
    reports = {n: json.loads((f / REPORT).read_text(encoding="utf-8")) for n, f in folders.items()}
    whole: dict[str, Any] = {key: {} for key in SUMS}
    for report in reports.values():
        for key in SUMS:
            for name, count in report[key].items():
                whole[key][name] = whole[key].get(name, 0) + count
    first = next(iter(reports.values()))
    documents = whole["documents"]["train"] + whole["documents"]["validation"]
    sizes = sum(whole["bytes"].values()), sum(whole["tokens"].values())
    notes = [f"{name}: {report['note']}" for name, report in reports.items() if report["note"]]
    return whole | {
        "bytes_per_token": bytes_per_token(*sizes, documents),
        "tokenizer": first["tokenizer"],
        "vocab_size": first["vocab_size"],
        "note": "; ".join(notes),
        "sources": reports,
    }
