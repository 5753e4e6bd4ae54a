"""A look into prepared folders, against what their files hold and what went into them."""

import io
import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from llmtrain.config.groups.data import JsonlDataConfig
from llmtrain.config.groups.mixture import MixedSource, MixtureDataConfig
from llmtrain.config.groups.prepared import InspectConfig
from llmtrain.config.groups.tokenizer import BPETokenizerConfig, ByteTokenizerConfig
from llmtrain.data.inspection import Shown, inspect_folder, spread
from llmtrain.data.lengths import describe_lengths
from llmtrain.data.prepare import prepare
from llmtrain.data.prepared import find_prepared
from llmtrain.errors import DataError
from llmtrain.tasks.inspection import run_inspection

CHINESE = "永和九年，歲在癸丑，暮春之初，會于會稽山陰之蘭亭，修禊事也。羣賢畢至，少長咸集。"

SEEN = {"duplicate": 3, "broken": 2, "short": 4}


def texts_of(seed: int) -> list[str]:
    rng = random.Random(seed)
    words = [f"word{number}" for number in range(400)]
    english = [" ".join(rng.choices(words, k=rng.randrange(5, 200))) for _ in range(40)]
    chinese = ["".join(rng.sample(CHINESE, len(CHINESE))) * rng.randrange(1, 6) for _ in range(20)]
    return english + chinese


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("inspected")


@pytest.fixture(scope="module")
def folder(root: Path) -> Path:
    texts = texts_of(1)
    near = texts[0] + " and a word"
    short = [f"s{number}" for number in range(SEEN["short"])]
    all_of = [*texts, near, *texts[: SEEN["duplicate"]], *short]
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in all_of]
    lines[5:5] = ["{broken"] * SEEN["broken"]
    (root / "rows.jsonl").write_text("\n".join(lines), encoding="utf-8")
    config = JsonlDataConfig(
        path=str(root / "rows.jsonl"),
        cache_dir=str(root / "cache"),
        dedup="near",
        val_ratio=0.2,
        shard_tokens=4000,
    )
    config.clean.min_chars = 5
    config.clean.control_characters = False
    return prepare(config, BPETokenizerConfig(vocab_size=400))


@pytest.fixture(scope="module")
def found(folder: Path) -> dict[str, Any]:
    return inspect_folder(folder, Shown(documents=4, tokens=10))


def lengths_in(folder: Path, split: str) -> np.ndarray:
    """Return the lengths of the documents, told by the separators among the tokens."""
    manifest = json.loads((folder / "manifest.json").read_text())
    shards = [s["name"] for s in manifest["splits"][split]["shards"]]
    tokens = np.concatenate([np.fromfile(folder / f"{s}.bin", dtype="<u2") for s in shards])
    ends = np.flatnonzero(tokens == manifest["tokenizer"]["separator_id"])
    return np.diff(ends, prepend=-1) - 1


