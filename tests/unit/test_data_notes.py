"""What `train` says of data before it trains on it."""

import json
from pathlib import Path

from llmtrain.config.groups.data import DataConfig, JsonlDataConfig, TextDataConfig
from llmtrain.config.groups.tokenizer import ByteTokenizerConfig
from llmtrain.data.prepare import load_report, prepare
from llmtrain.tasks.report import data_notes


def notes_of(data: DataConfig) -> list[str]:
    return data_notes(load_report(prepare(data, ByteTokenizerConfig())), data)


def test_what_is_left_out_is_said(tmp_path: Path) -> None:
    lines = [json.dumps({"text": f"a line of text, number {n}, for training"}) for n in range(100)]
    file = tmp_path / "corpus.jsonl"
    file.write_text("\n".join([*lines, "{broken", '{"body": 1}']))
    (note,) = notes_of(JsonlDataConfig(path=str(file), cache_dir=str(tmp_path)))
    assert note.startswith("2 of 102 documents were left out. ")
    assert f"{file.name}:10" in note


def test_bytes_that_are_no_utf8_are_said(tmp_path: Path) -> None:
    for number in range(20):
        text = f"caf\xe9 number {number}\n" + "plain words " * 40
        (tmp_path / f"{number}.txt").write_bytes(text.encode("latin-1"))
    found = notes_of(TextDataConfig(path=str(tmp_path), cache_dir=str(tmp_path / "cache")))
    assert found == ["20 bytes that were no UTF-8 are U+FFFD now."]


def test_records_that_are_read_as_text_are_said(tmp_path: Path) -> None:
    file = tmp_path / "corpus.csv"
    file.write_text("text,label\n" + "some words,1\n" * 200)
    found = notes_of(TextDataConfig(path=str(file), cache_dir=str(tmp_path)))
    assert f"data.path={file} is read as plain text, markup and all: data=csv" in found[-1]
    plain = tmp_path / "corpus.txt"
    plain.write_text("words\n" * 1000)
    assert all("markup" not in note for note in notes_of(TextDataConfig(path=str(plain))))
