"""Every source is read, and every bad input is refused by name."""

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from llmtrain.config.groups.clean import CleanConfig
from llmtrain.config.groups.data import (
    CsvDataConfig,
    DataConfig,
    HuggingFaceDataConfig,
    JsonlDataConfig,
    ParquetDataConfig,
    ShakespeareDataConfig,
    SyntheticDataConfig,
    TextDataConfig,
)
from llmtrain.data.document import Document
from llmtrain.data.locate import check_source
from llmtrain.data.source import hash_source, iter_documents, list_parts
from llmtrain.errors import ConfigError
from tests.unit.data.conftest import refusal, unsaid


def read(config: DataConfig) -> list[Document]:
    check_source(config)
    return list(iter_documents(config))


def texts(config: DataConfig) -> list[str]:
    return [document.text for document in read(config)]


def test_names_that_say_how_bytes_are_read_count(tmp_path: Path) -> None:
    """Else what was made of the wrong reading would be found again under the right name."""
    raw = gzip.compress(b"some text in it")
    hashes = []
    for name in ("a.txt", "b.txt", "a.txt.gz"):
        folder = tmp_path / name.replace(".", "_")
        folder.mkdir()
        (folder / name).write_bytes(raw)
        hashes.append(hash_source(TextDataConfig(path=str(folder))))
    assert hashes[0] == hashes[1] != hashes[2]
    splits = []
    for name in ("train.jsonl", "test.jsonl"):
        folder = tmp_path / f"hub_{name}"
        folder.mkdir()
        (folder / name).write_text("{}")
        splits.append(hash_source(HuggingFaceDataConfig(path=str(folder))))
    assert splits[0] != splits[1]


def test_shakespeare_ships_with_the_package() -> None:
    documents = read(ShakespeareDataConfig())
    assert len(documents) == 42
    assert sum(len(d.text) for d in documents) > 5_000_000


def test_text_file_folder_and_glob(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / ".hidden").mkdir()
    for name in ("b.txt", "a.md", "sub/c.txt", "d.rst", ".hidden/e.txt"):
        (tmp_path / name).write_text(name)
    assert texts(TextDataConfig(path=str(tmp_path))) == ["a.md", "b.txt", "sub/c.txt"]
    assert texts(TextDataConfig(path=str(tmp_path / "d.rst"))) == ["d.rst"]
    assert texts(TextDataConfig(path=str(tmp_path / "**/*.txt"))) == ["b.txt", "sub/c.txt"]
    assert texts(TextDataConfig(path=str(tmp_path / "[ab].*"))) == ["a.md", "b.txt"]


def test_pages_are_read_where_they_become_text(tmp_path: Path) -> None:
    for name in ("a.html", "b.htm", "c.txt"):
        (tmp_path / name).write_text(f"<p>{name}</p>")
    (tmp_path / "d.md.gz").write_bytes(gzip.compress(b"d"))
    assert texts(TextDataConfig(path=str(tmp_path))) == ["<p>c.txt</p>", "d"]
    html = TextDataConfig(path=str(tmp_path), clean=CleanConfig(html=True))
    assert len(texts(html)) == 4


def test_a_pattern_picks_the_files_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / ".hidden").mkdir()
    for name in ("a.rst", "b.txt", "sub/c.rst", "sub/d.py", ".hidden/e.rst", ".f.rst"):
        (tmp_path / name).write_text(name)
    assert texts(TextDataConfig(path=str(tmp_path), pattern="*.rst")) == ["a.rst", "sub/c.rst"]
    assert texts(TextDataConfig(path=str(tmp_path), pattern="sub/*")) == ["sub/c.rst", "sub/d.py"]
    assert not unsaid(
        refusal(TextDataConfig(path=str(tmp_path), pattern="*.log"), cheap=True),
        "without *.log files",
    )


