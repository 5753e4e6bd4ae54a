"""Mixtures: exact shares of an epoch, no text twice, old sources left alone."""

import json
import random
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from llmtrain.commands.compose import composer
from llmtrain.config.groups.clean import CleanConfig
from llmtrain.config.groups.mixture import MixedSource, MixtureDataConfig
from llmtrain.config.groups.tokenizer import (
    BPETokenizerConfig,
    ByteTokenizerConfig,
    PretrainedTokenizerConfig,
    TokenizerConfig,
)
from llmtrain.config.schema import PrepareConfig
from llmtrain.config.store import from_dict, to_yaml
from llmtrain.data.dataset import IGNORED, TokenDataset
from llmtrain.data.loader import Loader, ValidationBatches
from llmtrain.data.mixed import MixedDataset
from llmtrain.data.mixed_sampler import MixedSampler, share_out
from llmtrain.data.mixture import prepared_sources
from llmtrain.data.opening import open_dataset
from llmtrain.data.prepare import load_report, prepare
from llmtrain.errors import ConfigError, DataError
from tests.unit.data.conftest import many_texts
from tests.unit.data.duplicates import edit
from tests.unit.data.test_prepare import documents

WEIGHTS = {"web": 0.7, "books": 0.2, "code": 0.1}


def write(folder: Path, texts: dict[str, str]) -> Path:
    folder.mkdir(exist_ok=True, parents=True)
    for name, text in texts.items():
        (folder / name).write_text(text)
    return folder


@pytest.fixture
def mixed(tmp_path: Path) -> Any:
    """Return a function that prepares a mixture of texts by source."""

    def run(
        sources: dict[str, dict[str, str]],
        weights: dict[str, float] | None = None,
        tokenizer: TokenizerConfig | None = None,
        **data: Any,
    ) -> Path:
        parts = {
            name: MixedSource(
                kind="text",
                path=str(write(tmp_path / name, texts)),
                weight=None if weights is None else weights[name],
            )
            for name, texts in sources.items()
        }
        config = MixtureDataConfig(sources=parts, cache_dir=str(tmp_path / "cache"), **data)
        return prepare(config, tokenizer or ByteTokenizerConfig())

    return run


def corpus(prefix: str, count: int, words: int) -> dict[str, str]:
    return {name: f"{prefix} {text}" for name, text in many_texts(count, words).items()}


SOURCES = {"web": corpus("w", 90, 10), "books": corpus("b", 40, 40), "code": corpus("c", 12, 25)}


@pytest.mark.parametrize("samples", ["windows", "masked_windows", "documents", "packed"])
def test_an_epoch_has_exactly_the_shares_that_were_asked_for(mixed: Any, samples: str) -> None:
    """Counted labels of all rows of an epoch, as the loader gives them."""
    folder = mixed(SOURCES, WEIGHTS)
    dataset = open_dataset(folder, "train")
    assert isinstance(dataset, MixedDataset)
    seq_len = 16 if "windows" in samples else 64
    epoch = dataset.sampler(seq_len, samples, 1).n_samples
    loader = Loader(
        dataset, seq_len=seq_len, samples=samples, seed=1, global_batch_size=epoch,
        micro_batch_size=epoch, dp_rank=0, dp_size=1,
    )  # fmt: skip
    (batch,) = loader.load(0)
    ids = loader.sampler.sample(np.arange(epoch))
    bounds = np.cumsum(
        [0, *(p.n_samples(seq_len, samples, drop_last=False) for p in dataset.parts)]
    )
    source = np.searchsorted(bounds, ids, side="right") - 1
    counted = (batch.labels.numpy() != IGNORED).sum(axis=1)
    total = counted.sum()
    # Whole samples, and by chance (documents) or by packing they are not equally full.
    allowed = {"windows": 0.001, "masked_windows": 0.002}.get(samples, 0.01)
    for number, name in enumerate(dataset.names):
        assert counted[source == number].sum() / total == pytest.approx(WEIGHTS[name], abs=allowed)
        seen = Counter(ids[source == number].tolist())
        assert len(seen) == dataset.parts[number].n_samples(seq_len, samples)
        assert max(seen.values()) - min(seen.values()) <= 1


