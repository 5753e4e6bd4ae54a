"""One id a UTF-8 byte: nothing to train, nothing unknown."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xxhash

from llmtrain.tokenizer.base import (
    REPLACEMENT,
    StreamDecoder,
    TokenIds,
    Utf8StreamDecoder,
    as_ids,
    file_content,
)


class ByteTokenizer:
    """Ids 0-255 are the bytes, 256 is the separator."""

    name = "byte"
    vocab_size = 257
    separator_id = 256
    unknown_id = None

    def __init__(self, separator: str) -> None:
        """Make a tokenizer whose separator decodes to `separator`."""
        self.separator = separator

    def byte_lengths(self) -> npt.NDArray[np.int32]:
        """Return the UTF-8 bytes that each id stands for, shape (257,)."""
        return np.array([1] * 256 + [len(self.separator.encode("utf-8"))], dtype=np.int32)

    def encode(self, text: str) -> TokenIds:
        """Return the UTF-8 bytes of `text`, shape (bytes,)."""
        return np.frombuffer(text.encode("utf-8"), dtype=np.uint8).astype(np.int32)

    def encode_batch(self, texts: Sequence[str]) -> list[TokenIds]:
        """Return `encode` of each of `texts`."""
        return [self.encode(text) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of `ids`; what is no UTF-8 is U+FFFD."""
        return b"".join(map(self._token_bytes, as_ids(ids))).decode("utf-8", "replace")

    def stream_decoder(self) -> StreamDecoder:
        """Return a new decoder for ids that arrive one at a time."""
        return Utf8StreamDecoder(self._token_bytes)

    def save(self, path: Path) -> None:
        """Write the tokenizer to the file `path`."""
        path.write_text(json.dumps(file_content(self.name, self.separator)), encoding="utf-8")

    def hash(self) -> str:
        """Return 32 hex digits of the content."""
        content = file_content(self.name, self.separator)
        return xxhash.xxh3_128_hexdigest(json.dumps(content, sort_keys=True).encode())

    def _token_bytes(self, token: int) -> bytes:
        if 0 <= token < 256:
            return bytes((token,))
        return (self.separator if token == self.separator_id else REPLACEMENT).encode("utf-8")