def test_links(tmp_path: Path) -> None:
    (tmp_path / "real.txt").write_text("text")
    (tmp_path / "a.txt").symlink_to(tmp_path / "real.txt")
    assert texts(TextDataConfig(path=str(tmp_path / "a.txt"))) == ["text"]
    (tmp_path / "real.txt").unlink()
    for path in (tmp_path, tmp_path / "a.txt", tmp_path / "*.txt"):
        assert not unsaid(
            refusal(TextDataConfig(path=str(path)), cheap=True),
            "a.txt is a link to",
            "does not exist",
        )


def test_a_pipe_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.txt")
    assert not unsaid(
        refusal(TextDataConfig(path=str(tmp_path / "a.txt")), cheap=True), "data.path=-"
    )
    with pytest.raises(ConfigError, match="save it to a file"):
        check_source(TextDataConfig(path="-"))


def test_a_name_with_brackets_is_a_file_before_it_is_a_glob(tmp_path: Path) -> None:
    (tmp_path / "[1].txt").write_text("one")
    assert texts(TextDataConfig(path=str(tmp_path / "[1].txt"))) == ["one"]


@pytest.mark.parametrize(
    "kind",
    [TextDataConfig, JsonlDataConfig, CsvDataConfig, ParquetDataConfig, HuggingFaceDataConfig],
)
def test_no_path_given(kind: type[DataConfig]) -> None:
    with pytest.raises(ConfigError, match=r"needs data\.path, such as data\.path="):
        check_source(kind())  # type: ignore[call-arg]


def test_missing_file(tmp_path: Path) -> None:
    (tmp_path / "shakespeare.txt").touch()
    config = TextDataConfig(path=str(tmp_path / "shakspeare.txt"))
    assert not unsaid(
        refusal(config, cheap=True), str(config.path), "Did you mean 'shakespeare.txt'"
    )
    config = TextDataConfig(path=str(tmp_path / "zzz"))
    assert not unsaid(refusal(config, cheap=True), "does not exist", "holds shakespeare.txt")
    config = TextDataConfig(path=str(tmp_path / "no" / "such.txt"))
    assert not unsaid(refusal(config, cheap=True), "folder is missing", str(tmp_path))


def test_nothing_matches(tmp_path: Path) -> None:
    config = TextDataConfig(path=str(tmp_path))
    (tmp_path / "sub").mkdir()
    assert not unsaid(
        refusal(config, cheap=True), "holds no files", "Put *.txt or *.md files into it"
    )
    (tmp_path / "a.pdf").touch()
    assert not unsaid(refusal(config, cheap=True), "a.pdf")
    jsonl, glob = JsonlDataConfig(path=str(tmp_path)), TextDataConfig(path=str(tmp_path / "*.txt"))
    assert not unsaid(refusal(jsonl, cheap=True), "without *.jsonl files", "data.pattern=")
    (tmp_path / "sub" / "a.html").touch()
    assert not unsaid(refusal(config, cheap=True), "data.clean.html=true")
    assert not unsaid(refusal(glob, cheap=True), "matches no file")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_no_permission(tmp_path: Path) -> None:
    (tmp_path / "a.txt").touch(mode=0)
    assert not unsaid(
        refusal(TextDataConfig(path=str(tmp_path)), cheap=True), "a.txt", "permissions"
    )


def test_not_utf8(tmp_path: Path) -> None:
    file = tmp_path / "latin1.txt"
    file.write_bytes("caf\u00e9 au lait, \ufffd".encode() + b" caf\xe9 \xff\xfe")
    document = read(TextDataConfig(path=str(file)))[0]
    assert document.text == "café au lait, \ufffd caf\ufffd \ufffd\ufffd"
    assert document.replaced == 3  # the one the file itself spells is not counted
    strict = TextDataConfig(path=str(file), errors="strict")
    assert not unsaid(
        refusal(strict), "latin1.txt", "0xe9", f"offset {len('café au lait, ?'.encode()) + 2 + 4}"
    )
    file.write_bytes(b"\xef\xbb\xbfab\xe9")
    assert not unsaid(refusal(strict), "0xe9 at offset 5")


