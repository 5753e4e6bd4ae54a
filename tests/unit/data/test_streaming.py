"""A stream: every document once an epoch, the same samples from any step on, at any world size."""

import gzip
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llmtrain.config.groups.data import DataConfig, JsonlDataConfig
from llmtrain.config.groups.tokenizer import ByteTokenizerConfig
from llmtrain.config.plan import make_plan
from llmtrain.data import block, block_index, part, source_jsonl
from llmtrain.data.block import is_held_out
from llmtrain.data.dataset import IGNORED, TokenDataset
from llmtrain.data.dedup import content_digest
from llmtrain.data.loader import Batch, Loader
from llmtrain.data.stream_dataset import StreamDataset
from llmtrain.data.stream_folder import prepare_stream
from llmtrain.errors import ConfigError, DataError
from tests.support.runs import compose_run, tiny_run, train_frozen

SEQ_LEN = 32
ROWS = 8
SEPARATOR = 256

Source = Callable[..., DataConfig]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many parts and blocks of little text."""
    monkeypatch.setattr(part, "PART_BYTES", 1500)
    monkeypatch.setattr(source_jsonl, "PART_BYTES", 1500)
    monkeypatch.setattr(block, "BLOCK_TOKENS", 700)
    monkeypatch.setattr(block, "BATCH_DOCUMENTS", 3)


def make_texts() -> list[str]:
    """Return texts of which some stand twice, near each other and far apart."""
    rng = random.Random(4)
    texts = [f"{n} " + "word " * rng.randrange(1, 30) + "永和" for n in range(150)]
    for place in (20, 90, 140):
        texts.insert(place, texts[5])
        texts.insert(place + 3, texts[place - 2])
    return texts


@pytest.fixture
def source(tmp_path: Path) -> Source:
    """Return a function that gives a source of two files, one of them compressed."""
    lines = [json.dumps({"text": text}) for text in make_texts()]
    lines.insert(33, "{broken")
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "a.jsonl").write_text("\n".join(lines[:100]))
    (tmp_path / "rows" / "b.jsonl.gz").write_bytes(gzip.compress("\n".join(lines[100:]).encode()))

    def make(**settings: Any) -> DataConfig:
        known = {"path": str(tmp_path / "rows"), "cache_dir": str(tmp_path / "cache")}
        values: dict[str, Any] = known | {"mode": "streaming", "val_ratio": 0.1} | settings
        return JsonlDataConfig(**values)

    return make


def open_stream(data: DataConfig) -> StreamDataset:
    return StreamDataset(prepare_stream(data, ByteTokenizerConfig()), data)


def cleaned(data: DataConfig) -> list[str]:
    """Return the texts that a stream should have, each once where duplicates go."""
    texts = [text.strip() for text in make_texts()]
    return list(dict.fromkeys(texts)) if data.dedup == "exact" else texts


def held_out(text: str, data: DataConfig) -> bool:
    return is_held_out(content_digest(text.encode()), data)


def ids_of(texts: list[str]) -> list[int]:
    return [id for text in texts for id in (*text.encode(), SEPARATOR)]


@pytest.mark.parametrize("dedup", ["exact", "none"])
def test_epochs_are_the_documents_in_source_order(source: Source, dedup: str) -> None:
    data = source(dedup=dedup)
    epoch = ids_of([text for text in cleaned(data) if not held_out(text, data)])
    stream = open_stream(data)
    found = stream.tokens(0, 3 * len(epoch))
    assert found.tolist() == epoch * 3
    assert len(stream._index.blocks) > 5


def test_validation_is_what_is_held_out(source: Source) -> None:
    data = source()
    folder = prepare_stream(data, ByteTokenizerConfig())
    expected = [text for text in cleaned(data) if held_out(text, data)]
    validation = TokenDataset(folder, "validation")
    assert validation.tokens(0, 10**9).tolist() == ids_of(expected)
    assert 0.02 < len(expected) / 150 < 0.25
    assert prepare_stream(data, ByteTokenizerConfig()) == folder
    other = source(seed=data.seed + 1)
    assert prepare_stream(other, ByteTokenizerConfig()) != folder


@pytest.mark.parametrize("held", [7, 50, 1000])
def test_documents_are_shuffled_within_a_bound(source: Source, held: int) -> None:
    data = source(shuffle_documents=held)
    texts = [text for text in cleaned(data) if not held_out(text, data)]
    length = len(ids_of(texts))
    stream = open_stream(data)
    orders = []
    for epoch in range(2):
        tokens = stream.tokens(epoch * length, (epoch + 1) * length)
        ends = np.flatnonzero(tokens == SEPARATOR)
        documents = np.split(tokens, ends + 1)[:-1]
        found = [bytes(ids[:-1].tolist()).decode() for ids in documents]
        assert sorted(found) == sorted(texts)
        orders.append([texts.index(text) for text in found])
    assert orders[0] != orders[1]
    for order in orders:
        assert order != sorted(order)
        assert all(abs(new - old) < held for new, old in enumerate(order))
    assert np.array_equal(open_stream(data).tokens(0, 99), stream.tokens(0, 99))


def loaders(data: DataConfig, size: int, micro: int, samples: str = "windows") -> list[Loader]:
    return [
        Loader(
            open_stream(data), seq_len=SEQ_LEN, samples=samples, seed=1, global_batch_size=ROWS,
            micro_batch_size=micro, dp_rank=rank, dp_size=size,
        )
        for rank in range(size)
    ]  # fmt: skip


def rows_of(batches: list[Batch]) -> torch.Tensor:
    return torch.cat([torch.cat([b.input_ids, b.labels], dim=1) for b in batches])


@pytest.mark.parametrize("shuffle", [0, 10])
@pytest.mark.parametrize(("size", "micro"), [(1, 2), (2, 4), (4, 1)])
def test_a_step_is_the_same_at_any_world_size(
    source: Source, size: int, micro: int, shuffle: int
) -> None:
    data = source(shuffle_documents=shuffle)
    (whole,) = loaders(data, 1, ROWS)
    ranks = loaders(data, size, micro)
    for step in range(120):  # over several epochs
        first = step * ROWS
        parts = [batch for loader in ranks for batch in loader.load(first)]
        assert torch.equal(rows_of(parts), rows_of(whole.load(first)))


@pytest.mark.parametrize("shuffle", [0, 10])
@pytest.mark.parametrize("is_noted", [True, False])
def test_resume_at_any_step(source: Source, tmp_path: Path, shuffle: int, is_noted: bool) -> None:
    """With what was noted, and without."""
    data = source(shuffle_documents=shuffle)
    (whole,) = loaders(data, 1, ROWS)
    steps = [rows_of(whole.load(step * ROWS)) for step in range(90)]
    whole.dataset._pool.shutdown()
    for start in (89, 3, 40, 61):
        if not is_noted:
            for path in (tmp_path / "cache").glob("*.blocks/*"):
                path.unlink()
        (again,) = loaders(data, 1, ROWS)
        with again:
            again.start(start * ROWS)
            for step in range(start, min(start + 4, 90)):
                assert torch.equal(rows_of(again.next()), steps[step])
        again.dataset._pool.shutdown()


def test_resume_reads_no_more_than_it_needs(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = source()
    stream = open_stream(data)
    stream.tokens(0, 12_000)
    last = len(stream._index.blocks) - 2
    place = stream._index.blocks[last].first + 5
    expected = stream.tokens(place, place + 20)
    read: list[int] = []
    original = StreamDataset._read
    monkeypatch.setattr(
        StreamDataset, "_read", lambda self, key: read.append(key[1]) or original(self, key)
    )
    again = open_stream(data)
    assert np.array_equal(again.tokens(place, place + 20), expected)
    again._pool.shutdown()
    assert last > 5 and read == [last, last + 1]


def test_only_so_many_documents_are_remembered(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A duplicate that is further behind stays, whether read on or read from the middle."""
    for module in (block, block_index):
        monkeypatch.setattr(module, "REMEMBERED", 10)
    data = source()
    kept: list[str] = []
    for text in map(str.strip, make_texts()):
        if not held_out(text, data) and text not in kept[-10:]:
            kept.append(text)
    assert len(kept) > len(set(kept))
    epoch = ids_of(kept)
    stream = open_stream(data)
    assert stream.tokens(0, 2 * len(epoch)).tolist() == epoch * 2
    for place in [noted.first for noted in stream._index.blocks[1:-1]]:
        again = open_stream(data).tokens(place, place + 900)
        assert again.tolist() == (epoch * 2)[place : place + 900]


