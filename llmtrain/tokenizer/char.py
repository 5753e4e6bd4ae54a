"""One id a Unicode character of the corpus."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xxhash

from llmtrain.errors import DataError
from llmtrain.tokenizer.base import (
    REPLACEMENT,
    StreamDecoder,
    TokenIds,
    Utf8StreamDecoder,
    as_ids,
    file_content,
)

SHOWN = 10
"""Unknown characters that a message names."""


class CharTokenizer:
    """Ids 0 to n-1 are the characters in code point order, n is the separator."""

    name = "char"
    unknown_id = None

    def __init__(self, characters: str, separator: str) -> None:
        """Make a tokenizer of `characters`, sorted and unique."""
        self.characters = characters
        self.separator = separator
        self.separator_id = len(characters)
        self.vocab_size = len(characters) + 1
        codes = _code_points(characters)
        # One entry a code point up to the highest known one, and one more for all above it.
        self._id_of = np.full(int(codes.max(initial=0)) + 2, -1, dtype=np.int32)
        self._id_of[codes] = np.arange(len(characters), dtype=np.int32)

    @classmethod
    def train(cls, documents: Iterable[str], separator: str) -> "CharTokenizer":
        """Return the tokenizer of all characters in `documents`."""
        seen: set[str] = set()
        for text in documents:
            seen.update(text)
        return cls("".join(sorted(seen)), separator)

    def byte_lengths(self) -> npt.NDArray[np.int32]:
        """Return the UTF-8 bytes that each id stands for, shape (vocab_size,)."""
        texts = [*self.characters, self.separator]
        return np.array([len(text.encode("utf-8")) for text in texts], dtype=np.int32)

    def encode(self, text: str) -> TokenIds:
        """Return one id a character of `text`, shape (characters,).

        Raises:
            DataError: `text` has a character that the vocabulary lacks.
        """
        codes = np.minimum(_code_points(text), len(self._id_of) - 1)
        ids = self._id_of[codes]
        if ids.size and ids.min() < 0:
            raise DataError(self._unknown(text))
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[TokenIds]:
        """Return `encode` of each of `texts`."""
        return [self.encode(text) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of `ids`; an id outside the vocabulary is U+FFFD."""
        return "".join(map(self._token_text, as_ids(ids)))

    def stream_decoder(self) -> StreamDecoder:
        """Return a new decoder for ids that arrive one at a time."""
        return Utf8StreamDecoder(lambda token: self._token_text(token).encode("utf-8"))

    def save(self, path: Path) -> None:
        """Write the tokenizer to the file `path`."""
        path.write_text(json.dumps(self._content()), encoding="utf-8")

    def hash(self) -> str:
        """Return 32 hex digits of the content."""
        return xxhash.xxh3_128_hexdigest(json.dumps(self._content(), sort_keys=True).encode())

    def _content(self) -> dict[str, object]:
        return file_content(self.name, self.separator, characters=self.characters)

    def _token_text(self, token: int) -> str:
        if 0 <= token < len(self.characters):
            return self.characters[token]
        return self.separator if token == self.separator_id else REPLACEMENT

    def _unknown(self, text: str) -> str:
        unknown = sorted(set(text) - set(self.characters))
        names = ", ".join(f"{c!r} (U+{ord(c):04X})" for c in unknown[:SHOWN])
        more = f" and {len(unknown) - SHOWN} more" if len(unknown) > SHOWN else ""
        return (
            f"The character tokenizer has no id for {names}{more}: its corpus has none of them. "
            "Leave them out, or prepare with tokenizer=byte or tokenizer=bpe, which know any text."
        )


def _code_points(text: str) -> npt.NDArray[np.uint32]:
    """Return the code points of `text`, shape (characters,); lone surrogates pass."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
