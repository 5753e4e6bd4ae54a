"""From files to shards: the cache, the report, the format, and what is refused."""

import json
import multiprocessing
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmtrain.config.groups.data import SyntheticDataConfig, TextDataConfig
from llmtrain.config.groups.tokenizer import (
    BPETokenizerConfig,
    ByteTokenizerConfig,
    CharTokenizerConfig,
    PretrainedTokenizerConfig,
)
from llmtrain.data import manifest
from llmtrain.data.cache import cache_root
from llmtrain.data.corpus import Corpus, CorpusWriter
from llmtrain.data.dataset import TokenDataset
from llmtrain.data.encode import encode_documents
from llmtrain.data.manifest import dtype_for
from llmtrain.data.prepare import load_report, prepare
from llmtrain.errors import DataError
from llmtrain.tokenizer.base import TokenIds
from llmtrain.tokenizer.byte import ByteTokenizer
from tests.unit.data.conftest import Prepare, many_texts

TEXTS = many_texts(40)


def documents(folder: Path, split: str = "train") -> list[str]:
    """Return the documents of a split in written order, decoded."""
    data = TokenDataset(folder, split)
    tokens = data.tokens(0, data.n_tokens)
    ends = np.flatnonzero(tokens == data.separator_id)
    assert len(ends) == data.n_documents
    starts = [0, *(ends[:-1] + 1)]
    tokenizer = data.tokenizer()
    return [tokenizer.decode(tokens[a:b]) for a, b in zip(starts, ends, strict=True)]


@pytest.mark.parametrize(
    "tokenizer", [ByteTokenizerConfig(), CharTokenizerConfig(), BPETokenizerConfig(vocab_size=300)]
)
@pytest.mark.parametrize("mode", ["random", "ordered", "hash"])
def test_every_document_comes_back(prepare_texts: Prepare, tokenizer: Any, mode: str) -> None:
    texts = TEXTS | {"z.txt": "naïve 世界 🎉 <|endoftext|> looks special\n"}
    folder = prepare_texts(texts, tokenizer, shard_mode=mode, shard_tokens=1500)
    assert len(list(folder.glob("train-*.bin"))) > 1
    found = documents(folder) + documents(folder, "validation")
    assert sorted(found) == sorted(text.strip() for text in texts.values())
    if mode == "ordered":
        kept = set(documents(folder))
        assert documents(folder) == [t.strip() for t in texts.values() if t.strip() in kept]


def test_report(prepare_texts: Prepare) -> None:
    texts = {**TEXTS, "same.txt": TEXTS["000.txt"], "none.txt": " \n", "odd.txt": b"odd \xff text"}
    folder = prepare_texts(texts)
    report = load_report(folder)
    count = report["documents"]
    assert (count["read"], count["duplicates"], count["kept"]) == (43, 1, 41)
    assert count["train"] + count["validation"] == 41
    assert report["replaced"] == 1
    assert report["clean"]["min_chars"]["documents"] == 1
    assert report["clean"]["whitespace"]["documents"] == 42  # the 41 with a last newline, " \n"
    assert report["vocab_size"] == 257
    assert report["bytes_per_token"] == 1.0
    fit = report["tokenizer_report"]
    assert fit["documents"] == 41 and fit["tokens"] == sum(report["bytes"].values())
    for split in ("train", "validation"):
        assert report["tokens"][split] == report["bytes"][split] + count[split]
        assert TokenDataset(folder, split).n_tokens == report["tokens"][split]


def test_one_document_is_split_and_said_so(prepare_texts: Prepare) -> None:
    text = "".join(f"line {i}\n" for i in range(200))
    folder = prepare_texts({"a.txt": text})
    assert "one document only" in load_report(folder)["note"]
    assert documents(folder)[0] + documents(folder, "validation")[0] == text.strip()


def test_the_cache_is_used_and_keyed_by_content(prepare_texts: Prepare, tmp_path: Path) -> None:
    first = prepare_texts(TEXTS)
    stamp = (first / "manifest.json").stat().st_mtime_ns
    assert prepare_texts(TEXTS) == first
    assert (first / "manifest.json").stat().st_mtime_ns == stamp
    assert prepare_texts(TEXTS, folder="elsewhere") == first  # where files lie does not matter
    others = [
        prepare_texts(TEXTS, seed=2),
        prepare_texts(TEXTS, CharTokenizerConfig()),
        prepare_texts(TEXTS, ByteTokenizerConfig(separator="<eos>")),
        prepare_texts(TEXTS, dedup="none"),
        prepare_texts(TEXTS | {"000.txt": "changed"}),
    ]
    assert len({first, *others}) == 6
    assert prepare_texts(TEXTS, samples="documents") == first  # read differently, not written
    assert first.parent == tmp_path / "cache"
    assert first.name.startswith("text-")
    assert not list((tmp_path / "cache").glob("*tmp*"))


