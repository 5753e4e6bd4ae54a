"""What is listed of a step is what a `Loader` gives, however the step is cut."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llmtrain.config import paths
from llmtrain.config.groups.data import JsonlDataConfig
from llmtrain.config.groups.mixture import MixedSource, MixtureDataConfig
from llmtrain.config.groups.tokenizer import ByteTokenizerConfig
from llmtrain.config.store import load_run_config
from llmtrain.data.dataset import IGNORED, TokenDataset
from llmtrain.data.inspection import Shown, inspect_folder
from llmtrain.data.loader import Loader
from llmtrain.data.mixture import prepared_sources
from llmtrain.data.opening import open_dataset
from llmtrain.data.prepare import prepare
from llmtrain.data.step_samples import StepSamples
from llmtrain.errors import ConfigError, DataError
from llmtrain.tasks.samples import list_samples
from tests.support.runs import tiny_run, train_frozen
from tests.unit.data.conftest import Prepare, many_texts

SEQ_LEN = 48
ROWS = 8


@pytest.fixture
def folder(prepare_texts: Prepare) -> Path:
    """Short and long documents, English and Chinese, in several shards."""
    texts = many_texts(20, words=3) | {f"{n}.md": "永和九年歲在癸丑" * n for n in range(1, 30)}
    return prepare_texts(texts, shard_tokens=2000)


def document(folder: Path, shard: str, number: int) -> np.ndarray:
    """Return the tokens of the document `number` of the split, which is in `shard`."""
    manifest = json.loads((folder / "manifest.json").read_text())
    shards = manifest["splits"]["train"]["shards"]
    names = [s["name"] for s in shards]
    number -= sum(s["documents"] for s in shards[: names.index(shard)])
    starts = np.fromfile(folder / f"{shard}.idx", dtype="<u8").astype(np.int64)
    tokens = np.fromfile(folder / f"{shard}.bin", dtype="<u2").astype(np.int64)
    return tokens[starts[number] : starts[number + 1]]


def row_of(folder: Path, spans: list[dict[str, Any]], samples: str) -> tuple[list[int], list[int]]:
    """Return the inputs and labels of a sample from the files alone, by what is told of it."""
    parts = [
        document(folder, s["shard"], s["document"])[s["start"] : s["end"]].tolist() for s in spans
    ]
    if samples == "packed":
        inputs = [id for part in parts for id in part[:-1]]
        labels = [id for part in parts for id in part[1:]]
    else:
        tokens = [id for part in parts for id in part]
        inputs, labels = tokens[:-1], tokens[1:]
        if samples == "masked_windows":
            labels = [
                IGNORED if i == 256 else label for i, label in zip(inputs, labels, strict=True)
            ]
        if samples == "documents" and len(tokens) <= SEQ_LEN:
            inputs, labels = tokens, [*labels, IGNORED]
    fill = SEQ_LEN - len(inputs)
    return inputs + [256] * fill, labels + [IGNORED] * fill


@pytest.mark.parametrize("samples", ["windows", "masked_windows", "documents", "packed"])
@pytest.mark.parametrize(("size", "micro"), [(1, 8), (2, 1), (4, 2)])
def test_equal_to_what_the_ranks_load(folder: Path, samples: str, size: int, micro: int) -> None:
    told = StepSamples(folder, SEQ_LEN, samples, seed=5)
    assert (folder / "train-00001.bin").exists()
    for first in (0, 3 * ROWS, told.n_samples - 5):  # the last goes over the end of an epoch
        rows = told.at(first, ROWS, tokens=10)
        loaded = []
        for rank in range(size):
            loader = Loader(
                TokenDataset(folder, "train"), seq_len=SEQ_LEN, samples=samples, seed=5,
                global_batch_size=ROWS, micro_batch_size=micro, dp_rank=rank, dp_size=size,
            )  # fmt: skip
            loaded += loader.load(first)
        inputs = torch.cat([batch.input_ids for batch in loaded]).tolist()
        labels = torch.cat([batch.labels for batch in loaded]).tolist()
        ids = torch.cat([batch.sample_ids for batch in loaded]).tolist()
        assert [row["position"] for row in rows] == ids
        assert [row["epoch"] for row in rows] == [p // told.n_samples for p in ids]
        for row, own_inputs, own_labels in zip(rows, inputs, labels, strict=True):
            assert row_of(folder, row["documents"], samples) == (own_inputs, own_labels)
            shown = [id for piece in row["text"] for id in piece["ids"]]
            # From the first whole character on; a row may begin in the middle of one.
            assert any(own_inputs[lead : lead + len(shown)] == shown for lead in range(4))
            assert "\ufffd" not in "".join(piece["text"] for piece in row["text"])


@pytest.mark.parametrize("truncate", ["prompt_start", "end", "drop"])
def test_pairs_are_cut_as_in_training(tmp_path: Path, truncate: str) -> None:
    rows = [{"a": "word " * (n % 12), "b": f"target {n} " * (n % 5 + 1)} for n in range(60)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = JsonlDataConfig(
        path=str(tmp_path / "rows.jsonl"), cache_dir=str(tmp_path / "cache"), prompt="{a}:",
        target="{b}", samples="documents", truncate=truncate,
    )  # fmt: skip
    folder = prepare(config, ByteTokenizerConfig())
    dataset = open_dataset(folder, "train", truncate=truncate)
    told = StepSamples(folder, SEQ_LEN, "documents", seed=5, truncate=truncate)
    assert told.n_samples == dataset.n_samples(SEQ_LEN, "documents")
    filled = dataset.fill(np.arange(told.n_samples), SEQ_LEN, "documents")
    rows_told = sorted(told.at(0, told.n_samples, 5), key=lambda row: row["sample"])
    starts = [row["documents"][0]["start"] for row in rows_told]
    assert any(starts) == (truncate == "prompt_start")
    for row, inputs, labels in zip(rows_told, *filled[:2], strict=True):
        own_inputs, own_labels = row_of(folder, row["documents"], "documents")
        assert own_inputs == inputs.tolist()
        counted = labels != IGNORED
        assert (np.array(own_labels)[counted] == labels[counted]).all()
    (example,) = inspect_folder(folder, Shown(1, 200))["splits"]["train"]["examples"]
    whole = "".join(piece["text"] for piece in example["start"]).encode()
    assert whole[: example["prompt_tokens"]].endswith(b":")


@pytest.mark.parametrize("samples", ["windows", "packed"])
def test_a_mixture_names_the_source(tmp_path: Path, samples: str) -> None:
    sources = {}
    for name, weight in (("one", 3.0), ("two", 1.0)):
        (tmp_path / f"{name}.jsonl").write_text(
            "\n".join(json.dumps({"text": f"{name} {text}"}) for text in many_texts(30).values())
        )
        path = str(tmp_path / f"{name}.jsonl")
        sources[name] = MixedSource(kind="jsonl", path=path, weight=weight)
    config = MixtureDataConfig(cache_dir=str(tmp_path / "cache"), sources=sources)
    folder = prepare(config, ByteTokenizerConfig())
    folders = {source.name: source.folder for source in prepared_sources(folder)}
    told = StepSamples(folder, SEQ_LEN, samples, seed=5)
    first = told.n_samples - 5
    loader = Loader(
        open_dataset(folder, "train"), seq_len=SEQ_LEN, samples=samples, seed=5,
        global_batch_size=40, micro_batch_size=40, dp_rank=0, dp_size=1,
    )  # fmt: skip
    (batch,) = loader.load(first)
    rows = told.at(first, 40, tokens=10)
    assert {row["source"] for row in rows} == {"one", "two"}
    for row, inputs, labels in zip(
        rows, batch.input_ids.tolist(), batch.labels.tolist(), strict=True
    ):
        assert row_of(folders[row["source"]], row["documents"], samples) == (inputs, labels)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    (tmp_path / "texts").mkdir()
    for name, text in many_texts(30).items():
        (tmp_path / "texts" / name).write_text(text)
    return tmp_path / "texts"


def overrides(corpus: Path, *more: str) -> tuple[str, ...]:
    cache = corpus.parent / "cache"
    return ("data=text", f"data.path={corpus}", f"data.cache_dir={cache}", "train.steps=6", *more)


def positions(run_dir: Path, steps: range) -> list[list[int]]:
    answer = list_samples(run_dir, steps, tokens=4)
    return [[row["position"] for row in step["samples"]] for step in answer["steps"]]


def test_a_run_that_has_not_begun(corpus: Path, tmp_path: Path) -> None:
    run_dir = tiny_run(tmp_path / "run", *overrides(corpus, "data.samples=packed"))
    answer = list_samples(run_dir, range(2, 4), tokens=4)
    run = load_run_config(run_dir / paths.CONFIG)
    assert [step["step"] for step in answer["steps"]] == [2, 3]
    own = StepSamples(Path(answer["folder"]), run.model.seq_len, "packed", run.train.seed)
    assert answer["steps"][0]["samples"] == own.at(8, 8, 4)
    assert answer["steps"][1]["samples"] == own.at(16, 8, 4)
    with pytest.raises(ConfigError, match="has 6 steps"):
        list_samples(run_dir, range(7, 8), tokens=4)


def test_a_run_keeps_the_data_it_was_trained_on(corpus: Path, tmp_path: Path) -> None:
    run_dir = tiny_run(tmp_path / "run", *overrides(corpus))
    before = list_samples(run_dir, range(1, 7), tokens=4)
    train_frozen(run_dir)
    (corpus / "000.txt").write_text("now it says something else, and more of it")
    assert list_samples(run_dir, range(1, 7), tokens=4) == before
    shutil.rmtree(before["folder"])
    assert list_samples(run_dir, range(1, 7), tokens=4)["folder"] != before["folder"]
    tokenizer = "tokenizer.separator='<sep>'"
    tiny_run(run_dir, *overrides(corpus, tokenizer))
    with pytest.raises(DataError, match="another tokenizer"):
        list_samples(run_dir, range(1, 2), tokens=4)


def test_a_run_resumed_with_another_batch(corpus: Path, tmp_path: Path) -> None:
    every = ("checkpoint.every_steps=2", "checkpoint.keep_last=9")
    run_dir = tiny_run(tmp_path / "run", *overrides(corpus, *every))
    train_frozen(run_dir, stop_after=4)
    tiny_run(run_dir, *overrides(corpus, *every, "train.global_batch_size=4"))
    train_frozen(run_dir, start=4)
    found = positions(run_dir, range(1, 7))
    assert found == [
        [*range(8)], [*range(8, 16)], [*range(16, 24)], [*range(24, 32)],
        [*range(32, 36)], [*range(36, 40)],
    ]  # fmt: skip
    for step in (2, 4):
        shutil.rmtree(run_dir / paths.CHECKPOINTS / f"step_{step:08d}")
    with pytest.raises(ConfigError, match="was changed between step 0 and step 6"):
        positions(run_dir, range(3, 4))


def test_no_list_belongs_to_a_step_where_replicas_ask_a_server(
    corpus: Path, tmp_path: Path
) -> None:
    more = ("sync=async_ps", "strategy=data", "strategy.dp_replicate=2")
    run_dir = tiny_run(tmp_path / "run", *overrides(corpus, *more), world_size=2)
    with pytest.raises(ConfigError, match="sync=async_ps"):
        list_samples(run_dir, range(1, 2), tokens=4)
