"""Ids by tiktoken are the ids by tokenizers, or tiktoken is not used."""

import json
import re
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, models, normalizers, pre_tokenizers, trainers

from llmtrain.config.groups.tokenizer import BPETokenizerConfig, PretrainedTokenizerConfig
from llmtrain.tokenizer import library, tiktoken_encoder
from llmtrain.tokenizer.bpe import train_bpe
from llmtrain.tokenizer.build import load_tokenizer, train_tokenizer
from llmtrain.tokenizer.byte_level import ALPHABET, PATTERNS, gpt2_bytes, make_byte_level
from llmtrain.tokenizer.hard_texts import HARD_TEXTS
from llmtrain.tokenizer.library import LibraryTokenizer
from llmtrain.tokenizer.tiktoken_encoder import TiktokenEncoder, make_encoder

CORPUS = Path(library.__file__).parents[1] / "data" / "corpus" / "shakespeare"
TEXTS = [(CORPUS / "hamlet.txt").read_text()[:150_000], *HARD_TEXTS * 3]
EVERY = "".join(map(chr, (*range(0xD800), *range(0xE000, 0x110000))))
# Without the large blocks of one class: ideographs, syllables, private use, unassigned. All of
# planes 0 to 3 took half a minute, and were alike.
VARIED = [c for c in EVERY[:0x20000] if unicodedata.category(c) not in ("Lo", "Cn", "Co")]
VARIED += [c for c in EVERY[:0x20000] if unicodedata.category(c) == "Lo"][::40]

ATOMS = st.sampled_from([part for text in HARD_TEXTS[1:4] for part in re.split(r"(?<=\w)\b", text)])
ANY_TEXT = st.lists(
    st.one_of(ATOMS, st.text(max_size=12), st.characters(exclude_categories=["Cs"]))
).map("".join)


def with_pattern(pattern: str) -> tokenizers.Tokenizer:
    backend = make_byte_level(models.BPE())
    if pattern != PATTERNS[0]:
        split = pre_tokenizers.Split(Regex(pattern), "isolated")
        last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.pre_tokenizer = pre_tokenizers.Sequence([split, last])
    return backend


def trained(pattern: str) -> tokenizers.Tokenizer:
    backend = with_pattern(pattern)
    trainer = trainers.BpeTrainer(
        vocab_size=1500,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=list(ALPHABET),
        show_progress=False,
    )
    backend.train_from_iterator(TEXTS, trainer=trainer)
    backend.encode_special_tokens = True
    return backend


def load(content: dict[str, Any] | str) -> tokenizers.Tokenizer:
    text = content if isinstance(content, str) else json.dumps(content)
    backend = tokenizers.Tokenizer.from_str(text)
    backend.encode_special_tokens = True
    return backend


def by_library(backend: tokenizers.Tokenizer, text: str) -> list[int]:
    ids: list[int] = backend.encode(text, add_special_tokens=False).ids
    return ids


def encoder_of(backend: tokenizers.Tokenizer) -> TiktokenEncoder:
    encoder = make_encoder(backend)
    assert encoder is not None
    return encoder


def by_tiktoken(encoder: TiktokenEncoder, text: str) -> list[int]:
    ids = encoder.encode(text)
    assert ids is not None
    assert ids.dtype == np.int32
    return ids.tolist()


BACKENDS = [trained(pattern) for pattern in PATTERNS]
PAIRS = [(backend, encoder_of(backend)) for backend in BACKENDS]


@given(text=ANY_TEXT)
@settings(max_examples=300, deadline=None)
def test_any_text_has_the_same_ids(text: str) -> None:
    for backend, encoder in PAIRS:
        assert by_tiktoken(encoder, text) == by_library(backend, text)


@pytest.mark.parametrize("name", [r"\p{L}", r"\p{N}", r"\s", "(?i:[sdmtlver])"])
def test_every_code_point_is_classed_alike(name: str) -> None:
    both = tiktoken_encoder.Class(name)
    ours = both.by_tiktoken(EVERY)
    assert ours == both.by_tokenizers(EVERY)
    assert len(ours) > 15


