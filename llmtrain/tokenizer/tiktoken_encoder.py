"""The same ids, several times faster: byte-level BPE encoded by `tiktoken`.

`tokenizers` joins the pairs that its list of merges names, in the order of the list. `tiktoken`
joins any two neighbours that together spell a token, lowest rank first, and takes a whole word that
is a token at once. Both give the same ids where every token, encoded alone from its merges, is
itself. For then, whenever two neighbours spell a token, the bytes between their outer ends have so
far been joined as they are when the token is encoded alone, of which the only state of two parts is
the pair that the list names.

What cannot be proven to be alike is left to `tokenizers`: `make_encoder` returns None for a
tokenizer, `TiktokenEncoder.encode` for a text.
"""

import json
import re
import sys
from typing import Any

import numpy as np
import numpy.typing as npt
import tiktoken
import tokenizers
from tokenizers import Regex, models, pre_tokenizers

from llmtrain.tokenizer.base import TokenIds
from llmtrain.tokenizer.byte_level import gpt2_bytes, split_steps, token_bytes
from llmtrain.tokenizer.hard_texts import HARD_TEXTS

# tiktoken looks for special tokens in every text; with none at all, at every byte of it.
NO_SPECIAL = "\0no special token\0"

LOOK_AHEAD = r"|\s+(?!\S)"

CLASS = re.compile(r"\\p\{\w+\}|\\s|\(\?i:")


class TiktokenEncoder:
    """Encodes by `tiktoken` what `make_encoder` has found to be alike."""

    def __init__(
        self,
        pattern: str,
        ranks: dict[bytes, int],
        ids: list[int],
        normalizer: Any,
        others: list[str],
    ) -> None:
        """Encode with one pattern and one table of ranks.

        Args:
            pattern: One of `byte_level.PATTERNS`.
            ranks: Bytes of each token, and when it is merged: 0 to n-1.
            ids: The token of each rank, shape (n,).
            normalizer: That of the tokenizer, or None.
            others: Texts that `tokenizers` reads as one token although they are not special.
        """
        self._encoding = tiktoken.Encoding(
            "llmtrain",
            pat_str=grouped(pattern),
            mergeable_ranks=ranks,
            special_tokens={NO_SPECIAL: len(ranks)},
        )
        self.ids: TokenIds = np.array(ids, dtype=np.int32)
        """All that it can give."""
        self._normalizer = normalizer
        self._others = others
        self._classes = Classes(pattern)

    def encode(self, text: str) -> TokenIds | None:
        """Return the ids of `text`, shape (tokens,), or None where `tokenizers` has to do it."""
        if self._others and any(other in text for other in self._others):
            return None
        if self._normalizer is not None and not text.isascii():
            text = self._normalizer.normalize_str(text)
        if not text.isascii() and not self._classes.are_alike(text):
            return None
        try:
            ranks: npt.NDArray[np.uint32] = self._encoding.encode_to_numpy(
                text, disallowed_special=()
            )
        except ValueError:  # its pattern has no stack for a million spaces in a row
            return None
        return self.ids.take(ranks)


def make_encoder(backend: tokenizers.Tokenizer) -> TiktokenEncoder | None:
    """Return an encoder that gives the ids of `backend`, or None where that is not proven.

    Beside the proof of the module's head, `HARD_TEXTS` are encoded both ways.
    """
    settings = json.loads(backend.to_str())
    added = settings["added_tokens"]
    others = [token["content"] for token in added if not token["special"]]
    steps = split_steps(settings)
    normalizer = settings.get("normalizer")
    if settings["model"]["type"] != "BPE" or not steps or len(steps) > 1:
        return None
    # NFC changes no ASCII, which `encode` relies on, and no normalised token is looked for in it.
    if normalizer and (normalizer["type"] != "NFC" or any(_normalized(t) for t in added)):
        return None
    table = _ranks(settings["model"], {token["content"] for token in added})
    if table is None:
        return None
    encoder = TiktokenEncoder(steps[0], *table, backend.normalizer, others)
    for text in HARD_TEXTS:
        ids = encoder.encode(text)
        expected = backend.encode(text, add_special_tokens=False).ids
        if ids is not None and ids.tolist() != expected:
            return None
    return encoder


