"""The report counts what a slow and plain count finds, in whatever parts and order."""

import json
import pickle
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers

from llmtrain.config.groups.tokenizer import (
    BPETokenizerConfig,
    ByteTokenizerConfig,
    PretrainedTokenizerConfig,
    WordPieceTokenizerConfig,
)
from llmtrain.data import tokenizer_report
from llmtrain.data.dedup import content_digest
from llmtrain.data.script import FIRST_LETTER, KIND_NAMES, MARK, kind_of
from llmtrain.data.tokenizer_report import TokenizerReport, in_sample
from llmtrain.tokenizer.base import Tokenizer
from llmtrain.tokenizer.build import train_tokenizer
from llmtrain.tokenizer.hard_texts import HARD_TEXTS

CORPUS = [
    "the cat sat on the mat, the dog sat on the log\n" * 20,
    "世界你好，世界。" * 30,
    *HARD_TEXTS,
]
BPE = train_tokenizer(BPETokenizerConfig(vocab_size=500), CORPUS)
WORDPIECE = train_tokenizer(WordPieceTokenizerConfig(vocab_size=700), CORPUS)
BYTE = train_tokenizer(ByteTokenizerConfig(), [])
TEXTS = st.one_of(
    st.sampled_from(CORPUS), st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
)


def report_of(tokenizer: Tokenizer, texts: list[str]) -> TokenizerReport:
    report = TokenizerReport(tokenizer)
    for text in texts:
        report.add(text, tokenizer.encode(text))
    return report


def plain_count(tokenizer: Tokenizer, texts: list[str]) -> dict[str, dict[str, int]]:
    """Character by character and token by token, from bytes that decode gives."""
    lengths = tokenizer.byte_lengths()
    assert lengths is not None
    found: dict[str, Counter[str]] = defaultdict(Counter)
    used = defaultdict(set)
    for text in texts:
        before = ""
        kinds_of_bytes = []
        for character in text:
            kind = kind_of(character)
            size = len(character.encode())
            kinds_of_bytes += [(kind, i == 0) for i in range(size)]
            if kind >= FIRST_LETTER and before not in (KIND_NAMES[kind], KIND_NAMES[MARK]):
                found[KIND_NAMES[kind]]["words"] += 1
            before = KIND_NAMES[kind]
        for token in tokenizer.encode(text).tolist():
            mine = [kinds_of_bytes.pop(0) for _ in range(lengths[token])]
            name = KIND_NAMES[next((k for k, _ in mine if k >= FIRST_LETTER), 0)]
            found[name]["tokens"] += 1
            found[name]["bytes"] += len(mine)
            found[name]["characters"] += sum(begins for _, begins in mine)
            used[name].add(token)
        assert not kinds_of_bytes
    for name, tokens in used.items():
        found[name]["used"] = len(tokens)
    return {name: dict(counts) for name, counts in found.items()}


@given(texts=st.lists(TEXTS, max_size=5))
@settings(max_examples=100, deadline=None)
def test_it_counts_what_a_plain_count_finds(texts: list[str]) -> None:
    for tokenizer in (BPE, WORDPIECE, BYTE):
        got = report_of(tokenizer, texts).to_json()
        expected = plain_count(tokenizer, texts)
        assert got["documents"] == len(texts)
        assert got["tokens"] == sum(tokenizer.encode(text).size for text in texts)
        with_tokens = {n for n, c in expected.items() if c.get("tokens")}
        assert set(got["scripts"]) == with_tokens
        for name in with_tokens:
            counts, script = expected[name], got["scripts"][name]
            assert script["tokens"] == counts["tokens"]
            assert script["vocabulary_used"] == counts["used"]
            for unit in ("bytes", "characters"):
                ratio = counts.get(unit, 0) / counts["tokens"]
                assert script[f"{unit}_per_token"] == pytest.approx(ratio, abs=1e-4)
            if name == "latin":
                fertility = counts["tokens"] / counts["words"]
                assert script["tokens_per_word"] == pytest.approx(fertility, abs=1e-4)