def test_masked_windows(source: Source) -> None:
    data = source()
    rows = open_stream(data).fill(np.arange(40), SEQ_LEN, "masked_windows")
    plain = open_stream(data).fill(np.arange(40), SEQ_LEN)
    assert np.array_equal(rows.input_ids, plain.input_ids)
    ends = rows.input_ids == SEPARATOR
    assert (rows.labels[ends] == IGNORED).all()
    assert np.array_equal(rows.labels[~ends], plain.labels[~ends])
    assert rows.document_positions is not None
    assert (rows.document_positions[:, 1:][ends[:, :-1]] == 0).all()


def test_a_torn_note_is_made_again(source: Source, tmp_path: Path) -> None:
    data = source()
    stream = open_stream(data)
    expected = stream.tokens(0, 8000)
    stream._pool.shutdown()
    notes = sorted((tmp_path / "cache").glob("*.blocks/*"))
    notes[2].write_bytes(notes[2].read_bytes()[:-7] + b"torn   ")
    assert np.array_equal(open_stream(data).tokens(0, 8000), expected)


def test_a_source_that_changes_is_refused(source: Source, tmp_path: Path) -> None:
    data = source()
    stream = open_stream(data)
    stream.tokens(0, 100)
    file = tmp_path / "rows" / "b.jsonl.gz"
    file.write_bytes(gzip.compress(b'{"text": "another"}'))
    with pytest.raises(DataError, match="has changed"):
        stream.tokens(0, 50_000)
    # A new start takes it as it is now.
    assert open_stream(data)._folder != stream._folder


