"""Duplicates: what is found, what is left alone, and what the report says of it."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.progress import Progress

from llmtrain.config.groups.data import JsonlDataConfig, TextDataConfig
from llmtrain.config.groups.dedup import NearConfig
from llmtrain.config.groups.tokenizer import ByteTokenizerConfig
from llmtrain.config.schema import PrepareConfig
from llmtrain.config.store import from_dict, to_yaml
from llmtrain.data import dedup_near, dedup_sketch
from llmtrain.data.corpus import Corpus, CorpusWriter
from llmtrain.data.dedup import Digests, content_digest, find_exact_duplicates
from llmtrain.data.dedup_near import NearDuplicates, find_near_duplicates
from llmtrain.data.library import check_libraries
from llmtrain.data.prepare import load_report, prepare
from llmtrain.errors import ConfigError, DataError
from tests.unit.data.conftest import Prepare, many_texts
from tests.unit.data.duplicates import edit, make_corpus, true_pairs, true_similarity
from tests.unit.data.test_prepare import documents

RECALL = 0.95
"""Asked of pairs of a similarity of at least 0.9."""

FALSE_POSITIVES = 0.005
"""Allowed share of the documents that have no near-duplicate."""

SIMILARITY = 0.8


def prepare_rows(texts: list[str], folder: Path, **settings: Any) -> Path:
    """Prepare `texts` as the rows of a JSON lines file."""
    folder.mkdir(exist_ok=True)
    rows = (json.dumps({"text": text}) for text in texts)
    (folder / "rows.jsonl").write_text("\n".join(rows) + "\n")
    config = JsonlDataConfig(
        path=str(folder / "rows.jsonl"), cache_dir=str(folder.parent / "cache"), **settings
    )
    return prepare(config, ByteTokenizerConfig())


def test_exact_duplicates_are_found_by_content() -> None:
    def digests(*texts: bytes) -> Digests:
        raw = b"".join(map(content_digest, texts))
        return np.frombuffer(raw, dtype=np.uint8).reshape(-1, 16)

    texts = (b"two", b"one", b"two", b"two ", b"old", b"two", b"old")
    found = find_exact_duplicates(digests(*texts), digests(b"x", b"old"))
    assert found.kept.tolist() == [0, 1, 3]
    assert found.dropped.tolist() == [2, 4, 5, 6]
    assert found.first.tolist() == [0, -1, 0, -1]
    none = find_exact_duplicates(digests(), digests())
    assert [len(part) for part in (none.kept, none.dropped, none.first)] == [0, 0, 0]


def near(texts: list[str], folder: Path, **settings: Any) -> tuple[NearDuplicates, list[str]]:
    """Return what is found in `texts`, all different, and those that are kept."""
    writer = CorpusWriter(NearConfig(**settings))
    for number, text in enumerate(texts):
        writer.add(text, id=f"row {number}")
    writer.record().save(folder / "corpus")
    corpus = Corpus([folder / "corpus"])
    found = find_near_duplicates(corpus, NearConfig(**settings), folder, Progress(disable=True))
    kept = sorted(set(range(len(texts))) - set(found.dropped))
    return found, list(corpus.texts(kept))


def test_what_stands_before_is_kept_whatever_it_is(tmp_path: Path) -> None:
    rng = random.Random(2)
    text = " ".join(f"w{rng.randrange(5000)}" for _ in range(200))
    parts = {"before": [text, edit(text, 0.01, rng)], "own": [edit(text, 0.01, rng), "else " * 9]}
    corpora = {}
    for name, texts in parts.items():
        writer = CorpusWriter(NearConfig())
        for each in texts:
            writer.add(each)
        writer.record().save(tmp_path / name)
        corpora[name] = Corpus([tmp_path / name])
    bars = Progress(disable=True)
    found = find_near_duplicates(corpora["own"], NearConfig(), tmp_path, bars, corpora["before"])
    assert found.dropped == [0]
    assert len(corpora["before"]) == len(corpora["own"]) == 2


def test_a_corpus_of_known_duplicates(tmp_path: Path) -> None:
    """Exact copies, near ones at five levels of edits, templates; English and Chinese."""
    made = make_corpus(seed=1, originals=240)
    folder = prepare_rows([m.text for m in made], tmp_path / "made", dedup="near", val_ratio=0.2)
    kept = set(documents(folder) + documents(folder, "validation"))
    texts = list(dict.fromkeys(m.text for m in made))
    pairs = true_pairs(texts, SIMILARITY)
    alike = [pair for pair, similarity in pairs.items() if similarity >= 0.9]
    assert len(alike) > 500
    found = [pair for pair in alike if not {texts[pair[0]], texts[pair[1]]} <= kept]
    assert len(found) >= RECALL * len(alike)

    paired = {number for pair in pairs for number in pair}
    alone = [text for number, text in enumerate(texts) if number not in paired]
    lost = [text for text in alone if text not in kept]
    templated = {m.text for m in made if m.kind == "template"}
    assert len(templated & set(alone)) == len(templated) == 120
    assert len(alone) > 400
    assert len(lost) <= FALSE_POSITIVES * len(alone)

    report = load_report(folder)
    counts, dedup = report["documents"], report["dedup"]
    assert counts["read"] == len(made)
    assert counts["duplicates"] == dedup["exact"]["documents"] == len(made) - len(texts) >= 60
    assert counts["near_duplicates"] == dedup["near"]["documents"] == len(texts) - len(kept)
    assert counts["kept"] == len(kept) == counts["train"] + counts["validation"]
    dropped = [text for text in texts if text not in kept]
    assert dedup["near"]["characters"] == sum(map(len, dropped))
    assert dedup["exact"]["characters"] == sum(map(len, (m.text for m in made))) - sum(
        map(len, texts)
    )


def test_what_is_dropped_has_a_near_duplicate_that_is_kept(tmp_path: Path) -> None:
    texts = list(dict.fromkeys(m.text for m in make_corpus(seed=2, originals=80)))
    found, kept = near(texts, tmp_path)
    pairs = true_pairs(texts, SIMILARITY)
    partners: dict[int, set[int]] = {number: set() for number in range(len(texts))}
    for a, b in pairs:
        partners[a].add(b)
        partners[b].add(a)
    remain = set(range(len(texts))) - set(found.dropped)
    assert found.dropped
    assert all(partners[number] & remain for number in found.dropped)
    assert {texts[number] for number in remain} == set(kept)
    assert 0 < found.clusters <= len(remain)
    assert not found.crowded


def test_a_chain_is_not_a_cluster(tmp_path: Path) -> None:
    """A is near B and B near C, but not A near C: both ends stay, or the middle alone does."""
    words = [f"w{i:03d}" for i in range(300)]
    texts = [" ".join(words[start : start + 200 - start // 20]) for start in (0, 20, 40, 60)]
    similarities = [true_similarity(texts[0], text) for text in texts]
    assert similarities[1] > SIMILARITY > similarities[2]
    assert true_similarity(texts[1], texts[2]) > SIMILARITY
    found, kept = near(texts, tmp_path)
    assert (found.dropped, kept) == ([1, 3], [texts[0], texts[2]])  # the longest first
    assert found.clusters == 2


def test_names_order_and_batches_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = list(dict.fromkeys(m.text for m in make_corpus(seed=3, originals=60)))
    first, kept = near(texts, tmp_path)
    shuffled = random.Random(0).sample(texts, len(texts))
    monkeypatch.setattr(dedup_near, "BATCH_BYTES", 5000)
    monkeypatch.setattr(dedup_near, "BATCH_DOCUMENTS", 7)
    monkeypatch.setattr(dedup_near, "CACHE_BYTES", 1000)
    second, kept_too = near(shuffled, tmp_path)
    assert sorted(kept) == sorted(kept_too)
    assert (first.clusters, first.characters) == (second.clusters, second.characters)
    similarities = [[e.similarity for e in found.examples] for found in (first, second)]
    assert similarities[0] == similarities[1]


def test_validation_has_no_near_duplicate_in_training(tmp_path: Path) -> None:
    made = [m.text for m in make_corpus(seed=4, originals=60)]
    sides = {}
    for dedup in ("exact", "near"):
        folder = prepare_rows(made, tmp_path / "made", dedup=dedup, val_ratio=0.3)
        sides[dedup] = documents(folder), documents(folder, "validation")

    def leaks(train: list[str], validation: list[str]) -> int:
        pairs = true_pairs(train + validation, SIMILARITY)
        return sum(a < len(train) <= b for a, b in pairs)

    assert min(map(len, sides["near"])) > 20
    assert leaks(*sides["exact"]) > 20  # else the test would show nothing
    assert leaks(*sides["near"]) == 0


def test_one_document_that_is_cut_in_two_does_not_leak(prepare_texts: Prepare) -> None:
    text = "\n".join(many_texts(40).values())
    folder = prepare_texts({"a.txt": text}, dedup="near")
    train, validation = documents(folder)[0], documents(folder, "validation")[0]
    assert true_similarity(train, validation) < 0.1
    for name, repeated in (("twice", text + "\n" + text), ("often", "the same again\n" * 500)):
        with pytest.raises(DataError, match=r"repeats itself.*data\.dedup=exact"):
            prepare_texts({"a.txt": repeated}, folder=name, dedup="near", val_ratio=0.5)
        assert load_report(prepare_texts({"a.txt": repeated}, folder=name, val_ratio=0.5))


def test_capitals_punctuation_and_layout_make_no_difference(tmp_path: Path) -> None:
    words = many_texts(1)["000.txt"].split()
    texts = [" ".join(words), "— " + ",\n".join(w.upper() for w in words) + "!"]
    found, _ = near(texts, tmp_path)
    assert [e.similarity for e in found.examples] == [1.0]
    assert len(found.dropped) == 1


@pytest.mark.parametrize("unit", ["words", "characters"])
def test_chinese(tmp_path: Path, unit: str) -> None:
    rng = random.Random(5)
    han = [chr(code) for code in range(0x4E00, 0x5E00)]
    originals = ["".join(rng.choice(han) for _ in range(200)) for _ in range(50)]
    copies = [edit(text, 0.01, rng) for text in originals]
    found, kept = near(originals + copies, tmp_path, unit=unit)
    assert len(found.dropped) == found.clusters == 50
    assert all((a in kept) != (b in kept) for a, b in zip(originals, copies, strict=True))


def test_documents_with_few_words_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dedup_sketch, "MOST_IN_A_BUCKET", 2)
    texts = ["yes", "Yes.", "no", "yes no", "!!!", "???", "...", "", "a b c d", "A, b, c, d"]
    found, kept = near(texts, tmp_path)
    assert kept == ["Yes.", "no", "yes no", "!!!", "???", "...", "", "A, b, c, d"]
    assert found.clusters == 2
    assert not found.crowded  # those without words meet nobody


def test_many_of_one_pattern_take_no_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Buckets are bounded: what does not fit is said, and the rest is compared."""
    monkeypatch.setattr(dedup_sketch, "MOST_IN_A_BUCKET", 8)
    frame = " ".join(f"w{i}" for i in range(100))
    texts = [f"{frame} {' '.join(f'x{i}y{j}' for j in range(30))}" for i in range(300)]
    found, kept = near(texts, tmp_path)
    assert not found.dropped
    assert len(kept) == 300
    assert 0 < found.crowded <= 292