def test_a_pretrained_tokenizer_counts_by_content(prepare_texts: Prepare, tmp_path: Path) -> None:
    made = prepare_texts(TEXTS, BPETokenizerConfig(vocab_size=300))
    paths = [tmp_path / "one.json", tmp_path / "two.json"]
    for path in paths:
        shutil.copy(made / "tokenizer.json", path)
    configs = [PretrainedTokenizerConfig(path=str(path)) for path in paths]
    one, two = (prepare_texts(TEXTS, config) for config in configs)
    assert one == two != made
    assert documents(one) == documents(made)


def test_the_order_of_files_changes_nothing(prepare_texts: Prepare) -> None:
    renamed = {f"{99 - i:03d}.txt": text for i, text in enumerate(TEXTS.values())}
    for mode in ("random", "hash"):
        one = prepare_texts(TEXTS, shard_mode=mode, shard_tokens=1500)
        two = prepare_texts(renamed, shard_mode=mode, shard_tokens=1500, folder="renamed")
        assert one != two  # prepared anew, and yet the same
        for file in sorted(p.name for p in one.glob("*-*.*")):
            assert (one / file).read_bytes() == (two / file).read_bytes()


def test_hash_mode_keeps_a_text_in_its_shard(prepare_texts: Prepare) -> None:
    def shards(texts: dict[str, str], folder: str) -> dict[str, int]:
        path = prepare_texts(texts, shard_mode="hash", shard_tokens=3000, folder=folder)
        content = json.loads((path / "manifest.json").read_text())["splits"]["train"]["shards"]
        assert len(content) == 4
        names = [s["name"] for s in content for _ in range(s["documents"])]
        return dict(zip(documents(path), [int(n[-1]) for n in names], strict=True))

    before = shards(TEXTS, "before")
    after = shards({f"x{k}": v for k, v in TEXTS.items()} | {"a.txt": "a new text"}, "after")
    assert len(set(before.values())) == 4
    both = before.keys() & after.keys()
    assert len(both) > 30
    assert all(before[text] == after[text] for text in both)


def test_the_files_are_what_the_format_says(prepare_texts: Prepare) -> None:
    folder = prepare_texts({"a.txt": "abc", "b.txt": "de"}, shard_mode="ordered", val_ratio=0.4)
    content = json.loads((folder / "manifest.json").read_text())
    assert (content["format"], content["version"]) == ("llmtrain-tokens", 1)
    assert content["dtype"] == "uint16"
    held = documents(folder, "validation")[0]
    raw = np.fromfile(folder / "validation-00000.bin", dtype="<u2")
    assert raw.tolist() == [*held.encode(), 256]
    offsets = np.fromfile(folder / "validation-00000.idx", dtype="<u8")
    assert offsets.tolist() == [0, len(raw)]


def test_tokens_take_two_or_four_bytes() -> None:
    assert dtype_for(65536).str == "<u2"
    assert dtype_for(65537).str == "<u4"
    with pytest.raises(DataError, match="32 bits"):
        dtype_for(2**32 + 1)


class WideTokenizer(ByteTokenizer):
    """Says that its ids are others than they are."""

    vocab_size = 70_000
    separator_id = 69_999
    shift = 0

    def encode_batch(self, texts: Sequence[str]) -> list[TokenIds]:
        return [ids + self.shift for ids in super().encode_batch(texts)]


def test_ids_outside_the_vocabulary_are_refused(tmp_path: Path) -> None:
    writer = CorpusWriter()
    writer.add("abc")
    writer.record().save(tmp_path / "corpus")
    corpus = Corpus([tmp_path / "corpus"])
    tokenizer = WideTokenizer("<|end|>")
    record = encode_documents(corpus, np.array([0]), tokenizer, bool)
    assert record.arrays["tokens"].dtype == np.uint32
    assert record.arrays["tokens"].tolist() == [97, 98, 99, 69_999]
    for wrong in (70_000, -98):
        tokenizer.shift = wrong
        with pytest.raises(DataError, match="vocabulary has 70000"):
            encode_documents(corpus, np.array([0]), tokenizer, bool)