def test_byte_order_mark_goes(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfhello")
    assert texts(TextDataConfig(path=str(tmp_path))) == ["hello"]


def test_binary_files(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"PK\x03\x04\x00")
    config = TextDataConfig(path=str(tmp_path))
    assert not unsaid(refusal(config), "NUL byte at offset 4", "a.txt")
    (tmp_path / "a.txt").write_text("hello", encoding="utf-16")
    assert not unsaid(refusal(config), "UTF-16", "a.txt")


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_jsonl(tmp_path: Path, suffix: str) -> None:
    rows = [{"body": "one"}, {"body": None}, {"body": "two\nlines é", "n": 1}]
    raw = b"\n".join(json.dumps(row).encode() + b"\n" for row in rows)
    name = f"a.jsonl{suffix}"
    pack: dict[str, Callable[[bytes], bytes]] = {
        "": bytes,
        ".gz": gzip.compress,
        ".zst": lambda raw: pyarrow.compress(raw, "zstd", asbytes=True),
    }
    (tmp_path / name).write_bytes(pack[suffix](raw))
    documents = read(JsonlDataConfig(path=str(tmp_path), text_key="body"))
    assert [d.text for d in documents] == ["one", "", "two\nlines é"]
    assert documents[2].id.endswith(f"{name}:5")


def test_jsonl_mistakes(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    config = JsonlDataConfig(path=str(file), errors="strict")
    file.write_text('{"text": "a"}\n\n{"text": \n')
    assert not unsaid(refusal(config), "a.jsonl:3", "not JSON")
    file.write_text('{"text": "a"}\n["text"]\n')
    assert not unsaid(refusal(config), "a.jsonl:2", "list", "object")
    file.write_text('{"txt": "a", "id": 1}\n')
    assert not unsaid(
        refusal(config), "a.jsonl:1", "'text'", "Did you mean 'txt'", "txt, id", "data.text_key"
    )
    file.write_text('{"text": ["a"]}\n')
    assert not unsaid(refusal(config), "a.jsonl:1", "holds list, not text")
    file.write_text("[" * 100_000)
    assert not unsaid(refusal(config), "a.jsonl:1", "not JSON")
    file.write_bytes(b'{"text": "a"}\n{"text": "\xff"}\n')
    assert read(JsonlDataConfig(path=str(file)))[1].replaced == 1
    assert not unsaid(refusal(config), "a.jsonl:2", "0xff at offset 24")


def test_jsonl_half_a_surrogate_pair(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "a\\ud83d\\ude00 b\\ud83d c"}\n')
    document = read(JsonlDataConfig(path=str(file)))[0]
    assert (document.text, document.replaced) == ("a\U0001f600 b\ufffd c", 1)
    assert not unsaid(
        refusal(JsonlDataConfig(path=str(file), errors="strict")), "a.jsonl:1", "surrogate"
    )


def test_parquet(tmp_path: Path) -> None:
    rows = {"text": ["one", None, "three"], "bytes": [b"a\xff", b"b", b"c"], "n": [1, 2, 3]}
    pyarrow.parquet.write_table(pyarrow.table(rows), tmp_path / "a.parquet")
    assert texts(ParquetDataConfig(path=str(tmp_path))) == ["one", "", "three"]
    assert texts(ParquetDataConfig(path=str(tmp_path), text_key="bytes"))[0] == "a\ufffd"
    assert not unsaid(
        refusal(ParquetDataConfig(path=str(tmp_path), text_key="n")),
        "'n' holds int64",
        "text, bytes",
    )
    missing = ParquetDataConfig(path=str(tmp_path), text_key="texts")
    assert not unsaid(
        refusal(missing), "a.parquet", "'texts'", "Did you mean 'text'", "text, bytes, n"
    )
    (tmp_path / "a.parquet").write_text("PAR1 not really")
    assert not unsaid(
        refusal(ParquetDataConfig(path=str(tmp_path))), "a.parquet", "not a Parquet file"
    )


def test_huggingface_folders(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_dict({"text": ["one", "two"], "label": [0, 1]})
    rows.save_to_disk(str(tmp_path / "plain"))
    datasets.DatasetDict({"train": rows, "test": rows.select([0])}).save_to_disk(
        str(tmp_path / "splits")
    )
    assert texts(HuggingFaceDataConfig(path=str(tmp_path / "plain"))) == ["one", "two"]
    split = HuggingFaceDataConfig(path=str(tmp_path / "splits"), split="test")
    assert texts(split) == ["one"]
    assert not unsaid(
        refusal(HuggingFaceDataConfig(path=str(tmp_path / "splits"), split="tests")),
        "data.split=tests",
        "Did you mean 'test'",
        "train, test",
    )
    assert not unsaid(
        refusal(HuggingFaceDataConfig(path=str(tmp_path / "plain"), text_key="body")),
        "text, label",
        "body",
    )
    assert not unsaid(
        refusal(HuggingFaceDataConfig(path=str(tmp_path / "plane")), cheap=True), "Did you mean"
    )
    (tmp_path / "a.txt").touch()
    assert not unsaid(
        refusal(HuggingFaceDataConfig(path=str(tmp_path / "a.txt")), cheap=True), "data=text"
    )


def test_huggingface_streamed(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "one"}\n{"text": null}\n{"text": "three"}\n')
    config = HuggingFaceDataConfig(path=str(tmp_path), streaming=True)
    documents = read(config)
    assert [d.text for d in documents] == ["one", "", "three"]
    assert [d.id for d in documents] == [f"{tmp_path}:{i}" for i in range(3)]
    assert len(list_parts(config)) == 1
    assert not unsaid(
        refusal(HuggingFaceDataConfig(path=str(tmp_path), streaming=True, text_key="txt")), "'text'"
    )
    with pytest.raises(ConfigError, match=r"leave data\.revision out"):
        check_source(HuggingFaceDataConfig(path=str(tmp_path), revision="main"))


def test_huggingface_hub_out_of_reach() -> None:
    code = (
        "from llmtrain.config.groups.data import HuggingFaceDataConfig as C\n"
        "from llmtrain.data.source import iter_documents\n"
        "list(iter_documents(C(path='nobody/no-such-data')))"
    )
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    last = done.stderr.strip().splitlines()[-1]
    assert "DataError: data.path=nobody/no-such-data cannot be loaded" in last
    assert "save_to_disk" in last


def test_synthetic_is_a_function_of_its_settings() -> None:
    config = SyntheticDataConfig(documents=5, words_per_document=200, vocabulary=50)
    first = texts(config)
    assert texts(config) == first
    assert (
        texts(SyntheticDataConfig(documents=3, words_per_document=200, vocabulary=50))
        == (first[:3])
    )
    assert len(set(first)) == 5
    words = [word for text in first for word in text.split()]
    assert len(words) == 1000
    assert len(set(words)) <= 50
    counts = sorted((words.count(w) for w in set(words)), reverse=True)
    assert counts[0] > 4 * counts[10]  # Zipf: the first has about 11 times the share
    other = SyntheticDataConfig(documents=5, words_per_document=200, vocabulary=50, seed=1)
    assert texts(other) != first
    with pytest.raises(ConfigError, match=r"data\.documents=0"):
        check_source(SyntheticDataConfig(documents=0))


def test_hash_is_of_content_not_of_names(tmp_path: Path) -> None:
    def at(name: str, *contents: str) -> str:
        (tmp_path / name).mkdir()
        for i, content in enumerate(contents):
            (tmp_path / name / f"{name}{i}.txt").write_text(content)
        return hash_source(TextDataConfig(path=str(tmp_path / name)))

    assert at("a", "one", "two") == at("b", "one", "two")
    assert at("c", "one", "twO") != hash_source(TextDataConfig(path=str(tmp_path / "a")))
    # Where one file ends counts too.
    assert at("d", "onet", "wo") != hash_source(TextDataConfig(path=str(tmp_path / "a")))


def test_checking_imports_nothing_heavy() -> None:
    code = (
        "import sys, llmtrain.data.locate\n"
        "print([m for m in ('torch', 'numpy', 'pyarrow', 'datasets') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_preparing_imports_no_torch() -> None:
    code = "import sys, llmtrain.data.prepare; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "False"
