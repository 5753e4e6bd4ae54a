"""Labels of prompts are ignored and those of targets counted, in every kind of sample."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmtrain.config.groups.data import SAMPLES, TRUNCATE, JsonlDataConfig
from llmtrain.config.groups.mixture import MixedSource, MixtureDataConfig
from llmtrain.config.groups.tokenizer import ByteTokenizerConfig
from llmtrain.data.dataset import IGNORED, TokenDataset
from llmtrain.data.loader import Loader
from llmtrain.data.mixed import MixedDataset
from llmtrain.data.opening import open_dataset
from llmtrain.data.prepare import prepare
from llmtrain.errors import DataError

END = 256
"""The separator of the byte tokenizer."""

Pairs = list[tuple[str, str]]

Open = Callable[..., TokenDataset]


@contextmanager
def prepared(pairs: Pairs, **settings: Any) -> Iterator[Open]:
    """Give what opens the prepared `pairs`; the validation split has about one in ten."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        path.write_text("".join(json.dumps({"p": p, "t": t}) + "\n" for p, t in pairs))
        config = JsonlDataConfig(
            path=str(path), cache_dir=folder, prompt="{p}", target="{t}", val_ratio=0.1,
            dedup="none", **settings,
        )  # fmt: skip
        out = prepare(config, ByteTokenizerConfig())
        yield lambda split="train", truncate=TRUNCATE[0]: TokenDataset(out, split, None, truncate)


def documents(dataset: TokenDataset) -> list[tuple[list[int], int]]:
    """Return the ids of each document, and how many are its prompt, read with numpy alone."""
    found = []
    for path in sorted(dataset.folder.glob(f"{dataset.split}-*.bin")):
        tokens = np.fromfile(path, dtype="<u2").tolist()
        starts = np.fromfile(path.with_suffix(".idx"), dtype="<u8").astype(int)
        prompts = np.fromfile(path.with_suffix(".tgt"), dtype="<u4").tolist()
        for start, end, prompt in zip(starts, starts[1:], prompts, strict=False):
            found.append((tokens[start:end], prompt))
    return found


PAIRS = st.lists(
    st.tuples(st.text("abcé", min_size=1, max_size=40), st.text("xyzñ", min_size=1, max_size=12)),
    max_size=12,
)

TWO: Pairs = [("abc", "xyz"), ("b", "x")]
"""Different ones, so that there are two sides of a split."""


def test_masks_by_hand() -> None:
    pairs = [("ab", "x"), ("c", "yz"), ("abcd", "x")]
    with prepared(pairs, shard_mode="ordered") as opened:
        train = opened()
        whole = {tuple(ids): prompt for ids, prompt in documents(train)}
        known = {(*p.encode(), *t.encode(), END): len(p) for p, t in pairs}
        assert whole.items() <= known.items() and len(whole) == 2
        ids, prompt = documents(train)[0]
        inputs, labels, _ = train.fill([0], 8, "documents")
        pad = 8 - (len(ids) - 1)
        assert inputs[0].tolist() == [*ids[:-1], *[END] * pad]
        assert labels[0].tolist() == [
            *[IGNORED] * (prompt - 1), *ids[prompt:], *[IGNORED] * pad,
        ]  # fmt: skip
        # Windows of 3 begin in the middle of a prompt.
        stream = [i for ids, _ in documents(train) for i in ids]
        given = [n >= p for ids, p in documents(train) for n in range(len(ids))]
        for row in range(train.n_samples(3, "windows")):
            at = slice(row * 3 + 1, row * 3 + 4)
            expected = [i if c else IGNORED for i, c in zip(stream[at], given[at], strict=True)]
            assert train.fill([row], 3, "windows").labels[0].tolist() == expected


@pytest.mark.parametrize("samples", SAMPLES)
@settings(max_examples=15, deadline=None)
@given(pairs=PAIRS, seq_len=st.integers(1, 90), shard_tokens=st.integers(1, 200))
def test_what_is_counted_is_every_target_with_its_separator(
    samples: str, pairs: Pairs, seq_len: int, shard_tokens: int
) -> None:
    with prepared([*TWO, *pairs], shard_tokens=shard_tokens) as opened:
        for split in ("train", "validation"):
            dataset = opened(split)
            count = dataset.n_samples(seq_len, samples, drop_last=False)
            rows = dataset.fill(np.arange(count), seq_len, samples)
            targets = [ids[prompt:] for ids, prompt in documents(dataset)]
            counted = rows.labels != IGNORED
            if samples == "packed":
                # Rows have an order of their own, and pieces of one document may be in several.
                found = Counter(rows.labels[counted].tolist())
                assert found == Counter(i for target in targets for i in target)
                pieces = [
                    piece
                    for labels, within in zip(rows.labels, rows.document_positions, strict=True)
                    for piece in np.split(labels, np.flatnonzero(within[1:] == 0) + 1)
                ]
                whole = Counter(tuple(p[p != IGNORED]) for p in pieces if (p != IGNORED).any())
                short = [ids for ids, _ in documents(dataset) if len(ids) <= seq_len + 1]
                if len(short) == len(targets):
                    assert whole == Counter(map(tuple, targets))
            elif samples == "documents":
                assert count == len(targets)
                for labels, target in zip(rows.labels, targets, strict=True):
                    assert labels[labels != IGNORED].tolist() == target[:seq_len]
            else:
                expected = [i for target in targets for i in target]
                assert rows.labels[counted].tolist() == expected
                assert bytes(i for i in expected if i != END).decode()
            # What a prompt's label stands at is an input all the same.
            assert dataset.fill([count], seq_len, samples).labels.tolist() == [[IGNORED] * seq_len]