@pytest.mark.parametrize("name", ["train-00000.bin", "train-00000.idx", "tokenizer.json"])
def test_one_flipped_byte_is_found(prepare_texts: Prepare, name: str) -> None:
    folder = prepare_texts(TEXTS)
    raw = bytearray((folder / name).read_bytes())
    raw[len(raw) // 2] ^= 1
    (folder / name).write_bytes(raw)
    message = f"{name} is corrupt.*Delete the folder {folder}"
    with pytest.raises(DataError, match=message):
        TokenDataset(folder, "train")
    with pytest.raises(DataError, match=message):
        prepare_texts(TEXTS)
    shutil.rmtree(folder)
    assert prepare_texts(TEXTS) == folder
    TokenDataset(folder, "train")


def test_big_folders_are_checked_by_size(
    prepare_texts: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = prepare_texts(TEXTS)
    monkeypatch.setattr(manifest, "HASH_LIMIT_BYTES", 10)
    path = folder / "train-00000.bin"
    raw = bytearray(path.read_bytes())
    raw[5] ^= 1
    path.write_bytes(raw)
    TokenDataset(folder, "train")
    with pytest.raises(DataError, match="corrupt"):
        TokenDataset(folder, "train", verify=True)
    path.write_bytes(raw[:-2])
    with pytest.raises(DataError, match=r"train-00000\.bin is corrupt: .* bytes"):
        TokenDataset(folder, "train", verify=False)
    path.unlink()
    with pytest.raises(DataError, match=r"train-00000\.bin is missing"):
        TokenDataset(folder, "train")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 3}, "version 3.*upgrade"),
        ({"format": "other"}, "format is other"),
        ({"tokenizer": {}}, "cannot be read"),
        ({"dtype": "uint8"}, "257 ids does not fit into dtype uint8"),
    ],
)
def test_manifests_that_are_refused(
    prepare_texts: Prepare, change: dict[str, Any], message: str
) -> None:
    folder = prepare_texts(TEXTS)
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(DataError, match=message):
        TokenDataset(folder, "train")


def test_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no manifest\.json"):
        TokenDataset(tmp_path, "train")
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(DataError, match=r"manifest\.json cannot be read"):
        TokenDataset(tmp_path, "train")
    with pytest.raises(DataError, match=r"report\.json"):
        load_report(tmp_path)


def test_nothing_to_prepare(prepare_texts: Prepare, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none of 2 documents .* data\.clean\.min_chars=1"):
        prepare_texts({"a.txt": "", "b.txt": " \n"})
    with pytest.raises(DataError, match="one character"):
        prepare_texts({"a.txt": "x"}, folder="short")
    assert not [p for p in (tmp_path / "cache").iterdir() if p.is_dir()]  # nothing is left behind


def test_cache_that_cannot_be_written(prepare_texts: Prepare, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"Prepared data cannot be kept in .*data\.cache_dir"):
        prepare_texts(TEXTS, cache_dir=str(tmp_path / "file" / "cache"))


def test_where_the_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("LLMTRAIN_CACHE", raising=False)
    assert cache_root(SyntheticDataConfig()) == tmp_path / "home" / ".cache" / "llmtrain"
    monkeypatch.setenv("LLMTRAIN_CACHE", str(tmp_path / "variable"))
    assert cache_root(SyntheticDataConfig()) == tmp_path / "variable"
    own = SyntheticDataConfig(cache_dir=str(tmp_path / "own"))
    assert cache_root(own) == tmp_path / "own"


def _prepare_in_process(config: TextDataConfig, go: Any, out: Any) -> None:
    go.wait()
    folder = prepare(config, BPETokenizerConfig(vocab_size=400))
    out.put((str(folder), folder.stat().st_ino))


def test_two_preparers_at_once_make_one_folder(tmp_path: Path) -> None:
    for name, text in TEXTS.items():
        (tmp_path / name).write_text(text * 20)
    config = TextDataConfig(path=str(tmp_path), cache_dir=str(tmp_path / "cache"))
    context = multiprocessing.get_context("spawn")
    go, out = context.Event(), context.Queue()
    processes = [
        context.Process(target=_prepare_in_process, args=(config, go, out)) for _ in range(3)
    ]
    for process in processes:
        process.start()
    go.set()
    results = {out.get(timeout=60) for _ in processes}
    for process in processes:
        process.join()
    assert len(results) == 1
    assert [p.exitcode for p in processes] == [0, 0, 0]
    assert len([p for p in (tmp_path / "cache").iterdir() if p.is_dir()]) == 1