def test_nothing_for_one_side_is_refused(source: Source, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing for validation: of 150 documents"):
        prepare_stream(source(val_ratio=1e-9), ByteTokenizerConfig())
    with pytest.raises(DataError, match="nothing for training"):
        prepare_stream(source(val_ratio=1 - 1e-9), ByteTokenizerConfig())
    assert not list((tmp_path / "cache").glob("*stream*"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["data.dedup=near"], "data.dedup=exact"),
        (["data.samples=packed"], "data.samples=masked_windows"),
        (["data.samples=documents"], "data.samples=masked_windows"),
        (["tokenizer=bpe"], "tokenizer=byte, or tokenizer=pretrained"),
        (["train.steps=null", "train.epochs=1"], "train.steps or train.tokens"),
        (["data=jsonl", "data.path=x.jsonl", "data.target='{a}'"], "set data.text_key"),
        (["data=mixture", "data.mode=streaming"], "reads one source"),
        (["data.mode=prepared", "data.shuffle_documents=5"], "is for data.mode=streaming"),
    ],
)
def test_refused_before_anything_starts(words: list[str], said: str) -> None:
    given = ["data=synthetic", "tokenizer=byte", "data.mode=streaming", *words]
    last = {word.partition("=")[0]: word for word in given}
    with pytest.raises(Exception) as refusal:
        make_plan(compose_run(*last.values()), gpus=0)
    assert said in str(refusal.value)


def test_a_run_that_is_resumed_is_the_run(tmp_path: Path) -> None:
    words = (
        "data=synthetic", "data.documents=60", "data.words_per_document=60", "data.mode=streaming",
        f"data.cache_dir={tmp_path / 'cache'}", "train.steps=8", "data.shuffle_documents=9",
    )  # fmt: skip
    whole = train_frozen(tiny_run(tmp_path / "whole", *words))
    resumed = tiny_run(tmp_path / "resumed", *words)
    train_frozen(resumed, stop_after=5)
    weights = train_frozen(resumed, start=5)
    assert all(torch.equal(weights[name], whole[name]) for name in whole)


def test_samples_of_a_stream_are_not_numbered(tmp_path: Path) -> None:
    from llmtrain.tasks.samples import list_samples

    run_dir = tiny_run(tmp_path / "run", "data=synthetic", "data.mode=streaming", "train.steps=8")
    with pytest.raises(ConfigError, match=r"data\.mode=prepared"):
        list_samples(run_dir, range(1, 2), 4)