@pytest.mark.parametrize("truncate", TRUNCATE)
@settings(max_examples=20, deadline=None)
@given(
    pairs=st.lists(
        st.tuples(st.text("abc", max_size=20), st.text("xyz", min_size=1, max_size=12)),
        max_size=10,
    ),
    seq_len=st.integers(1, 30),
)  # fmt: skip
def test_long_documents_are_cut_as_asked(truncate: str, pairs: Pairs, seq_len: int) -> None:
    with prepared([*TWO, *pairs]) as opened:
        dataset = opened("train", truncate)
        expected = []
        for ids, prompt in documents(dataset):
            over = max(0, len(ids) - (seq_len + 1))
            skip = 0
            if truncate == "prompt_start":
                skip = min(over, max(0, prompt - 1))
            elif over and truncate == "drop":
                continue
            row, left = ids[skip : skip + seq_len + 1], prompt - skip
            labels = [i if n >= left else IGNORED for n, i in enumerate(row)][1:]
            if prompt and all(label == IGNORED for label in labels):
                assert truncate == "end"
                continue
            pad = seq_len - len(labels)
            expected.append(([*row[:-1], *[END] * pad], [*labels, *[IGNORED] * pad]))
        if not expected:
            with pytest.raises(DataError, match=f"data.truncate={truncate} leaves all"):
                dataset.n_samples(seq_len, "documents")
            return
        count = dataset.n_samples(seq_len, "documents")
        rows = dataset.fill(np.arange(count), seq_len, "documents")
        found = list(zip(rows.input_ids.tolist(), rows.labels.tolist(), strict=True))
        assert found == expected
        told = dataset.describe_cuts(seq_len, "documents")
        left_out = len(documents(dataset)) - count
        assert (f"{left_out} left out" in told) == (left_out > 0)
        assert dataset.mean_labels(seq_len, "documents") == pytest.approx(
            max(1, (rows.labels != IGNORED).sum()) / count
        )


@pytest.mark.parametrize("samples", SAMPLES)
@settings(max_examples=15, deadline=None)
@given(pairs=PAIRS, seq_len=st.integers(1, 40))
def test_mean_labels_are_those_that_are_counted(samples: str, pairs: Pairs, seq_len: int) -> None:
    with prepared([*TWO, *pairs]) as opened:
        dataset = opened()
        try:
            count = dataset.n_samples(seq_len, samples)
        except DataError:
            return
        labels = dataset.fill(np.arange(count), seq_len, samples).labels
        counted = int((labels != IGNORED).sum())
        assert dataset.mean_labels(seq_len, samples) == pytest.approx(max(1, counted) / count)
        assert f"{counted:,} of targets" in dataset.describe(seq_len, samples)


@pytest.mark.parametrize("samples", ["documents", "packed", "windows"])
def test_a_mixture_counts_targets_and_texts_alike(tmp_path: Path, samples: str) -> None:
    """Of the counted labels of an epoch each source has its weight, however long prompts are."""
    rows = [{"p": f"{i} " + "prompt " * (5 + i % 3), "t": f"answer {i:04d}"} for i in range(300)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    plain = [{"text": f"{i} " + "plain text " * (2 + i % 2)} for i in range(200)]
    (tmp_path / "b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in plain))
    config = MixtureDataConfig(
        cache_dir=str(tmp_path / "cache"),
        sources={
            "qa": MixedSource(
                kind="jsonl", path=str(tmp_path / "a.jsonl"), weight=0.5, prompt="{p}",
                target=" {t}",
            ),
            "text": MixedSource(kind="jsonl", path=str(tmp_path / "b.jsonl"), weight=0.5),
        },
    )  # fmt: skip
    folder = prepare(config, ByteTokenizerConfig())
    versions = {
        path.parent.name[:2]: json.loads(path.read_text())["version"]
        for path in (tmp_path / "cache").glob("*/manifest.json")
    }
    assert versions == {"qa": 2, "te": 1, "mi": 1}
    dataset = open_dataset(folder, "train")
    assert isinstance(dataset, MixedDataset)
    epoch = dataset.sampler(64, samples, 1).n_samples
    loader = Loader(
        dataset, seq_len=64, samples=samples, seed=1, global_batch_size=epoch,
        micro_batch_size=epoch, dp_rank=0, dp_size=1,
    )  # fmt: skip
    (batch,) = loader.load(0)
    labels = batch.labels.numpy()
    first = dataset.parts[0].n_samples(64, samples, drop_last=False)
    of_pairs = loader.sampler.sample(np.arange(epoch)) < first
    counted = (labels != IGNORED).sum(axis=1)
    assert batch.counted_tokens == counted.sum()
    assert counted[of_pairs].sum() / counted.sum() == pytest.approx(0.5, abs=0.01)
    assert not np.isin(labels[of_pairs], [ord("p"), ord("m")]).any()  # of "prompt"
    assert np.isin(labels[~of_pairs], [ord("p")]).any()  # of "plain"
