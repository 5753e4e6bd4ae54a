"""Damaged, changed and oversized input: counted or refused, and never held whole."""

import gzip
import json
import os
import pickle
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from llmtrain.config.groups.data import (
    CsvDataConfig,
    DataConfig,
    HuggingFaceDataConfig,
    JsonlDataConfig,
    ParquetDataConfig,
    TextDataConfig,
)
from llmtrain.data.part import PART_BYTES
from llmtrain.data.skip import SkipCount
from llmtrain.data.source import iter_documents, list_parts, read_part
from llmtrain.errors import DataError
from tests.unit.data.conftest import refusal, unsaid

ROWS = b"".join(b'{"text": "%032x"}\n' % (i * 0x9E3779B97F4A7C15) for i in range(20_000))
"""More than a decompressor reads at once."""


def zstd(raw: bytes) -> bytes:
    """Compress without a checksum, all that the library can."""
    return pyarrow.compress(raw, "zstd", asbytes=True)


def read(config: DataConfig) -> tuple[list[str], SkipCount]:
    skipped = SkipCount()
    return [d.text for d in iter_documents(config, skipped)], skipped


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "cut in the middle": lambda raw: raw[: len(raw) // 2],
    "cut before the end": lambda raw: raw[:-1],
    "other bytes": lambda raw: raw[: len(raw) // 2] + b"\xff" * 64 + raw[len(raw) // 2 + 64 :],
    "another checksum": lambda raw: raw[:-6] + bytes(b ^ 1 for b in raw[-6:]),
    "something behind": lambda raw: raw + b"something else",
    "not compressed": lambda raw: ROWS[:100],
}


CHECKSUMS = ("other bytes", "another checksum")
"""Damage that only a checksum tells."""


@pytest.mark.parametrize("errors", ["skip", "strict"])
@pytest.mark.parametrize(
    ("suffix", "damage"),
    [("gz", d) for d in DAMAGE] + [("zst", d) for d in DAMAGE if d not in CHECKSUMS],
)
def test_damaged_compression_is_always_refused(
    tmp_path: Path, suffix: str, damage: str, errors: str
) -> None:
    file = tmp_path / f"a.jsonl.{suffix}"
    whole = {"gz": gzip.compress, "zst": zstd}[suffix](ROWS)
    file.write_bytes(whole)
    config = JsonlDataConfig(path=str(file), errors=errors)
    assert len(read(config)[0]) == 20_000
    file.write_bytes(DAMAGE[damage](whole))
    tool = {"gz": "gzip", "zst": "zstd"}[suffix]
    # A line that the damage has broken may be met before the checksum.
    line = errors == "strict" and damage == "other bytes"
    assert not unsaid(
        refusal(config), f"a.jsonl.{suffix}", *([] if line else ["is damaged (", f"{tool} -t"])
    )


def test_a_broken_line_is_counted_or_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    good = [{"text": f"line {i}"} for i in range(30)]
    lines = [json.dumps(row) for row in good]
    lines[10:10] = ['{"text": "a', '["text"]', '{"txt": "a"}', '{"text": 3}', '{"text": "\0"}']
    file.write_text("\n".join(lines))
    texts, skipped = read(JsonlDataConfig(path=str(file)))
    assert texts == [row["text"] for row in good]
    assert skipped.reasons == {
        "not JSON": 1, "not an object": 1, "no such field": 1, "not text": 2,
    }  # fmt: skip
    assert skipped.documents == 5
    assert len(skipped.examples) == 3
    assert all(f"{file}:1" in e.id and e.id in e.text for e in skipped.examples)
    assert not unsaid(
        refusal(JsonlDataConfig(path=str(file), errors="strict")), "a.jsonl:11", "not JSON"
    )


def test_counts_of_several_processes_add_up(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / f"{name}.jsonl").write_text('{"text": "x"}\nbroken\n' + "[]\n" * 5)
    config = JsonlDataConfig(path=str(tmp_path))
    _, whole = read(config)
    total = SkipCount()
    for name in "cab":
        one = SkipCount()
        list(iter_documents(JsonlDataConfig(path=str(tmp_path / f"{name}.jsonl")), one))
        total.merge(pickle.loads(pickle.dumps(one)))
    assert total == whole
    assert total.to_json()["reasons"] == {"not JSON": 3, "not an object": 15}


def test_nothing_but_broken_lines_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"body": "a"}\n' * 7)
    assert not unsaid(
        refusal(JsonlDataConfig(path=str(file))), "None of 7", "no field 'text'", "It has: body"
    )
    file.write_bytes(os.urandom(20) + b"\0")
    assert not unsaid(refusal(TextDataConfig(path=str(file))), "a.jsonl is not text")