def test_examples(prepare_texts: Prepare, tmp_path: Path) -> None:
    texts = many_texts(30)
    changed = texts["000.txt"].replace("x29", "y29")
    folder = prepare_texts(
        texts | {"same.txt": texts["003.txt"], "near.txt": changed + "and more of it\n"},
        dedup="near",
    )
    dedup = load_report(folder)["dedup"]
    (exact,), (alike,) = dedup["exact"]["examples"], dedup["near"]["examples"]
    source = tmp_path / "corpus"
    assert (exact["kept"], exact["dropped"]) == (str(source / "003.txt"), str(source / "same.txt"))
    assert exact["similarity"] == 1
    assert exact["kept_start"] == exact["dropped_start"] == texts["003.txt"][:80]
    assert alike["kept"] == str(source / "near.txt")  # the longer one
    assert alike["dropped"] == str(source / "000.txt")
    assert alike["similarity"] == round(
        true_similarity(texts["000.txt"], changed + "and more of it"), 4
    )
    assert alike["dropped_start"] == texts["000.txt"][:80]
    assert not list(folder.glob("*tmp*"))


def test_the_near_settings_count_only_where_they_are_used(prepare_texts: Prepare) -> None:
    texts, other = many_texts(10), NearConfig(similarity=0.5)
    assert prepare_texts(texts) == prepare_texts(texts, near=other)
    one, two = prepare_texts(texts, dedup="near"), prepare_texts(texts, dedup="near", near=other)
    assert one != two