@given(
    sources=st.lists(st.tuples(st.integers(1, 3000), st.floats(0.01, 1.0)), min_size=1, max_size=5),
    seed=st.integers(0, 2**40),
)
@settings(max_examples=60, deadline=None)
def test_every_epoch_is_dealt_out_exactly(sources: list[tuple[int, float]], seed: int) -> None:
    counts, shares = [c for c, _ in sources], [s for _, s in sources]
    slots = share_out(counts, shares)
    size = sum(slots)
    for slot, share, count in zip(slots, shares, counts, strict=True):
        assert abs(slot - size * share / sum(shares)) <= 1.0 + 1e-6 * size
        assert slot >= count - 1
    if size > 20_000:
        return  # the shares alone are looked at
    starts = np.cumsum([0, *counts])
    sampler = MixedSampler(counts, starts, shares, seed)
    for epoch in (0, 1, 7):
        found = sampler.sample(np.arange(epoch * size, (epoch + 1) * size))
        source = np.searchsorted(starts, found, side="right") - 1
        assert np.bincount(source, minlength=len(counts)).tolist() == slots
        for number, count in enumerate(counts):
            seen = np.bincount(found[source == number] - starts[number], minlength=count)
            assert len(seen) == count and seen.max() - seen.min() <= 2
    all_epochs = sampler.sample(np.arange(3 * size))
    seen = np.bincount(all_epochs, minlength=sum(counts))
    for number, count in enumerate(counts):
        own = seen[starts[number] : starts[number] + count]
        assert own.max() - own.min() <= 1  # each comes again only after all others have
    place = size // 2
    assert sampler.sample(place) == sampler.sample(np.arange(size))[place]
    assert sampler.run(place, 3).tolist() == sampler.sample(np.arange(place, place + 3)).tolist()


def test_shares_within_a_thousandth() -> None:
    """The bound that the documentation promises, from a thousand samples on."""
    for counts in ([900, 90, 10], [100, 500, 400], [5000, 1, 2]):
        for shares in ([0.5, 0.3, 0.2], [0.98, 0.01, 0.01], [1, 2, 7]):
            slots = share_out(counts, shares)
            for slot, share in zip(slots, shares, strict=True):
                assert slot / sum(slots) == pytest.approx(share / sum(shares), abs=0.001)


def test_without_weights_every_sample_comes_once(mixed: Any) -> None:
    dataset = open_dataset(mixed(SOURCES), "train")
    sampler = dataset.sampler(16, "windows", 3)
    assert sampler.n_samples == dataset.n_samples(16)
    found = sampler.sample(np.arange(sampler.n_samples))
    assert len(set(found.tolist())) == sampler.n_samples
    assert sampler.sample(np.arange(50)).tolist() != sorted(found[:50])


def test_rows_are_those_of_the_sources(mixed: Any) -> None:
    folder = mixed(SOURCES, WEIGHTS)
    for split in ("train", "validation"):
        dataset = open_dataset(folder, split)
        assert isinstance(dataset, MixedDataset)
        for samples in ("windows", "documents", "packed"):
            parts = [TokenDataset(s.folder, split) for s in prepared_sources(folder)]
            counts = [part.n_samples(32, samples, drop_last=False) for part in parts]
            expected = [
                part.fill(np.arange(n), 32, samples).input_ids
                for part, n in zip(parts, counts, strict=True)
            ]
            order = np.random.default_rng(0).permutation(sum(counts))
            found = dataset.fill(order, 32, samples)
            assert (found.input_ids == np.concatenate(expected)[order]).all()
        outside = dataset.fill([-1, 10**9], 32)
        assert (outside.labels == IGNORED).all()


def test_validation_takes_all_of_every_source_once(mixed: Any) -> None:
    dataset = open_dataset(mixed(SOURCES, WEIGHTS), "validation")
    counted = [
        sum(b.counted_tokens for b in ValidationBatches(dataset, 16, 4, rank, 3))
        for rank in range(3)
    ]
    assert isinstance(dataset, MixedDataset)
    assert sum(counted) == dataset.n_tokens - len(dataset.parts)


def test_a_text_of_an_earlier_source_is_left_out(mixed: Any) -> None:
    web, books = dict(SOURCES["web"]), dict(SOURCES["books"])
    for name in list(web)[:7]:
        books[f"copy-{name}"] = web[name]
    folder = mixed({"web": web, "books": books})
    report = load_report(folder)
    assert report["sources"]["web"]["documents"]["duplicates"] == 0
    assert report["sources"]["books"]["documents"]["duplicates"] == 7
    example = report["sources"]["books"]["dedup"]["exact"]["examples"][0]
    assert example["kept"] == "an earlier source"
    assert report["documents"]["duplicates"] == 7
    assert report["documents"]["train"] == sum(
        part["documents"]["train"] for part in report["sources"].values()
    )


