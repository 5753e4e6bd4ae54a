"""CSV and TSV are read as they were written, and bad tables are refused by name."""

import csv
import gzip
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmtrain.config.groups.data import CsvDataConfig
from llmtrain.data.skip import SkipCount
from llmtrain.data.source import hash_source, iter_documents
from llmtrain.errors import ConfigError
from tests.unit.data.conftest import refusal, unsaid


def texts(path: Path, **settings: object) -> list[str]:
    return [d.text for d in iter_documents(CsvDataConfig(path=str(path), **settings))]  # type: ignore[arg-type]


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(
        st.tuples(
            st.text(st.sampled_from('a",;\t\n\r é'), max_size=12), st.text("xyz", max_size=3)
        ),
        max_size=20,
    ),
    delimiter=st.sampled_from([",", ";", "\t"]),
    mark=st.booleans(),
)
def test_what_was_written_is_read(rows: list[tuple[str, str]], delimiter: str, mark: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "a.csv"
        lines = []
        with file.open("w", newline="", encoding="utf-8-sig" if mark else "utf-8") as stream:
            writer = csv.writer(stream, delimiter=delimiter)
            for row in [("text", "other"), *rows]:
                stream.flush()
                lines.append(1 + file.read_bytes().count(b"\n"))
                writer.writerow(row)
        read = list(iter_documents(CsvDataConfig(path=str(file), delimiter=delimiter)))
        assert [d.text for d in read] == [text for text, _ in rows]
        assert [d.id for d in read] == [f"{file}:{line}" for line in lines[1:]]


def test_names_say_what_is_between_columns(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("id\ttext\n1\tone, two\n")
    (tmp_path / "b.csv.gz").write_bytes(gzip.compress(b"text,id\nthree,1\n"))
    assert texts(tmp_path) == ["one, two", "three"]
    (tmp_path / "c.tsv.gz").write_bytes(gzip.compress(b"id\ttext\n1\tfour\n"))
    assert texts(tmp_path / "c.tsv.gz") == ["four"]
    assert texts(tmp_path / "a.tsv", delimiter="tab") == ["one, two"]
    # The same bytes under another name are other columns.
    (tmp_path / "a.csv").write_text("id\ttext\n1\tone, two\n")
    hashes = {hash_source(CsvDataConfig(path=str(tmp_path / f"a.{s}"))) for s in ("csv", "tsv")}
    assert len(hashes) == 2
    with pytest.raises(ConfigError, match=r"data\.delimiter"):
        CsvDataConfig(delimiter="::")


def test_wrong_columns(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("id,body\n1,one\n")
    assert not unsaid(
        refusal(CsvDataConfig(path=str(file))),
        "a.csv has no column 'text'",
        "It has: id, body",
        "data.text_key",
    )
    file.write_text("id;text\n1;one\n")
    assert not unsaid(refusal(CsvDataConfig(path=str(file))), "data.delimiter=';'")
    file.write_text("id\ttext\n1\tone\n")
    assert not unsaid(refusal(CsvDataConfig(path=str(file))), "data.delimiter=tab")
    file.write_text("")
    assert not unsaid(refusal(CsvDataConfig(path=str(file))), "a.csv is empty", "name the columns")
    file.write_bytes(b"PK\x03\x04\0\0\n")
    assert not unsaid(refusal(CsvDataConfig(path=str(file))), "not text", "NUL byte")
    file.write_text("text\n", encoding="utf-16")
    assert not unsaid(refusal(CsvDataConfig(path=str(file))), "UTF-16")


def test_rows_that_cannot_be_used_are_counted(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_bytes(b'id,text\n1,one\n2\n\n3,"thr\nee"\n4,a,b\n5,a\rb\n6,nul\0\n7,caf\xe9\n')
    skipped = SkipCount()
    documents = list(iter_documents(CsvDataConfig(path=str(file)), skipped))
    assert [d.text for d in documents] == ["one", "thr\nee", "caf\ufffd"]
    assert [d.replaced for d in documents] == [0, 0, 1]
    assert documents[1].id == f"{file}:5"
    assert skipped.reasons == {"number of columns": 2, "not CSV": 1, "not text": 1}
    assert all(str(file) in example.id for example in skipped.examples)
    assert not unsaid(
        refusal(CsvDataConfig(path=str(file), errors="strict")),
        "a.csv:3 has 1 columns, and the first line of the file 2",
    )


def test_a_quote_left_open(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text('id,text\n1,one\n2,"two\n' + "3,three\n" * 10)
    assert not unsaid(refusal(CsvDataConfig(path=str(file))), "a.csv:3", "not closed")
    file.write_text('id,text\n1,one\n2,"two\n' + "3,three\n" * 1000)
    assert not unsaid(
        refusal(CsvDataConfig(path=str(file), max_document_bytes=1024)),
        "a.csv:3",
        "quote",
        "data.max_document_bytes=1024",
    )
    file.write_text("id,text\n" + "3,three\n" * 1000)  # the limit is for one row
    assert len(texts(file, max_document_bytes=1024)) == 1000
    file.write_text('id,"text\n1,one\n')
    assert not unsaid(refusal(CsvDataConfig(path=str(file))), "a.csv:1", "not closed")