def test_a_binary_file_among_texts_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "b.txt").write_bytes(b"\x7fELF\0\0")
    texts, skipped = read(TextDataConfig(path=str(tmp_path)))
    assert texts == ["text"]
    assert skipped.reasons == {"not text": 1}
    assert not unsaid(
        refusal(TextDataConfig(path=str(tmp_path), errors="strict")), "b.txt is not text"
    )


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_a_line_that_is_too_long_is_never_held(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"a.jsonl{suffix}"
    long = b'{"text": "' + b"x" * 60_000_000 + b'"}\n'
    raw = b'{"text": "one"}\n' + long + b'{"text": "two"}\n'
    file.write_bytes({"": bytes, ".gz": lambda r: gzip.compress(r, 1), ".zst": zstd}[suffix](raw))
    config = JsonlDataConfig(path=str(file), max_document_bytes=1_000_000)
    parts = list_parts(config)
    assert len(parts) == (-(-file.stat().st_size // PART_BYTES) if not suffix else 1)
    skipped = SkipCount()
    del raw, long
    tracemalloc.start()
    texts = [d.text for part in parts for d in read_part(config, part, skipped)]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert texts == ["one", "two"]
    assert skipped.reasons == {"too long": 1}
    assert "60000013 bytes" in skipped.examples[0].text
    assert skipped.examples[0].id == f"{file}:2"
    assert peak < 8_000_000  # the limit twice, and buffers
    strict = JsonlDataConfig(path=str(file), max_document_bytes=1_000_000, errors="strict")
    assert not unsaid(refusal(strict), f"{file}:2", "data.max_document_bytes=1000000")


def test_a_long_field_is_too_long_by_its_bytes(tmp_path: Path) -> None:
    texts = ["é" * 512, "é" * 513, "x" * 1024, "x" * 1025]
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), tmp_path / "a.parquet")
    config = ParquetDataConfig(path=str(tmp_path), max_document_bytes=1024)
    kept, skipped = read(config)
    assert kept == [texts[0], texts[2]]
    assert skipped.reasons == {"too long": 2}


@pytest.mark.parametrize("change", ["removed", "cut", "longer", "rewritten"])
@pytest.mark.parametrize("kind", [TextDataConfig, JsonlDataConfig, CsvDataConfig])
def test_a_file_that_changes_while_it_is_read(
    tmp_path: Path, change: str, kind: type[JsonlDataConfig]
) -> None:
    file = tmp_path / "a"
    content = '{"text": "a"}\n' * 10
    file.write_text(content)
    os.utime(file, ns=(1, 1))
    config = kind(path=str(file))
    parts = list_parts(config)
    if change == "removed":
        file.unlink()
    else:
        file.write_text({"cut": content[:20], "longer": content * 2}.get(change, content))
    with pytest.raises(DataError, match=f"{file}.*(No such file|has changed while)"):
        [d for part in parts for d in read_part(config, part, SkipCount())]


def test_a_dataset_that_changes(tmp_path: Path) -> None:
    folder = tmp_path / "rows"
    config = HuggingFaceDataConfig(path=str(folder))
    datasets.Dataset.from_dict({"text": ["a"] * 10}).save_to_disk(str(folder))
    parts = list_parts(config)
    shutil.rmtree(folder)
    datasets.Dataset.from_dict({"text": ["b"] * 5}).save_to_disk(str(folder))
    assert read(config)[0] == ["b"] * 5
    with pytest.raises(DataError, match="rows has changed while"):
        [d for part in parts for d in read_part(config, part, SkipCount())]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "sub").mkdir(mode=0)
    assert not unsaid(
        refusal(TextDataConfig(path=str(tmp_path))), "sub cannot be read", "Permission denied"
    )