@pytest.mark.parametrize("together", [True, False])
def test_nor_does_what_is_nearly_one(mixed: Any, together: bool) -> None:
    """Whether the earlier source is prepared in the same start or has been before."""
    rng = random.Random(1)
    web = {f"{i}.txt": " ".join(f"w{rng.randrange(5000)}" for _ in range(200)) for i in range(30)}
    books = {
        f"b{i}.txt": " ".join(f"b{rng.randrange(5000)}" for _ in range(200)) for i in range(30)
    }
    for name in list(web)[:8]:
        books[f"near-{name}"] = edit(web[name], 0.01, rng) + " and more"
    if not together:
        mixed({"web": web}, dedup="near")
    folder = mixed({"web": web, "books": books}, dedup="near")
    report = load_report(folder)["sources"]
    assert report["web"]["documents"]["near_duplicates"] == 0
    assert report["books"]["documents"]["near_duplicates"] == 8
    kept = documents(prepared_sources(folder)[1].folder)
    kept += documents(prepared_sources(folder)[1].folder, "validation")
    assert sorted(kept) == sorted(text for name, text in books.items() if name[0] == "b")


def test_only_what_is_kept_keeps_others_out(mixed: Any) -> None:
    """A ~ B ~ C, where A and C differ: B goes because of A, and C does not because of B."""
    words = [f"w{number}" for number in range(200)]
    a = " ".join([*words, "longest"])
    b = " ".join([*words[:-20], *(f"x{number}" for number in range(20))])
    c = " ".join([*(f"y{number}" for number in range(20)), *b.split()[20:]])
    other = {f"{n}.txt": " ".join(f"{n}z{m}" for m in range(30)) for n in range(20)}
    books = {"c.txt": c, "d.txt": "something else"}
    folder = mixed({"web": {"a.txt": a, "b.txt": b} | other, "books": books}, dedup="near")
    report = load_report(folder)["sources"]
    assert report["web"]["documents"]["near_duplicates"] == 1
    assert report["books"]["documents"]["near_duplicates"] == 0
    alone = mixed({"new": {"b.txt": b} | other, "books": books}, dedup="near")
    assert load_report(alone)["sources"]["books"]["documents"]["near_duplicates"] == 1


@pytest.mark.parametrize("dedup", ["exact", "near"])
@pytest.mark.parametrize("together", [True, False])
def test_a_source_of_one_document_is_kept_out_whole(mixed: Any, dedup: str, together: bool) -> None:
    """It is cut into training and validation, and must not come again in one piece."""
    rng = random.Random(5)
    text = "\n".join(" ".join(f"w{rng.randrange(9999)}" for _ in range(12)) for _ in range(60))
    one = {"a.txt": text}
    if not together:
        mixed({"one": one}, dedup=dedup)
    folder = mixed({"one": one, "more": {"copy.txt": text} | corpus("m", 9, 30)}, dedup=dedup)
    report = load_report(folder)["sources"]["more"]["documents"]
    assert report["duplicates"] == 1
    held = documents(prepared_sources(folder)[0].folder, "validation")[0]
    later = prepared_sources(folder)[1].folder
    assert not any(held in text for text in documents(later) + documents(later, "validation"))


def test_a_refusal_of_one_source_keeps_the_work_of_the_others(mixed: Any, tmp_path: Path) -> None:
    bad = {"a.txt": "fine", "b.txt": "not \0 text"}
    with pytest.raises(DataError, match="NUL"):
        mixed({"web": SOURCES["web"], "bad": bad}, errors="strict")
    work = [path.name.split("-")[0] for path in (tmp_path / "cache").glob("*.work")]
    assert work == ["web"]


def test_a_source_that_is_added_leaves_the_others_as_they_are(mixed: Any, tmp_path: Path) -> None:
    two = {name: SOURCES[name] for name in ("web", "books")}
    before = {s.name: s.folder for s in prepared_sources(mixed(two))}
    stamps = {f: f.stat().st_mtime_ns for p in before.values() for f in p.iterdir()}
    after = {s.name: s.folder for s in prepared_sources(mixed(SOURCES, WEIGHTS))}
    assert {name: after[name] for name in before} == before
    assert {f: f.stat().st_mtime_ns for p in before.values() for f in p.iterdir()} == stamps
    folders = [p for p in (tmp_path / "cache").iterdir() if p.is_dir()]
    assert len(folders) == 5  # three sources, two mixtures
    # Other weights make another mixture, of the same sources.
    mixed(SOURCES, WEIGHTS | {"web": 0.5})
    assert len([p for p in (tmp_path / "cache").iterdir() if p.is_dir()]) == 6