@pytest.mark.parametrize("pattern", PATTERNS[:2])
def test_every_code_point_is_cut_alike_between_others(pattern: str) -> None:
    """Merges join the ends of every character to its neighbours, unless a cut is between them."""
    first = [byte_name(b) for b in (*range(0x80), *range(0xC2, 0xF5))]
    last = [byte_name(b) for b in (*range(0x80), *range(0x80, 0xC0))]
    merges = [(left, b) for left in ("a", "Ġ", "'", "1", "Ċ", "!") for b in first]
    known = set(merges)
    merges += [
        (b, right) for right in ("a", "Ġ", "s", "1") for b in last if (b, right) not in known
    ]
    backend = with_pattern(pattern)
    pieces = [*ALPHABET, *(left + right for left, right in merges)]
    backend.model = models.BPE({piece: i for i, piece in enumerate(pieces)}, merges)
    encoder = encoder_of(backend)
    for shape in ("a{0}a {0} !{0} ", "'{0}s1{0}1\n{0}a"):
        text = "".join(map(shape.format, VARIED))
        assert by_tiktoken(encoder, text) == by_library(backend, text)


def byte_name(byte: int) -> str:
    return next(name for name, b in gpt2_bytes().items() if b == byte)


def test_ids_in_any_order_are_looked_up() -> None:
    content = json.loads(BACKENDS[0].to_str())
    vocab = content["model"]["vocab"]
    top = max(vocab.values())
    content["model"]["vocab"] = {token: top - index for token, index in vocab.items()}
    content["added_tokens"] = []
    backend = load(content)
    assert by_tiktoken(encoder_of(backend), TEXTS[0]) == by_library(backend, TEXTS[0])


Change = Callable[[dict[str, Any]], None]


def drop_last_merge(content: dict[str, Any]) -> None:
    content["model"]["merges"].pop()


def set_model(**fields: Any) -> Change:
    return lambda content: content["model"].update(fields)


def ignore_merges_with_a_token_of_none(content: dict[str, Any]) -> None:
    drop_last_merge(content)
    content["model"]["ignore_merges"] = True


def spell_one_token_twice(content: dict[str, Any]) -> None:
    model = content["model"]
    model["vocab"] |= {"zq": 5000, "qz": 5001, "zqz": 5002}
    model["merges"] += [["z", "q"], ["q", "z"], ["zq", "z"], ["z", "qz"]]


def learn_what_is_never_reached(content: dict[str, Any]) -> None:
    model = content["model"]
    model["vocab"] |= {"zq": 5000, "qz": 5001, "zqz": 5002}
    model["merges"] += [["z", "q"], ["q", "z"], ["z", "qz"]]


def use_prefix_space(content: dict[str, Any]) -> None:
    content["pre_tokenizer"]["add_prefix_space"] = True


def forget_a_byte(content: dict[str, Any]) -> None:
    del content["model"]["vocab"]["ÿ"]  # 0xFF, which no UTF-8 has, so no merge


def lower_case(content: dict[str, Any]) -> None:
    content["normalizer"] = {"type": "Lowercase"}


def use_no_pattern(content: dict[str, Any]) -> None:
    content["pre_tokenizer"]["use_regex"] = False


def split_digits(content: dict[str, Any]) -> None:
    steps = [{"type": "Digits", "individual_digits": True}, content["pre_tokenizer"]]
    content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": steps}


@pytest.mark.parametrize(
    "change",
    [
        set_model(dropout=0.1),
        set_model(end_of_word_suffix="</w>"),
        ignore_merges_with_a_token_of_none,
        spell_one_token_twice,
        learn_what_is_never_reached,
        use_prefix_space,
        forget_a_byte,
        lower_case,
        use_no_pattern,
        split_digits,
    ],
)
def test_what_is_not_proven_stays_with_the_library(change: Change) -> None:
    content = json.loads(BACKENDS[0].to_str())
    content["model"]["merges"] = content["model"]["merges"][:100]
    assert make_encoder(load(content)) is not None
    change(content)
    assert make_encoder(load(content)) is None


def test_a_token_that_merges_do_not_reach_is_not_found_by_tiktoken_either() -> None:
    content = json.loads(BACKENDS[0].to_str())
    (left, right) = content["model"]["merges"][-1]
    drop_last_merge(content)
    backend = load(content)
    assert left + right in backend.get_vocab()
    encoder = encoder_of(backend)
    for text in (*HARD_TEXTS, left + right):
        assert by_tiktoken(encoder, text) == by_library(backend, text)


