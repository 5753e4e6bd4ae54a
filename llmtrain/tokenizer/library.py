"""A tokenizer of the Hugging Face `tokenizers` library, trained here or given."""

import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tokenizers
import xxhash
from tokenizers import AddedToken

from llmtrain.errors import DataError
from llmtrain.tokenizer.base import (
    REPLACEMENT,
    StreamDecoder,
    TokenIds,
    Utf8StreamDecoder,
    WholeTextStreamDecoder,
    as_ids,
    file_content,
)
from llmtrain.tokenizer.byte_level import decoded_prefix, split_steps, token_bytes
from llmtrain.tokenizer.sample import cut_text
from llmtrain.tokenizer.tiktoken_encoder import TiktokenEncoder, make_encoder

START_CHARS = 1 << 20
"""Text after which `tiktoken` is made ready, which takes a good part of a second."""


class LibraryTokenizer:
    """A tokenizer of the `tokenizers` library whose special tokens text cannot spell."""

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        separator: str,
        name: str,
        special_tokens: Sequence[str] = (),
    ) -> None:
        """Wrap `backend`; `separator`, then `special_tokens` are added where it lacks them.

        Raises:
            DataError: one that is added gets the id of another token.
        """
        self.name = name
        self.separator = separator
        backend.no_truncation()
        backend.no_padding()
        for special in (separator, *special_tokens):
            backend.add_special_tokens([AddedToken(special, normalized=False, special=True)])
        backend.encode_special_tokens = True  # text that looks like a special token is plain text
        self._backend = backend
        vocab = backend.get_vocab(with_added_tokens=True)
        # The library counts tokens to find the next id, and ids may have holes.
        if len(set(vocab.values())) < len(vocab):
            raise DataError(
                f"The tokenizer has another token under the id {vocab[separator]} of its separator "
                f"{separator!r}: set tokenizer.separator to a token that its vocabulary has."
            )
        self.separator_id = vocab[separator]
        self.vocab_size = max(vocab.values()) + 1  # ids may have holes
        settings = json.loads(backend.to_str())
        self.unknown_id = _unknown_id(settings["model"])
        self._settings = settings | {"model": None}
        self._cuttable = bool(split_steps(settings) and not settings.get("normalizer"))
        self._encoded_chars = 0

    @cached_property
    def _byte_lengths(self) -> npt.NDArray[np.int32] | None:
        if self._bytes_of is None:
            return None
        lengths = np.zeros(self.vocab_size, dtype=np.int32)
        lengths[list(self._bytes_of)] = [len(raw) for raw in self._bytes_of.values()]
        return lengths

    def byte_lengths(self) -> npt.NDArray[np.int32] | None:
        """Return the UTF-8 bytes that each id stands for, shape (vocab_size,); 0 in holes.

        None: ids do not stand for the bytes of their text one by one.
        """
        return self._byte_lengths

    def encode(self, text: str) -> TokenIds:
        """Return the ids of `text`, shape (tokens,), without a separator."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[TokenIds]:
        """Return the ids of each of `texts`.

        Byte-level BPE is encoded by `tiktoken` in this thread, once there has been enough text.
        All else is by `tokenizers`, whose number of threads the caller sets before the first call:
        TOKENIZERS_PARALLELISM=false for this thread alone, RAYON_NUM_THREADS for so many.
        """
        self._encoded_chars += sum(map(len, texts))
        encoder = self._encoder if self._encoded_chars >= START_CHARS else None
        out: list[TokenIds | None] = [None] * len(texts)
        if encoder:
            out = [encoder.encode(text) for text in texts]
        left = [number for number, ids in enumerate(out) if ids is None]
        again = iter(self._encode_by_library([texts[number] for number in left]))
        every = [next(again) if ids is None else ids for ids in out]
        if encoder and not left and self.separator_id not in encoder.ids:
            return every
        return list(map(self._without_separator, texts, every))

    @cached_property
    def _bytes_of(self) -> dict[int, bytes] | None:
        vocab = self._backend.get_vocab(with_added_tokens=True)
        return _byte_level_tokens(self._backend, vocab, self._settings)

    @cached_property
    def _encoder(self) -> TiktokenEncoder | None:
        return make_encoder(self._backend)

    def _encode_by_library(self, texts: Sequence[str]) -> list[TokenIds]:
        pieces = [list(cut_text(text)) if self._cuttable else [text] for text in texts]
        flat = [piece for text_pieces in pieces for piece in text_pieces]
        encodings = iter(self._backend.encode_batch_fast(flat, add_special_tokens=False))
        out = []
        for text_pieces in pieces:
            parts = [np.array(next(encodings).ids, dtype=np.int32) for _ in text_pieces]
            out.append(parts[0] if len(parts) == 1 else np.concatenate(parts))
        return out

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of `ids`; an id outside the vocabulary is U+FFFD."""
        if self._bytes_of is not None:
            return b"".join(map(self._token_bytes, as_ids(ids))).decode("utf-8", "replace")
        return self._decode_whole(as_ids(ids))

    def stream_decoder(self) -> StreamDecoder:
        """Return a new decoder for ids that arrive one at a time."""
        if self._bytes_of is not None:
            return Utf8StreamDecoder(self._token_bytes)
        return WholeTextStreamDecoder(self._decode_whole)

    def save(self, path: Path) -> None:
        """Write the tokenizer to the file `path`."""
        path.write_text(json.dumps(self._content, ensure_ascii=False), encoding="utf-8")

    def save_huggingface(self, path: Path) -> None:
        """Write the plain `tokenizer.json` of the `tokenizers` library to the file `path`."""
        path.write_text(self._backend.to_str(), encoding="utf-8")

    def hash(self) -> str:
        """Return 32 hex digits of the content."""
        return self._hash

    @cached_property
    def _hash(self) -> str:
        return xxhash.xxh3_128_hexdigest(json.dumps(self._content, sort_keys=True).encode())

    @cached_property
    def _content(self) -> dict[str, Any]:
        backend = json.loads(self._backend.to_str())
        return file_content(self.name, self.separator, tokenizer=backend)

    def _without_separator(self, text: str, ids: TokenIds) -> TokenIds:
        """Encode again, cut inside each separator, a `text` that the vocabulary reads as one."""
        if not (ids == self.separator_id).any():
            return ids
        half = max(1, len(self.separator) // 2)
        head, tail = self.separator[:half], self.separator[half:]
        first, *others = text.split(self.separator)
        pieces = [first]
        for other in others:
            pieces[-1] += head
            pieces.append(tail + other)
        encodings = self._backend.encode_batch_fast(pieces, add_special_tokens=False)
        again = np.concatenate([np.array(e.ids, dtype=np.int32) for e in encodings])
        return again[again != self.separator_id]

    def _token_bytes(self, token: int) -> bytes:
        assert self._bytes_of is not None
        return self._bytes_of.get(token, _REPLACEMENT_BYTES)

    def _decode_whole(self, ids: list[int]) -> str:
        known: list[list[int]] = [[]]
        for token in ids:
            if self._backend.id_to_token(token) if 0 <= token < self.vocab_size else None:
                known[-1].append(token)
            else:
                known.append([])
        return REPLACEMENT.join(self._backend.decode(k, skip_special_tokens=False) for k in known)


_REPLACEMENT_BYTES = REPLACEMENT.encode("utf-8")


def _byte_level_tokens(
    backend: tokenizers.Tokenizer, vocab: dict[str, int], settings: dict[str, Any]
) -> dict[int, bytes] | None:
    """Return the bytes of every id, or None where ids are not plain bytes."""
    prefix = decoded_prefix(settings.get("decoder") or {})
    if prefix is None:
        return None
    added = backend.get_added_tokens_decoder()
    bytes_of = {}
    for token, index in vocab.items():
        raw = None if index in added else token_bytes(token.removeprefix(prefix))
        bytes_of[index] = token.encode("utf-8") if raw is None else raw
    return bytes_of


def _unknown_id(model: dict[str, Any]) -> int | None:
    """Return the id that stands for what the vocabulary lacks, where there is one."""
    if "unk_id" in model:
        return model["unk_id"]
    return model["vocab"].get(model.get("unk_token"))
