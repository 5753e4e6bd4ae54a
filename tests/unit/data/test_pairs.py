"""Pairs of prompt and target: templates, fields, cleaning, duplicates, ids, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtrain.config.groups.clean import CleanConfig
from llmtrain.config.groups.data import (
    CsvDataConfig,
    DataConfig,
    HuggingFaceDataConfig,
    JsonlDataConfig,
    ParquetDataConfig,
)
from llmtrain.config.groups.mixture import MixedSource
from llmtrain.config.groups.tokenizer import BPETokenizerConfig, ByteTokenizerConfig
from llmtrain.config.template import parse_template, template_fields
from llmtrain.data.cache import source_settings
from llmtrain.data.dataset import TokenDataset
from llmtrain.data.prepare import load_report, prepare
from llmtrain.data.skip import SkipCount
from llmtrain.data.source import iter_documents
from llmtrain.errors import ConfigError, DataError

PAIR: dict[str, Any] = {"prompt": "German: {de}\\nEnglish:", "target": " {en}"}

ROWS = [{"de": f"Satz {i}", "en": f"sentence {i}"} for i in range(20)]

PrepareRows = Callable[..., Path]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def prepare_rows(tmp_path: Path) -> PrepareRows:
    """Return a function that prepares rows of JSON lines."""

    def run(rows: list[dict[str, Any]], tokenizer: Any = None, **settings: Any) -> Path:
        path = write_rows(tmp_path / "rows.jsonl", rows)
        config = JsonlDataConfig(path=path, cache_dir=str(tmp_path / "cache"), **settings)
        return prepare(config, tokenizer or ByteTokenizerConfig())

    return run


def texts(config: DataConfig, skipped: SkipCount | None = None) -> list[tuple[str, str]]:
    pairs = [document.pair for document in iter_documents(config, skipped)]
    return [pair.texts() for pair in pairs if pair is not None]


def pairs_in(folder: Path, split: str = "train") -> list[tuple[str, str]]:
    """Return prompt and target of every document, read with numpy alone."""
    found = []
    for path in sorted(folder.glob(f"{split}-*.bin")):
        tokens = np.fromfile(path, dtype="<u2")
        starts = np.fromfile(path.with_suffix(".idx"), dtype="<u8").astype(int)
        prompts = np.fromfile(path.with_suffix(".tgt"), dtype="<u4").astype(int)
        assert len(prompts) == len(starts) - 1
        for start, end, prompt in zip(starts, starts[1:], prompts, strict=False):
            assert tokens[end - 1] == 256
            head, tail = tokens[start : start + prompt], tokens[start + prompt : end - 1]
            found.append((bytes(head.tolist()).decode(), bytes(tail.tolist()).decode()))
    return found


def test_templates() -> None:
    assert parse_template("k", "a {x}\\nb\\t{y z}\\\\n") == (
        ("a ", "x"), ("\nb\t", "y z"), ("\\n", None),
    )  # fmt: skip
    assert "".join(text for text, _ in parse_template("k", "{{{x}}}")) == "{}"
    assert template_fields("k", "{a}{b.c}{a}") == ["a", "b.c"]
    assert template_fields("k", "one\ntwo") == []


@given(own=st.lists(st.text(max_size=6), min_size=2, max_size=4))
def test_any_text_can_be_spelt_in_a_template(own: list[str]) -> None:
    spelt = [s.replace("\\", "\\\\").replace("{", "{{").replace("}", "}}") for s in own]
    pieces = parse_template("k", "{f}".join(spelt))
    assert "".join(text + ("" if name is None else "\0f") for text, name in pieces) == "\0f".join(
        own
    )


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"target": "positive"}, "data.target='positive' names no field"),
        ({"prompt": "{text}"}, "data.prompt is set without data.target"),
        ({"target": "{a.b!r}"}, "between braces stands the name"),
        ({"target": "{a:>3}"}, "between braces stands the name"),
        ({"target": "{a[0]}"}, "between braces stands the name"),
        ({"target": "{}"}, "between braces stands the name"),
        ({"target": "{a} }"}, "single '}'"),
        ({"target": "{a"}, "expected '}'"),
        ({"target": "{a}", "prompt": "{"}, "data.prompt='{'"),
        ({"target": "\\frac {a}"}, "data.target has '\\\\f', which stands for nothing"),
        ({"label_names": ["no", "yes"]}, "data.label_names"),
        ({"target": "{a} {b}", "label_names": ["no", "yes"]}, "exactly one"),
        ({"truncate": "start", "samples": "documents"}, "data.truncate=start is not a choice"),
        ({"truncate": "drop"}, "data.samples=documents"),
    ],
)
def test_settings_that_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        CsvDataConfig(**settings)
    assert said in str(caught.value)
    if "truncate" not in settings:
        with pytest.raises(ConfigError) as caught:
            MixedSource(kind="csv", **settings)
        assert said.replace("data.", "data.sources.*.") in str(caught.value)


def test_a_mixture_refuses_templates_where_there_are_no_fields() -> None:
    with pytest.raises(ConfigError, match="makes no sense for kind=text"):
        MixedSource(kind="text", target="{a}")


def test_ids_by_hand(prepare_rows: PrepareRows) -> None:
    rows = [{"q": "ab", "a": "c"}, {"q": "", "a": "é"}]
    folder = prepare_rows(rows, prompt="Q{q}", target=" {a}", shard_mode="ordered")
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["version"] == 2
    assert {f"{split}-00000.tgt" for split in ("train", "validation")} <= manifest["files"].keys()
    found = {}
    for split in ("train", "validation"):
        tokens = np.fromfile(folder / f"{split}-00000.bin", dtype="<u2").tolist()
        (prompt,) = np.fromfile(folder / f"{split}-00000.tgt", dtype="<u4").tolist()
        found[prompt] = tokens
    assert found == {
        3: [*b"Qab", *b" c", 256],
        1: [*b"Q", *" é".encode(), 256],
    }
    report = load_report(folder)
    assert sum(report["prompt_tokens"].values()) == 4
    assert sum(report["tokens"].values()) == 11


def test_the_ids_of_a_prompt_do_not_depend_on_its_target(prepare_rows: PrepareRows) -> None:
    """A pair whose halves would be one token together is two."""
    rows = [{"a": "the the the the " * 9, "b": f"n {i}"} for i in range(9)] * 2
    rows += [{"a": "x", "b": f"he{i}"} for i in range(9)]
    folder = prepare_rows(
        rows, BPETokenizerConfig(vocab_size=280), prompt="{a} t", target="{b}", dedup="none",
        val_ratio=0.001,
    )  # fmt: skip
    dataset = TokenDataset(folder, "train")
    tokenizer = dataset.tokenizer()
    assert (
        tokenizer.encode("x the0").size
        < tokenizer.encode("x t").size + tokenizer.encode("he0").size
    )
    prompts = np.fromfile(folder / "train-00000.tgt", dtype="<u4").astype(int)
    starts = np.fromfile(folder / "train-00000.idx", dtype="<u8").astype(int)
    seen = 0
    for start, end, prompt in zip(starts, starts[1:], prompts, strict=False):
        ids = dataset.tokens(start, end)
        head, tail = tokenizer.decode(ids[:prompt]), tokenizer.decode(ids[prompt:-1])
        assert ids[:prompt].tolist() == tokenizer.encode(head).tolist()
        assert ids[prompt:-1].tolist() == tokenizer.encode(tail).tolist()
        seen += head == "x t" and tail.startswith("he")
    assert seen


def test_without_prompts_nothing_is_new(prepare_rows: PrepareRows, tmp_path: Path) -> None:
    """The same folder as of texts in one field, but for its name."""
    plain = prepare_rows([{"text": f"{row['de']}: {row['en']}"} for row in ROWS])
    target = prepare_rows(ROWS, target="{de}: {en}")
    assert plain != target
    for path in plain.iterdir():
        if path.suffix in (".bin", ".idx"):
            assert (target / path.name).read_bytes() == path.read_bytes()
    for folder in (plain, target):
        assert not list(folder.glob("*.tgt"))
        assert json.loads((folder / "manifest.json").read_text())["version"] == 1
        assert "prompt_tokens" not in load_report(folder)


def test_the_cache_knows_what_was_asked_for(prepare_rows: PrepareRows) -> None:
    folder = prepare_rows(ROWS, **PAIR)
    assert prepare_rows(ROWS, **PAIR, truncate="drop", samples="documents") == folder
    assert prepare_rows(ROWS, prompt="{de}", target=" {en}") != folder
    assert prepare_rows(ROWS, prompt=PAIR["prompt"], target="{en}") != folder


def test_folders_from_before_pairs_keep_their_names(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", ROWS)
    known = source_settings(JsonlDataConfig(path=path, cache_dir=str(tmp_path)))
    assert not {"prompt", "target", "label_names", "truncate"} & known["data"].keys()
    assert known["format_version"] == 1


def test_fields_are_cleaned_and_templates_are_not(prepare_rows: PrepareRows) -> None:
    rows = [{"a": f"  <b>fat</b>\u00a0{i} \n", "b": f" yes\x07{i} "} for i in range(4)]
    folder = prepare_rows(
        rows,
        prompt="<|user|> {a} \\n<|bot|>",
        target="  {b}  ",
        clean=CleanConfig(html=True, collapse_spaces=True),
    )
    found = {*pairs_in(folder), *pairs_in(folder, "validation")}
    assert found == {(f"<|user|> fat {i} \n<|bot|>", f"  yes{i}  ") for i in range(4)}
    assert load_report(folder)["clean"]["html"]["documents"] == 4


def test_filters_judge_both_parts_and_an_empty_target_is_no_pair(
    prepare_rows: PrepareRows,
) -> None:
    rows = [
        {"a": "long enough", "b": "x"}, {"a": "long enough", "b": "y"}, {"a": "s", "b": "t"},
        {"a": "long enough", "b": None}, {"a": "long enough", "b": " \x07"},
        {"a": None, "b": "z" * 9},
    ]  # fmt: skip
    folder = prepare_rows(rows, prompt="{a}:", target=" {b}", clean=CleanConfig(min_chars=8))
    found = {*pairs_in(folder), *pairs_in(folder, "validation")}
    assert found == {
        ("long enough:", " x"), ("long enough:", " y"), (":", " " + "z" * 9),
    }  # fmt: skip
    assert load_report(folder)["clean"]["min_chars"]["dropped"] == 3


def test_duplicates_are_of_both_parts(prepare_rows: PrepareRows) -> None:
    rows = [{"de": "a", "en": "x"}, {"de": "a", "en": "y"}, {"de": "b", "en": "x"}] * 2
    folder = prepare_rows(rows, **PAIR)
    found = [*pairs_in(folder), *pairs_in(folder, "validation")]
    prompts = ("German: a\nEnglish:", "German: b\nEnglish:")
    assert sorted(found) == [(prompts[0], " x"), (prompts[0], " y"), (prompts[1], " x")]
    report = load_report(folder)
    assert report["documents"]["duplicates"] == 3
    assert report["dedup"]["exact"]["characters"] == 3 * len("German: a\nEnglish: x")


def test_near_duplicates_are_of_both_parts(prepare_rows: PrepareRows) -> None:
    words = [f"word{i}" for i in range(60)]
    rows = [
        {"de": " ".join(words), "en": " ".join(words[:40])},
        {"de": " ".join(words), "en": " ".join(words[:39]) + " other"},
        {"de": " ".join(words), "en": " ".join(f"far{i}" for i in range(60))},
    ]
    folder = prepare_rows(rows, **PAIR, dedup="near")
    assert load_report(folder)["documents"]["near_duplicates"] == 1
    assert len(pairs_in(folder)) + len(pairs_in(folder, "validation")) == 2


def test_one_pair_is_not_cut(prepare_rows: PrepareRows) -> None:
    with pytest.raises(DataError, match="one pair of prompt and target only"):
        prepare_rows(ROWS[:1] * 3, **PAIR)


def test_numbers_and_truth_values_become_text(tmp_path: Path) -> None:
    row = {"a": 3, "b": -0.5, "c": True, "d": None, "e": "é"}
    path = write_rows(tmp_path / "a.jsonl", [row, row | {"a": [1]}, row | {"a": {"x": 1}}])
    template = {"prompt": "{a} {b}", "target": "{c}{d}{e}"}
    skipped = SkipCount()
    expected = [("3 -0.5", "trueé")]
    assert texts(JsonlDataConfig(path=path, **template), skipped) == expected
    assert skipped.reasons == {"not text": 2}
    pq.write_table(pa.table({k: [v] for k, v in row.items()}), tmp_path / "a.parquet")
    parquet = ParquetDataConfig(path=str(tmp_path / "a.parquet"), **template)
    assert texts(parquet) == expected
    (tmp_path / "a.csv").write_text("a,b,c,d,e\n3,-0.5,true,,é\n")
    assert texts(CsvDataConfig(path=str(tmp_path / "a.csv"), **template)) == expected
    # The text of a document is text, as ever.
    with pytest.raises(DataError, match="'a' holds int, not text"):
        texts(JsonlDataConfig(path=path, text_key="a", errors="strict"))


def test_class_labels_become_their_names(tmp_path: Path) -> None:
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])}
    )
    rows = datasets.Dataset.from_dict(
        {"text": ["a", "b", "c"], "label": [0, 1, -1]}, features=features
    )
    rows.save_to_disk(str(tmp_path / "saved"))
    (tmp_path / "files").mkdir()
    rows.to_parquet(str(tmp_path / "files" / "a.parquet"))
    configs: list[tuple[Any, dict[str, Any]]] = [
        (HuggingFaceDataConfig, {"path": str(tmp_path / "saved")}),
        (HuggingFaceDataConfig, {"path": str(tmp_path / "files"), "streaming": True}),
        (ParquetDataConfig, {"path": str(tmp_path / "files")}),
    ]
    for kind, settings in configs:
        template = settings | {"prompt": "{text}:", "target": " {label}"}
        assert texts(kind(**template)) == [("a:", " neg"), ("b:", " pos"), ("c:", " ")]
        skipped = SkipCount()
        own = texts(kind(**template, label_names=["bad", "good"]), skipped)
        assert own == [("a:", " bad"), ("b:", " good")]
        assert skipped.reasons == {"no such label": 1}


def test_names_of_labels(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("n,label\n1,0\n2, 1\n3,2\n4,\n5,yes\n6,-1\n")
    skipped = SkipCount()
    config = CsvDataConfig(
        path=str(tmp_path / "a.csv"), prompt="{n}", target=" {label}", label_names=["no", "yes"]
    )
    assert texts(config, skipped) == [("1", " no"), ("2", " yes"), ("4", " ")]
    assert skipped.reasons == {"no such label": 3}
    assert "a.csv:4: 'label' holds '2'" in " ".join(e.text for e in skipped.examples)


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet", "huggingface"])
def test_a_field_that_is_not_there(tmp_path: Path, kind: str) -> None:
    rows = {"label": ["x", "y"], "text": ["one", "two"]}
    (tmp_path / "a.csv").write_text("label,text\nx,one\ny,two\n")
    write_rows(tmp_path / "a.jsonl", [{"label": "x", "text": "one"}])
    pq.write_table(pa.table(rows), tmp_path / "a.parquet")
    datasets.Dataset.from_dict(rows).save_to_disk(str(tmp_path / "a.huggingface"))
    kinds: dict[str, Any] = {
        "csv": CsvDataConfig, "jsonl": JsonlDataConfig, "parquet": ParquetDataConfig,
        "huggingface": HuggingFaceDataConfig,
    }  # fmt: skip
    path = str(tmp_path / f"a.{kind}")
    with pytest.raises(DataError) as caught:
        texts(kinds[kind](path=path, prompt="{text}", target=" {labels}"))
    for words in ("'labels'", "Did you mean 'label'?", "It has: label, text", "Set data.target."):
        assert words in str(caught.value)
    with pytest.raises(DataError, match=r"Set data\.prompt\."):
        texts(kinds[kind](path=path, prompt="{txt}", target=" {label}"))


def test_a_column_of_lists_is_no_text(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [[1]], "n": [1]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"'a' holds list.*Set data\.target; columns of text: n"):
        texts(ParquetDataConfig(path=str(tmp_path), target="{a}"))


def test_a_pair_is_bounded_as_a_whole(tmp_path: Path) -> None:
    rows = [{"a": "x" * 600, "b": "y" * 600}, {"a": "x" * 600, "b": "y"}]
    path = write_rows(tmp_path / "a.jsonl", rows)
    skipped = SkipCount()
    config = JsonlDataConfig(path=path, prompt="{a}", target="{b}", max_document_bytes=1300)
    assert len(texts(config, skipped)) == 2
    config = JsonlDataConfig(path=path, prompt="{a}", target="{b}{b}", max_document_bytes=1300)
    assert len(texts(config, skipped)) == 1
    assert skipped.reasons == {"too long": 1}


def test_a_shard_of_targets_that_is_damaged(prepare_rows: PrepareRows) -> None:
    folder = prepare_rows(ROWS, **PAIR)
    path = folder / "train-00000.tgt"
    whole = path.read_bytes()
    path.write_bytes(bytes(len(whole)))
    with pytest.raises(DataError, match=r"train-00000\.tgt is corrupt"):
        TokenDataset(folder, "train")
    path.unlink()
    with pytest.raises(DataError, match=r"train-00000\.tgt is missing"):
        TokenDataset(folder, "train")
