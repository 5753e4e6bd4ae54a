"""What every tokenizer can do, and how text comes out of ids one at a time.

A tokenizer has `vocab_size` ids, 0 to vocab_size-1. One of them is the separator that stands
between documents; encoding never yields it, whatever the text says: user text is not special.
"""

import codecs
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

TokenIds = npt.NDArray[np.int32]
"""Ids of one text, shape (tokens,)."""

REPLACEMENT = "\ufffd"
"""What an id outside the vocabulary, or bytes that are no UTF-8, decode to."""

FILE_FORMAT = "llmtrain-tokenizer"
FILE_VERSION = 1


class StreamDecoder(Protocol):
    """Turns ids into text as they arrive; never gives half a character."""

    def feed(self, ids: int | Iterable[int]) -> str:
        """Return the text that is complete after `ids`, possibly empty."""
        ...

    def finish(self) -> str:
        """Return what was held back; bytes that never became a character are U+FFFD."""
        ...


class Tokenizer(Protocol):
    """Text to ids and back."""

    @property
    def name(self) -> str:
        """byte | char | bpe | unigram | wordpiece | pretrained."""
        ...

    @property
    def vocab_size(self) -> int:
        """Ids run from 0 to vocab_size-1, the separator counted."""
        ...

    @property
    def separator(self) -> str:
        """The text that the separator decodes to."""
        ...

    @property
    def separator_id(self) -> int:
        """The id between documents."""
        ...

    @property
    def unknown_id(self) -> int | None:
        """The id of text that the vocabulary cannot spell, where there is one."""
        ...

    def byte_lengths(self) -> npt.NDArray[np.int32] | None:
        """Return the UTF-8 bytes that each id stands for, shape (vocab_size,).

        None: ids do not stand for the bytes of their text one by one.
        """
        ...

    def encode(self, text: str) -> TokenIds:
        """Return the ids of `text`, shape (tokens,), without a separator."""
        ...

    def encode_batch(self, texts: Sequence[str]) -> list[TokenIds]:
        """Return `encode` of each of `texts`."""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of `ids`; an id outside the vocabulary is U+FFFD."""
        ...

    def stream_decoder(self) -> StreamDecoder:
        """Return a new decoder for ids that arrive one at a time."""
        ...

    def save(self, path: Path) -> None:
        """Write everything `load_tokenizer` needs into the one file `path`."""
        ...

    def hash(self) -> str:
        """Return 32 hex digits that are equal for tokenizers that encode alike."""
        ...


class Utf8StreamDecoder:
    """Streams a tokenizer whose every id is a run of bytes."""

    def __init__(self, token_bytes: Callable[[int], bytes]) -> None:
        """Decode with `token_bytes`, the bytes of an id."""
        self._token_bytes = token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, ids: int | Iterable[int]) -> str:
        """Return the text that is complete after `ids`, possibly empty."""
        return self._decoder.decode(b"".join(map(self._token_bytes, as_ids(ids))))

    def finish(self) -> str:
        """Return what was held back."""
        return self._decoder.decode(b"", final=True)


class WholeTextStreamDecoder:
    """Streams a tokenizer that only decodes whole texts: gives what a longer text adds.

    A text that ends in U+FFFD may be half a character, so it waits, but never over
    `MAX_HELD` ids: a character has at most four bytes.
    """

    MAX_HELD = 16

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        """Decode with `decode`."""
        self._decode = decode
        self._context: list[int] = []
        self._held: list[int] = []

    def feed(self, ids: int | Iterable[int]) -> str:
        """Return the text that is complete after `ids`, possibly empty."""
        self._held.extend(as_ids(ids))
        text = self._fresh()
        if text.endswith(REPLACEMENT) and len(self._held) < self.MAX_HELD:
            return ""
        return self._release(text)

    def finish(self) -> str:
        """Return what was held back."""
        return self._release(self._fresh())

    def _fresh(self) -> str:
        # Decoded behind its left neighbours, because some decoders strip a text's first space.
        before = self._decode(self._context)
        return self._decode(self._context + self._held)[len(before) :]

    def _release(self, text: str) -> str:
        if self._held:
            self._context, self._held = (self._context + self._held)[-self.MAX_HELD :], []
        return text


def as_ids(ids: int | Iterable[int]) -> list[int]:
    """Return one id or many as a list of Python integers."""
    if isinstance(ids, int | np.integer):
        return [int(ids)]
    return [int(i) for i in ids]


def file_content(name: str, separator: str, **fields: Any) -> dict[str, Any]:
    """Return the content of a tokenizer file, ready for JSON."""
    header = {"format": FILE_FORMAT, "version": FILE_VERSION, "name": name, "separator": separator}
    return header | fields
