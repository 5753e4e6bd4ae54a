"""Parts: read one by one, by any process, they are the whole source."""

import gzip
import json
import pickle
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmtrain.config.groups.data import (
    DataConfig,
    HuggingFaceDataConfig,
    JsonlDataConfig,
    ParquetDataConfig,
    ShakespeareDataConfig,
    SyntheticDataConfig,
    TextDataConfig,
)
from llmtrain.data import columnar, part, source_jsonl
from llmtrain.data.document import Document
from llmtrain.data.skip import SkipCount
from llmtrain.data.source import iter_documents, list_parts, read_part


@contextmanager
def parts_of(size: int) -> Iterator[None]:
    """Cut sources into parts of `size` bytes: real parts are megabytes."""
    with (
        mock.patch.object(part, "PART_BYTES", size),
        mock.patch.object(source_jsonl, "PART_BYTES", size),
        mock.patch.object(columnar, "PART_BYTES", size),
    ):
        yield


def read_apart(config: DataConfig) -> list[Document]:
    """Read every part on its own, the last one first, from what another process would be sent."""
    parts = list_parts(config)
    assert [p.number for p in parts] == list(range(len(parts)))
    sent = pickle.loads(pickle.dumps(parts))
    assert sent == parts == list_parts(config)
    read = {p.number: list(read_part(config, p, SkipCount())) for p in reversed(sent)}
    return [document for number in sorted(read) for document in read[number]]


@settings(max_examples=100, deadline=None)
@given(
    lines=st.lists(st.sampled_from(["", "x", "é€\U0001f600", "long " * 20, "\r", "\u2028"])),
    ending=st.sampled_from(["\n", "\r\n"]),
    mark=st.booleans(),
    last=st.booleans(),
    size=st.integers(min_value=1, max_value=200),
)
def test_parts_of_json_lines_are_the_whole_file(
    lines: list[str], ending: str, mark: bool, last: bool, size: int
) -> None:
    rows = ["" if line == "" else json.dumps({"text": line}, ensure_ascii=False) for line in lines]
    text = ending.join(rows) + (ending if last else "")
    raw = (b"\xef\xbb\xbf" if mark else b"") + text.encode()
    with tempfile.TemporaryDirectory() as folder, parts_of(size):
        file = Path(folder) / "a.jsonl"
        file.write_bytes(raw)
        config = JsonlDataConfig(path=str(file))
        documents = read_apart(config)
        assert documents == list(iter_documents(config))
        expected = [(f"{file}:{n}", line) for n, line in enumerate(lines, start=1) if line]
        assert [(d.id, d.text) for d in documents] == expected
        if len(raw) > 3 * size:
            assert len(list_parts(config)) >= 3


@settings(max_examples=60, deadline=None)
@given(
    pieces=st.lists(
        st.sampled_from(["\n", "a line\n", "é€\U0001f600", "word " * 100, "\U0001f600" * 90]),
        max_size=40,
    ),
    times=st.integers(min_value=1, max_value=4),
    limit=st.integers(min_value=1024, max_value=1500),
)
def test_a_long_text_is_cut_into_all_of_itself(pieces: list[str], times: int, limit: int) -> None:
    text = "".join(pieces) * times
    with tempfile.TemporaryDirectory() as folder, parts_of(2000):
        file, packed = Path(folder) / "a.txt", Path(folder) / "b.txt.gz"
        file.write_text(text, newline="")
        packed.write_bytes(gzip.compress(text.encode()))
        config = TextDataConfig(path=str(file), max_document_bytes=limit, errors="strict")
        documents = read_apart(config)
        assert "".join(d.text for d in documents) == text
        assert all(0 < len(d.text.encode()) < 2 * limit for d in documents) or text == ""
        offset = 0
        for document in documents:
            one = len(text.encode()) <= limit
            assert document.id == (str(file) if one else f"{file}:{offset}")
            offset += len(document.text.encode())
        # The same bytes, compressed, make the same documents.
        config = TextDataConfig(path=str(packed), max_document_bytes=limit, errors="strict")
        assert [d.text for d in read_apart(config)] == [d.text for d in documents]
        assert [d.id for d in read_apart(config)] == [
            d.id.replace(str(file), str(packed)) for d in documents
        ]


def test_a_long_text_is_cut_at_lines(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("".join(f"line {i}\n" for i in range(1000)))
    documents = read_apart(TextDataConfig(path=str(tmp_path), max_document_bytes=2000))
    assert len(documents) == 5
    assert all(d.text.startswith("line ") and d.text.endswith("\n") for d in documents)


def test_small_files_share_a_part(tmp_path: Path) -> None:
    for i in range(100):
        (tmp_path / f"{i:03d}.txt").write_text("x" * 100)
    with parts_of(1000):
        config = TextDataConfig(path=str(tmp_path))
        parts = list_parts(config)
        assert [len(p.spans) for p in parts] == [10] * 10
        assert sum(p.bytes for p in parts) == 10_000
        assert read_apart(config) == list(iter_documents(config))
    assert len(list_parts(TextDataConfig(path=str(tmp_path)))) == 1


@pytest.mark.parametrize("size", [1, 3000, 1 << 20])
def test_parts_of_other_sources_are_the_whole(tmp_path: Path, size: int) -> None:
    rows = {"n": list(range(500)), "text": [f"row {i} " * (i % 7) for i in range(500)]}
    table = pyarrow.table(rows)
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=30)
    datasets.Dataset.from_dict(rows).save_to_disk(str(tmp_path / "rows"))
    sources = {
        "parquet": ParquetDataConfig(path=str(tmp_path / "a.parquet")),
        "huggingface": HuggingFaceDataConfig(path=str(tmp_path / "rows")),
    }
    for config in sources.values():
        with parts_of(size):
            documents = read_apart(config)
            assert (len(list_parts(config)) > 3) == (size < 1 << 20)
        assert [d.text for d in documents] == rows["text"]
        assert [d.id for d in documents] == [f"{config.path}:{i}" for i in range(500)]
    synthetic = SyntheticDataConfig(documents=20, words_per_document=100)
    with parts_of(size):
        assert read_apart(synthetic) == list(iter_documents(synthetic))
    assert read_apart(ShakespeareDataConfig()) == list(iter_documents(ShakespeareDataConfig()))
