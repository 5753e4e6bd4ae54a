"""Tokens that people can read: whole characters, none lost, none made up."""

import functools
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtrain.config.groups.tokenizer import BPETokenizerConfig
from llmtrain.tokenizer.base import REPLACEMENT, Tokenizer
from llmtrain.tokenizer.bpe import train_bpe
from llmtrain.tokenizer.byte import ByteTokenizer
from llmtrain.tokenizer.pieces import CONTEXT, split_pieces

ALPHABET = "ab \n永和九年歲在癸丑暮春之初é👩‍🚀"
"""Characters of one to four bytes, of which the tokenizers below know none but the first as one."""


@functools.cache
def tokenizer_of(name: str) -> Tokenizer:
    if name == "byte":
        return ByteTokenizer("<|endoftext|>")
    # Merges of bytes across characters: what a BPE makes of Chinese that it has seen little of.
    return train_bpe(BPETokenizerConfig(vocab_size=275), ["永和九年歲在癸丑暮春之初" * 20, "ab ab"])


@pytest.mark.parametrize("name", ["byte", "bpe"])
@given(text=st.text(ALPHABET, max_size=40), data=st.data())
def test_stretches_of_pieces_are_the_text(name: str, text: str, data: st.DataObject) -> None:
    """Wherever a text is cut, each token is in one stretch, and no half character is anywhere."""
    tokenizer = tokenizer_of(name)
    ids = [*tokenizer.encode(text).tolist(), tokenizer.separator_id]
    cuts = data.draw(st.lists(st.integers(0, len(ids)), max_size=3))
    edges = sorted({0, *cuts, len(ids)})
    pieces = []
    for start, end in itertools.pairwise(edges):
        before = max(0, start - CONTEXT)
        near = ids[before : end + CONTEXT]
        pieces += split_pieces(tokenizer, near, start - before, end - before)
    assert "".join(piece.text for piece in pieces) == text + tokenizer.separator
    assert [id for piece in pieces for id in piece.ids] == ids
    assert not any(REPLACEMENT in piece.text for piece in pieces)


def test_half_characters_go_to_the_token_that_completes_them() -> None:
    tokenizer = tokenizer_of("byte")
    pieces = split_pieces(tokenizer, tokenizer.encode("a永é").tolist())
    assert [piece.text for piece in pieces] == ["a", "永", "é"]
    assert [len(piece.ids) for piece in pieces] == [1, 3, 2]


def test_a_replacement_character_of_the_text_is_shown() -> None:
    tokenizer = tokenizer_of("byte")
    pieces = split_pieces(tokenizer, tokenizer.encode("a\ufffdb").tolist())
    assert [piece.text for piece in pieces] == ["a", REPLACEMENT, "b"]