@given(texts=st.lists(TEXTS, max_size=6), cut=st.integers(0, 6), swap=st.booleans())
@settings(max_examples=50, deadline=None)
def test_parts_merge_to_the_whole_in_any_order(texts: list[str], cut: int, swap: bool) -> None:
    parts = [report_of(BPE, texts[:cut]), report_of(BPE, texts[cut:])]
    first, second = reversed(parts) if swap else parts
    merged = pickle.loads(pickle.dumps(first))  # as it comes from another process
    merged.merge_arrays(second.arrays())
    assert json.dumps(merged.to_json()) == json.dumps(report_of(BPE, texts).to_json())


def test_numbers_that_can_be_told_beforehand() -> None:
    report = report_of(BYTE, ["ab, cé", "世界", "ひら1"]).to_json()
    assert report["tokens"] == report["scripts"]["latin"]["tokens"] + 6 + 6 + 3
    assert report["vocabulary_used"] == len(set("ab, cé世界ひら1".encode()))
    scripts: dict[str, dict[str, Any]] = report["scripts"]
    assert list(scripts) == ["hiragana", "han", "latin", "signs"]
    assert scripts["latin"]["tokens_per_word"] == 2.5  # ab, cé: five bytes
    assert scripts["han"]["tokens_per_word"] == 5.4  # three bytes a character, 1.8 make a word
    assert scripts["han"]["characters_per_token"] == 0.3333
    assert scripts["signs"]["tokens"] == 3
    assert "tokens_per_word" not in scripts["signs"]


@pytest.mark.parametrize(
    ("characters", "name"),
    [
        ("aÉßﬁＡ", "latin"), ("Ωἀ", "greek"), ("жЇ", "cyrillic"),
        ("世々〇㐀𠀀\U000323b0豈", "han"),
        ("あ", "hiragana"), ("アｱー", "katakana"), ("한ᄒ", "hangul"), ("กข", "thai"),
        ("नम", "devanagari"), ("مﷺ", "arabic"), ("שﬡ", "hebrew"), ("ა", "georgian"),
        ("ሰ", "ethiopic"), ("𐌰𓀀", "other"),
        (" 1½😀。!٣", "signs"), ("\u0301\u3099\u094d", "marks"),
    ],
)  # fmt: skip
def test_scripts_of_characters(characters: str, name: str) -> None:
    assert {KIND_NAMES[kind_of(c)] for c in characters} == {name}


def write_lossy(path: Path) -> PretrainedTokenizerConfig:
    vocab = {"<unk>": 0, "hello": 1, "world": 2}
    backend = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    path.write_text(backend.to_str())
    return PretrainedTokenizerConfig(path=str(path))


def test_unknown_tokens_of_a_tokenizer_that_loses_text(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(write_lossy(tmp_path / "tokenizer.json"), [])
    report = report_of(tokenizer, ["hello world hello", "hello 世界 你好", "世界 你好 吗", "", " "])
    answer = report.to_json()
    assert answer["documents"] == 5
    assert answer["unknown_ratio"] == pytest.approx(5 / 9, abs=1e-6)
    assert answer["scripts"]["latin"]["tokens"] == 6
    assert answer["scripts"]["han"]["unknown_ratio"] == 1.0
    assert answer["scripts"]["latin"]["bytes_per_token"] == round((17 + 19) / 6, 4)


def test_the_head_of_a_long_document(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "世" * 500  # three tokens each: the byte tokenizer
    for limit in (299, 300, 301):
        monkeypatch.setattr(tokenizer_report, "MAX_BYTES", limit)
        assert report_of(BYTE, [text]).to_json()["tokens"] in (300, 303)


def test_the_sample_is_a_share_that_content_decides() -> None:
    digests = [content_digest(str(i).encode()) for i in range(4000)]
    many = [in_sample(d, 100 * tokenizer_report.SAMPLE_BYTES, 4000) for d in digests]
    assert 15 < sum(many) < 70  # 40 expected, 6 the deviation
    assert all(in_sample(d, tokenizer_report.SAMPLE_BYTES, 4000) for d in digests)
    few = [in_sample(d, 10**12, tokenizer_report.SAMPLE_DOCUMENTS) for d in digests[:16]]
    assert all(few)
    fewer = [in_sample(d, 200 * tokenizer_report.SAMPLE_BYTES, 4000) for d in digests]
    assert all(more or not less for more, less in zip(many, fewer, strict=True))


def test_arrays_stay_as_they_were() -> None:
    ids = BPE.encode(CORPUS[0])
    before = ids.copy()
    TokenizerReport(BPE).add(CORPUS[0], ids)
    assert np.array_equal(ids, before)