def _normalized(token: dict[str, Any]) -> bool:
    return bool(token["normalized"] and not token["special"])


def _ranks(model: dict[str, Any], added: set[str]) -> tuple[dict[bytes, int], list[int]] | None:
    """Return the rank of each token and the token of each rank, where the proof holds."""
    vocab, merges = model["vocab"], model["merges"]
    byte_of = gpt2_bytes()
    if model.get("dropout") or not byte_of.keys() <= vocab.keys():
        return None
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        return None
    pieces = list(byte_of) + [left + right for left, right in merges]
    distinct = len(set(pieces)) == len(pieces)
    if not distinct or not byte_of.keys() >= set().union(*pieces):
        return None
    if model.get("ignore_merges") and not vocab.keys() - added <= set(pieces):
        return None  # a whole word may be a token that merges do not reach
    # Without a pattern: each token is one word.
    alone = tokenizers.Tokenizer(models.BPE(vocab, [(left, right) for left, right in merges]))
    ids = [vocab[piece] for piece in pieces]
    for token, encoding in zip(ids, alone.encode_batch_fast(pieces), strict=True):
        if encoding.ids != [token]:
            return None
    return {token_bytes(piece) or b"": rank for rank, piece in enumerate(pieces)}, ids


def grouped(pattern: str) -> str:
    """Return `pattern` with all that comes before its look-ahead in one group.

    It means the same. The library's regular expressions give a part without a look-ahead to an
    automaton that reads each character once, and try parts that stand apart one after another:
    grouped, encoding is 1.3 to 1.9 times as fast.
    """
    head, found, tail = pattern.partition(LOOK_AHEAD)
    return f"(?:{head}){found}{tail}"


class Classes:
    """Which characters the two libraries class alike in a pattern.

    Their tables come from versions of Unicode of their own. Each character is asked about when it
    comes up for the first time.
    """

    _UNKNOWN, _ALIKE, _APART = 0, 1, 2

    def __init__(self, pattern: str) -> None:
        """Compare the classes that `pattern` names."""
        names = sorted(set(CLASS.findall(pattern)))
        self._classes = [Class("(?i:[sdmtlver])" if n == "(?i:" else n) for n in names]
        self._states = np.zeros(sys.maxunicode + 1, dtype=np.uint8)

    def are_alike(self, text: str) -> bool:
        """Say whether all characters of `text` are classed alike."""
        codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
        states = self._states[codes]
        if states.min(initial=self._APART) == self._UNKNOWN:
            self._compare(np.unique(codes[states == self._UNKNOWN]))
            states = self._states[codes]
        return bool(states.max(initial=self._ALIKE) == self._ALIKE)

    def _compare(self, codes: npt.NDArray[np.uint32]) -> None:
        characters = codes.astype("<u4").tobytes().decode("utf-32-le", "surrogatepass")
        apart: set[str] = set()
        for each in self._classes:
            apart |= each.by_tiktoken(characters) ^ each.by_tokenizers(characters)
        self._states[codes] = self._ALIKE
        self._states[[ord(character) for character in apart]] = self._APART


class Class:
    """One class of characters, such as \\p{L}, in both libraries."""

    def __init__(self, pattern: str) -> None:
        """Ask about the characters that match `pattern`."""
        single = {bytes([byte]): byte for byte in range(256)}
        self._tiktoken = tiktoken.Encoding(
            "class", pat_str=pattern, mergeable_ranks=single, special_tokens={}
        )
        # Runs of them, as (text, offsets).
        self._tokenizers = pre_tokenizers.Split(Regex(f"(?:{pattern})+"), "removed", invert=True)

    def by_tiktoken(self, characters: str) -> set[str]:
        """Return those of `characters` that match."""
        return set(bytes(self._tiktoken.encode_ordinary(characters)).decode("utf-8"))

    def by_tokenizers(self, characters: str) -> set[str]:
        """Return those of `characters` that match."""
        found = self._tokenizers.pre_tokenize_str(characters)
        return {character for run, _ in found for character in run}