def test_a_tokenizer_learned_here_is_learned_from_all(mixed: Any) -> None:
    bpe = BPETokenizerConfig(vocab_size=400)
    one = {s.name: s.folder for s in prepared_sources(mixed({"web": SOURCES["web"]}, None, bpe))}
    both = {s.name: s.folder for s in prepared_sources(mixed(SOURCES, WEIGHTS, bpe))}
    assert one["web"] != both["web"]
    hashes = {TokenDataset(folder, "train").tokenizer_hash for folder in both.values()}
    assert len(hashes) == 1
    given_ = PretrainedTokenizerConfig(path=str(both["web"] / "tokenizer.json"))
    first = {s.name: s.folder for s in prepared_sources(mixed(SOURCES, WEIGHTS, given_))}
    more = SOURCES | {"more": corpus("m", 9, 30)}
    second = {s.name: s.folder for s in prepared_sources(mixed(more, None, given_))}
    assert {name: second[name] for name in first} == first


def test_each_source_may_be_cleaned_in_its_own_way(tmp_path: Path) -> None:
    write(tmp_path / "one", {"a.txt": "HELLO　ｗｏｒｌｄ 世界\n" * 9, "b.txt": "more text here"})
    write(tmp_path / "two", {"a.txt": "ｗｉｄｅ 世界\n" * 9, "b.txt": "and here too"})
    config = MixtureDataConfig(
        sources={
            "one": MixedSource(kind="text", path=str(tmp_path / "one")),
            "two": MixedSource(
                kind="text", path=str(tmp_path / "two"), clean=CleanConfig(width=True)
            ),
        },
        cache_dir=str(tmp_path / "cache"),
    )
    report = load_report(prepare(config, ByteTokenizerConfig()))["sources"]
    assert "width" not in report["one"]["clean"]
    assert report["two"]["clean"]["width"]["documents"] == 1


def test_a_mixture_from_the_command_line() -> None:
    words = [
        "data=mixture",
        "data.sources={web: {kind: jsonl, path: web.jsonl, weight: 0.7, clean: {html: true}}}",
        "data.sources.books={kind: text, path: books, weight: 0.3}",
        "data.sources.web.text_key=body",
    ]
    with composer("prepare", ()) as hydra:
        config = hydra.compose(words).config
    assert list(config.data.sources) == ["web", "books"]
    web = config.data.of_source("web")
    assert (web.name, web.text_key, web.clean.html) == ("jsonl", "body", True)
    assert config.data.of_source("books").clean.html is False
    again = from_dict(PrepareConfig, yaml.safe_load(to_yaml(config)), "test")
    assert again == config


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"kind": "txt"}, "Did you mean 'text'"),
        ({"kind": "text", "weight": 0.0}, "weight=0.0 must be positive"),
        ({"kind": "text", "delimiter": ";"}, "delimiter=; makes no sense for kind=text"),
        ({"kind": "jsonl", "split": "test"}, "split=test makes no sense for kind=jsonl"),
    ],
)
def test_sources_that_are_refused(source: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MixedSource(**source)


def test_mixtures_that_are_refused(tmp_path: Path) -> None:
    text = MixedSource(kind="text", path=str(tmp_path / "none"))
    with pytest.raises(ConfigError, match=r"data\.sources\.b has no weight"):
        MixtureDataConfig(sources={"a": MixedSource(kind="text", weight=1.0), "b": text})
    with pytest.raises(ConfigError, match="name 'a/b'"):
        MixtureDataConfig(sources={"a/b": text})
    cache = str(tmp_path / "cache")
    with pytest.raises(ConfigError, match=r"data=mixture needs data\.sources, such as"):
        prepare(MixtureDataConfig(cache_dir=cache), ByteTokenizerConfig())
    with pytest.raises(DataError, match=r"data\.sources\.a: data\.path=.*none does not exist"):
        prepare(MixtureDataConfig(sources={"a": text}, cache_dir=cache), ByteTokenizerConfig())


def test_a_mixture_whose_source_is_gone(mixed: Any) -> None:
    folder = mixed(SOURCES, WEIGHTS)
    gone = prepared_sources(folder)[1].folder
    shutil.rmtree(gone)
    with pytest.raises(DataError, match=f"{gone} holds no manifest.json"):
        open_dataset(folder, "train")
    assert mixed(SOURCES, WEIGHTS) == folder  # and it is made again
    assert open_dataset(folder, "train").n_tokens > 0
    content = json.loads((folder / "manifest.json").read_text())
    content["version"] = 9
    (folder / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"version 9.*upgrade"):
        open_dataset(folder, "train")
