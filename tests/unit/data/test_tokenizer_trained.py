"""Tokenizers that are trained here: nothing lost, nothing unknown, the same every time."""

import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tokenizers

from llmtrain.config.groups.tokenizer import (
    BPETokenizerConfig,
    TrainedTokenizerConfig,
    UnigramTokenizerConfig,
    WordPieceTokenizerConfig,
)
from llmtrain.errors import ConfigError
from llmtrain.tokenizer import library
from llmtrain.tokenizer.base import Tokenizer
from llmtrain.tokenizer.build import load_tokenizer, train_tokenizer
from llmtrain.tokenizer.hard_texts import HARD_TEXTS
from llmtrain.tokenizer.library import LibraryTokenizer

CORPUS = Path(library.__file__).parents[1] / "data" / "corpus" / "shakespeare"
ENGLISH = (CORPUS / "hamlet.txt").read_text()[:60_000]
MARKS = ["<|user|>", "<|assistant|>"]

CONFIGS: dict[str, type[TrainedTokenizerConfig]] = {
    "bpe": BPETokenizerConfig,
    "unigram": UnigramTokenizerConfig,
    "wordpiece": WordPieceTokenizerConfig,
}
KINDS = pytest.mark.parametrize("kind", CONFIGS)


def chinese(sentences: int) -> str:
    """Sentences of words of two characters, some of them frequent, without spaces."""
    draw = random.Random(0)
    characters = [chr(0x4E00 + 7 * i) for i in range(150)]
    words = ["".join(draw.choices(characters, k=2)) for _ in range(120)]
    weights = [1 / (rank + 1) for rank in range(len(words))]
    lines = ("".join(draw.choices(words, weights, k=9)) for _ in range(sentences))
    return "。\n".join(lines)


CHINESE = chinese(500)


def train(kind: str, *texts: str, vocab_size: int = 1000, **fields: object) -> LibraryTokenizer:
    config = CONFIGS[kind](vocab_size=vocab_size, **fields)  # type: ignore[arg-type]
    tokenizer = train_tokenizer(config, texts or [ENGLISH, CHINESE])
    assert isinstance(tokenizer, LibraryTokenizer)
    return tokenizer


TRAINED = {kind: train(kind, special_tokens=MARKS) for kind in CONFIGS}


@KINDS
@pytest.mark.parametrize("text", [*HARD_TEXTS, "### a ## b#c\n##\t# ##x", "[UNK] ##ing", "z" * 500])
def test_hard_texts_come_back(kind: str, text: str) -> None:
    tokenizer = TRAINED[kind]
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.unknown_id is None
    stream = tokenizer.stream_decoder()
    assert "".join(stream.feed(int(i)) for i in ids) + stream.finish() == text
    lengths = tokenizer.byte_lengths()
    assert lengths is not None
    assert lengths[ids].sum() == len(text.encode())


@KINDS
def test_other_programs_read_the_same(kind: str, tmp_path: Path) -> None:
    TRAINED[kind].save_huggingface(tmp_path / "tokenizer.json")
    other = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in (ENGLISH[:2000], CHINESE[:500], "# ## ### a##b"):
        ids = other.encode(text).ids
        assert ids == TRAINED[kind].encode(text).tolist()
        assert other.decode(ids) == text


@KINDS
def test_pieces_are_learned(kind: str) -> None:
    tokenizer = TRAINED[kind]
    assert tokenizer.vocab_size == 1000
    for text, least in ((ENGLISH, 2.0), (CHINESE, 3.5)):  # bytes a token; a byte each would be 1
        assert len(text.encode()) / tokenizer.encode(text).size > least


@KINDS
def test_chinese_is_of_whole_characters(kind: str) -> None:
    tokenizer = train(kind, CHINESE)
    ids = tokenizer.encode(CHINESE)
    pieces = [tokenizer.decode([int(i)]) for i in ids]
    assert sum("\ufffd" not in piece for piece in pieces) > 0.95 * len(pieces)
    assert "\ufffd" not in tokenizer.decode(ids)
    assert max(map(len, pieces)) > 1  # words too