def test_a_full_disk_is_one_message(
    prepare_texts: Prepare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(dedup_sketch.os, "posix_fallocate", full)
    with pytest.raises(DataError, match=r"No space left on device\. .*data\.cache_dir"):
        prepare_texts(many_texts(10), dedup="near")
    monkeypatch.undo()
    folder = prepare_texts(many_texts(10), dedup="near")  # goes on from what was done
    assert [p for p in (tmp_path / "cache").iterdir() if p.is_dir()] == [folder]


def test_after_a_stop_in_the_middle_it_goes_on(
    prepare_texts: Prepare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> float:
        raise KeyboardInterrupt

    texts = many_texts(10)
    texts["copy.txt"] = texts["000.txt"] + "more"
    monkeypatch.setattr(dedup_near, "jaccard", stop)
    with pytest.raises(KeyboardInterrupt):
        prepare_texts(texts, dedup="near")
    monkeypatch.undo()
    folder = prepare_texts(texts, dedup="near")
    assert [p for p in (tmp_path / "cache").iterdir() if p.is_dir()] == [folder]


def test_configurations_of_before_are_read(tmp_path: Path) -> None:
    for old, new in ((True, "exact"), (False, "none")):
        values = {
            "data": {"name": "text", "dedup": old},
            "tokenizer": {"name": "byte"},
        }
        config = from_dict(PrepareConfig, values, "config.yaml")
        assert config.data.dedup == new
        assert f"dedup: {new}" in to_yaml(config)
    for old_errors, errors in (("replace", "skip"), ("strict", "strict")):
        data = {"name": "text", "encoding_errors": old_errors}
        values = {"data": data, "tokenizer": {"name": "byte"}}
        assert from_dict(PrepareConfig, values, "config.yaml").data.errors == errors


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dedup": "True"}, r"data\.dedup=true is spelt data\.dedup=exact now"),
        ({"dedup": "false"}, r"data\.dedup=false is spelt data\.dedup=none now"),
        ({"dedup": "nera"}, r"data\.dedup=nera is not a choice\. Did you mean 'near'"),
    ],
)
def test_values_that_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TextDataConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"similarity": 0.0}, r"data\.near\.similarity=0\.0 must be above 0"),
        ({"similarity": 80}, r"data\.near\.similarity=80 must be above 0 and at most 1"),
        ({"permutations": 8}, r"data\.near\.permutations=8 must be 16 to 4096"),
        ({"ngram": 0}, r"data\.near\.ngram=0 must be 1 to 64"),
        ({"unit": "word"}, r"data\.near\.unit=word is not a choice\. Did you mean 'words'"),
        ({"seed": -1}, r"data\.near\.seed=-1"),
    ],
)
def test_near_settings_that_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        NearConfig(**settings)


def test_a_missing_library_is_refused_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    check_libraries(TextDataConfig())
    with pytest.raises(ConfigError, match=r"data\.dedup=near needs .*pip install 'rensa"):
        check_libraries(TextDataConfig(dedup="near"))