def test_ignore_merges_changes_nothing_where_every_token_is_reached() -> None:
    content = json.loads(BACKENDS[1].to_str())
    content["model"]["ignore_merges"] = True
    backend = load(content)
    encoder = encoder_of(backend)
    for text in HARD_TEXTS:
        assert by_tiktoken(encoder, text) == by_library(backend, text)


def test_nfc_as_the_library_does_it() -> None:
    backend = load(BACKENDS[2].to_str())
    backend.normalizer = normalizers.NFC()
    text = "e\u0301 \u1100\u1161 \u212b na\u0308ive \u0344" + TEXTS[2]
    ids = by_tiktoken(encoder_of(backend), text)
    assert ids == by_library(backend, text)
    assert ids != by_tiktoken(PAIRS[2][1], text)


def test_tokens_that_are_not_special_are_read_by_the_library() -> None:
    backend = load(BACKENDS[0].to_str())
    backend.add_tokens([AddedToken("<tool>", normalized=False)])
    tokenizer = LibraryTokenizer(backend, "<|endoftext|>", "pretrained")
    assert tokenizer._encoder is not None
    assert tokenizer._encoder.encode("a <tool> b") is None
    assert tokenizer._encoder.encode("a <tool b") is not None
    tokenizer._encoded_chars = library.START_CHARS
    assert tokenizer.vocab_size - 1 in tokenizer.encode("a <tool> b")


def test_characters_of_another_unicode_are_left_to_the_library(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    classes = tiktoken_encoder.Class.by_tokenizers
    monkeypatch.setattr(
        tiktoken_encoder.Class, "by_tokenizers", lambda own, text: classes(own, text) - {"é", "]"}
    )
    encoder = encoder_of(BACKENDS[0])
    assert encoder.encode("café") is None
    assert encoder.encode("cafe ä") is not None
    assert encoder.encode("é") is None  # asked a second time


@pytest.mark.parametrize("run", ["a", "1", "^", "世", "ab"])
def test_a_word_of_very_many_characters(run: str) -> None:
    backend, encoder = PAIRS[0]
    text = run * (200_000 // len(run))
    assert by_tiktoken(encoder, text) == by_library(backend, text)


def test_more_spaces_than_tiktoken_has_stack_for() -> None:
    tokenizer = LibraryTokenizer(BACKENDS[0], "<|endoftext|>", "bpe")
    text = "x" + " " * 1_000_010 + "x"
    assert tokenizer._encoder is not None
    assert tokenizer._encoder.encode(text) is None
    assert tokenizer.encode_batch(["a", text])[1].tolist() == by_library(BACKENDS[0], text)


def test_a_batch_is_encoded_by_tiktoken_once_there_is_enough_text(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made = train_bpe(BPETokenizerConfig(vocab_size=1000), TEXTS)
    made.save(tmp_path / "tokenizer.json")
    before = made.encode_batch(TEXTS)
    monkeypatch.setattr(library, "START_CHARS", 0)
    encoded: list[str] = []
    encode = TiktokenEncoder.encode
    monkeypatch.setattr(
        TiktokenEncoder, "encode", lambda self, text: encoded.append(text) or encode(self, text)
    )
    made.save_huggingface(tmp_path / "plain.json")
    config = PretrainedTokenizerConfig(path=str(tmp_path / "plain.json"))
    for tokenizer in (load_tokenizer(tmp_path), train_tokenizer(config, [])):
        encoded.clear()
        after = tokenizer.encode_batch(TEXTS)
        assert encoded[-len(TEXTS) :] == TEXTS
        assert all(map(np.array_equal, before, after))
    assert load_tokenizer(tmp_path).hash() == made.hash()


def test_text_spells_no_special_token() -> None:
    tokenizer = train_bpe(BPETokenizerConfig(vocab_size=1000, separator="EOS"), ["EOS " * 99])
    tokenizer._encoded_chars = library.START_CHARS
    text = "the EOS of EOSEOS <|endoftext|> \0no special token\0"
    ids = tokenizer.encode(text)
    assert tokenizer.separator_id not in ids
    assert tokenizer.decode(ids) == text