PRINT_HASH = """
import sys
from llmtrain.config.groups import tokenizer as groups
from llmtrain.tokenizer.build import train_tokenizer
text = open(sys.argv[2], encoding="utf-8").read()
config = getattr(groups, sys.argv[1])(vocab_size=900)
print(train_tokenizer(config, [text[:40000], text[40000:]]).hash())
"""


@KINDS
def test_training_twice_is_the_same(kind: str, tmp_path: Path) -> None:
    """In processes of their own: each has its own seeds of hash maps."""
    (tmp_path / "text").write_text(ENGLISH + CHINESE, encoding="utf-8")
    hashes = set()
    for threads in ("1", "2", "2"):
        command = [sys.executable, "-c", PRINT_HASH, CONFIGS[kind].__name__, tmp_path / "text"]
        environment = os.environ | {"RAYON_NUM_THREADS": threads}
        hashes.add(
            subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE).stdout
        )
    assert len(hashes) == 1


@KINDS
@pytest.mark.parametrize("texts", [[""], ["a"], ["abc abc"], ["z" * 400_000]])
def test_hardly_any_text(kind: str, texts: list[str]) -> None:
    tokenizer = train(kind, *texts)
    assert tokenizer.decode(tokenizer.encode("abc 世界")) == "abc 世界"
    assert tokenizer.vocab_size <= 1000
    assert train(kind, *texts).hash() == tokenizer.hash()


@KINDS
def test_special_tokens_are_the_last_ids_and_text_is_none(kind: str, tmp_path: Path) -> None:
    tokenizer = TRAINED[kind]
    text = "".join(f"{mark} x{mark}{mark[:-1]} {mark[1:]}" for mark in [*MARKS, "<|endoftext|>"])
    for each in (tokenizer, saved(tokenizer, tmp_path)):
        ids = each.encode(text)
        assert not np.isin(ids, [998, 999, each.separator_id]).any()
        assert each.decode(ids) == text
        assert each.decode([998, 999]) == "".join(MARKS)
        assert each.vocab_size == 1000


def saved(tokenizer: Tokenizer, folder: Path) -> Tokenizer:
    tokenizer.save(folder / "tokenizer.json")
    return load_tokenizer(folder)


@KINDS
def test_special_tokens_change_no_other_id(kind: str) -> None:
    without = train(kind, ENGLISH, vocab_size=900)
    with_marks = train(kind, ENGLISH, vocab_size=902, special_tokens=MARKS)
    assert np.array_equal(without.encode(ENGLISH), with_marks.encode(ENGLISH))
    assert without.separator_id == with_marks.separator_id


@KINDS
def test_a_separator_that_is_a_word(kind: str) -> None:
    tokenizer = train(kind, "EOS END " * 500, separator="EOS")
    ids = tokenizer.encode("EOS EOSEOS END")
    assert tokenizer.separator_id not in ids
    assert tokenizer.decode(ids) == "EOS EOSEOS END"


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        ("bpe", {"vocab_size": 257}, "must be over 257"),
        ("bpe", {"vocab_size": 259, "special_tokens": MARKS}, "must be over 259 .*2 special"),
        ("unigram", {"vocab_size": 257}, "must be over 257"),
        ("wordpiece", {"vocab_size": 513}, "must be over 513"),
        ("unigram", {"max_piece_chars": 1}, "max_piece_chars=1"),
        ("unigram", {"character_coverage": 0.0}, "character_coverage=0.0"),
        ("bpe", {"train_bytes": 0}, "train_bytes=0"),
        ("unigram", {"special_tokens": ["user"]}, "letters and a sign"),
        ("bpe", {"special_tokens": ["||"]}, "letters and a sign"),
        ("wordpiece", {"special_tokens": ["<a>", "<a>"]}, "twice"),
        ("bpe", {"special_tokens": ["<|endoftext|>"]}, "twice"),
    ],
)
def test_settings_that_cannot_be(kind: str, fields: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CONFIGS[kind](**fields)  # type: ignore[arg-type]