@pytest.mark.parametrize("split", ["train", "validation"])
def test_lengths_are_those_of_the_files(folder: Path, found: dict[str, Any], split: str) -> None:
    lengths, told = lengths_in(folder, split), found["splits"][split]
    summary = told["lengths"]
    assert (summary["min"], summary["max"]) == (lengths.min(), lengths.max())
    assert summary["mean"] == round(lengths.mean(), 1)
    ranked = sorted(lengths)
    assert summary["median"] == ranked[(len(ranked) - 1) // 2]
    assert summary["p95"] == ranked[-(-95 * len(ranked) // 100) - 1]
    assert told["documents"] == summary["documents"] == len(lengths)
    assert told["tokens"] == lengths.sum() + len(lengths)
    for bin in summary["histogram"]:
        inside = (lengths >= bin["from"]) & (lengths < bin["to"])
        assert bin["documents"] == inside.sum()
    assert sum(bin["documents"] for bin in summary["histogram"]) == len(lengths)


def test_shards_are_those_on_disk(folder: Path, found: dict[str, Any]) -> None:
    shards = [shard for split in found["splits"].values() for shard in split["shards"]]
    assert len(shards) > 2
    for shard in shards:
        files = [folder / f"{shard['name']}.{ending}" for ending in ("bin", "idx")]
        assert shard["bytes"] == sum(file.stat().st_size for file in files)
    for split in found["splits"].values():
        for name in ("tokens", "documents"):
            assert sum(shard[name] for shard in split["shards"]) == split[name]


def test_what_was_left_out_is_told_with_examples(found: dict[str, Any]) -> None:
    assert found["documents"]["duplicates"] == SEEN["duplicate"]
    assert found["documents"]["near_duplicates"] == 1
    assert len(found["dedup"]["exact"]["examples"]) == SEEN["duplicate"]
    assert len(found["dedup"]["near"]["examples"]) == 1
    assert found["skipped"]["documents"] == SEEN["broken"]
    assert found["skipped"]["examples"][0]["id"].endswith(("rows.jsonl:6", "rows.jsonl:7"))
    assert found["clean"]["min_chars"]["dropped"] == SEEN["short"]
    assert len(found["clean"]["min_chars"]["examples"]) == 3


def test_examples_are_starts_and_ends_of_documents(found: dict[str, Any]) -> None:
    whole = [*texts_of(1), texts_of(1)[0] + " and a word"]
    separator = found["tokenizer"]["separator"]
    for split in ("train", "validation"):
        examples = found["splits"][split]["examples"]
        assert [example["document"] for example in examples] == spread(
            found["splits"][split]["documents"], 4
        )
        for example in examples:
            start, end = ("".join(p["text"] for p in example[part]) for part in ("start", "end"))
            assert "\ufffd" not in start + end
            closing = end or start
            assert closing.endswith(separator)
            closing = closing.removesuffix(separator)
            assert any(
                text.startswith(start.removesuffix(separator)) and text.endswith(closing)
                for text in whole
            )
            if end:
                count = sum(len(p["ids"]) for p in example["end"])
                assert 10 - 3 <= count <= 10  # at most the rest of a cut character is missing


def test_the_same_documents_are_shown_each_time(folder: Path, found: dict[str, Any]) -> None:
    assert inspect_folder(folder, Shown(documents=4, tokens=10)) == found


def shown(folder: Path, config: InspectConfig, **console: Any) -> str:
    out = io.StringIO()
    run_inspection(folder, config, Console(file=out, width=200, **console))
    return out.getvalue()


def test_a_look_on_the_terminal(folder: Path) -> None:
    out = shown(folder, InspectConfig(documents=5))
    for words in (
        f"{SEEN['duplicate']} exact and 1 near duplicates, {SEEN['short']} by cleaning",
        f"{SEEN['broken']} more could not be read", "rows.jsonl", "dropped by min_chars", "█",
        "train-00001", "median", "p95",
    ):  # fmt: skip
        assert words in out, words
    assert "\ufffd" not in out
    assert any(c in out for c in CHINESE) and "|" in out
    coloured = shown(folder, InspectConfig(documents=5), force_terminal=True, color_system="256")
    assert "\x1b[30;106m" in coloured and "|" not in coloured.replace("<|endoftext|>", "")


def test_ids_stand_beside_their_tokens(folder: Path) -> None:
    first = inspect_folder(folder, Shown(1, 32))["splits"]["train"]["examples"][0]["start"][0]
    assert f"{first['text']}[{','.join(map(str, first['ids']))}]" in shown(
        folder, InspectConfig(documents=1, ids=True)
    )


def test_json_is_one_object(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_inspection(folder, InspectConfig(json=True), Console(stderr=True))
    told = json.loads(capsys.readouterr().out)
    assert told == json.loads(json.dumps(inspect_folder(folder, Shown(2, 32))))


def test_nothing_in_a_document_steers_the_terminal(root: Path) -> None:
    (root / "evil.jsonl").write_text(
        "\n".join(json.dumps({"text": f"{n}\x1b]0;title\x07\x9b31m [bold]not"}) for n in range(9))
    )
    config = JsonlDataConfig(path=str(root / "evil.jsonl"), cache_dir=str(root / "cache"))
    config.clean.control_characters = False
    out = shown(prepare(config, ByteTokenizerConfig()), InspectConfig(tokens=100))
    assert not {"\x1b", "\x07", "\x9b"} & set(out)
    assert "\\x1b" in out and "[|b|o|l|d|]" in out


def test_a_mixture_is_its_sources(root: Path) -> None:
    for name, seed in (("one", 2), ("two", 3)):
        rows = [json.dumps({"text": text}) for text in texts_of(seed)]
        (root / f"{name}.jsonl").write_text("\n".join(rows))
    config = MixtureDataConfig(
        cache_dir=str(root / "cache"),
        sources={
            name: MixedSource(kind="jsonl", path=str(root / f"{name}.jsonl"), weight=weight)
            for name, weight in (("one", 3.0), ("two", 1.0))
        },
    )
    folder = prepare(config, ByteTokenizerConfig())
    told = inspect_folder(folder, Shown(9, 11))
    # Cut in the middle of characters, which have three ids each here.
    assert "\ufffd" not in json.dumps(told, ensure_ascii=False)
    assert told["kind"] == "mixture"
    assert [(s["name"], s["weight"]) for s in told["sources"]] == [("one", 3.0), ("two", 1.0)]
    assert told["tokens"]["train"] == sum(s["splits"]["train"]["tokens"] for s in told["sources"])
    out = shown(folder, InspectConfig())
    assert "source one, weight 3.0" in out and "source two, weight 1.0" in out


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda f: (f / "train-00000.bin").write_bytes(b"xx"), "train-00000.bin is corrupt"),
        (lambda f: (f / "train-00000.idx").unlink(), "train-00000.idx is missing"),
        (lambda f: (f / "manifest.json").write_text("{"), "manifest.json cannot be read"),
        (lambda f: (f / "report.json").write_text("{}"), "report.json is corrupt"),
    ],
)
def test_a_damaged_folder_says_which_file(
    folder: Path, tmp_path: Path, damage: Any, said: str
) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    damage(copy)
    with pytest.raises(DataError, match=said):
        inspect_folder(find_prepared(str(copy)), Shown(1, 8))


def test_a_folder_is_found_by_its_name_in_the_cache(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LLMTRAIN_CACHE", str(folder.parent))
    assert find_prepared(folder.name) == find_prepared(str(folder)) == folder
    (tmp_path / "step_00000001").mkdir()
    (tmp_path / "step_00000001" / "manifest.json").write_text('{"step": 1}')
    for typed, said in (
        (f"{folder.name[:-1]}x", f"Did you mean '{folder.name}'"),
        ("jsonl", folder.name),
        (str(folder.parent), "holds prepared folders"),
        ("step_00000001", "is not a folder of prepared data"),
        ("nothing_like_it", "there is no such folder. In "),
    ):
        with pytest.raises(DataError) as refusal:
            find_prepared(typed)
        assert said in str(refusal.value), typed
        assert "Delete" not in str(refusal.value)
    monkeypatch.setenv("LLMTRAIN_CACHE", str(tmp_path / "empty"))
    with pytest.raises(DataError, match="Nothing is prepared in"):
        find_prepared("x")


def test_a_histogram_at_powers_of_two() -> None:
    lengths = np.array([0, 1, 2, 3, 4, 7, 8, 2**40, 2**40 - 1])
    bins = {b["from"]: b["documents"] for b in describe_lengths(lengths)["histogram"]}
    assert {k: v for k, v in bins.items() if v} == {
        0: 1, 1: 1, 2: 2, 4: 2, 8: 1, 2**39: 1, 2**40: 1,
    }  # fmt: skip
    assert describe_lengths(lengths[:0]) == {"documents": 0, "histogram": []}
