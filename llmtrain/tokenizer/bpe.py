"""Byte-pair encoding by the Hugging Face `tokenizers` library: trained here, or given.

Byte-level (Radford et al. 2019, GPT-2, section 2.2): every text is a run of 256 known bytes, so any
text comes back unchanged and no id stands for "unknown".
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import xxhash
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers

from llmtrain.config.groups.tokenizer import BPETokenizerConfig
from llmtrain.tokenizer.base import (
    REPLACEMENT,
    StreamDecoder,
    TokenIds,
    Utf8StreamDecoder,
    WholeTextStreamDecoder,
    as_ids,
    file_content,
)

CHUNK_CHARS = 1 << 20
"""Longer texts are encoded in pieces of about this many characters: less memory, more threads."""

# One line end between two characters that are no whitespace: GPT-2's pattern always cuts there, so
# encoding the two sides one by one gives the same ids.
SAFE_CUT = re.compile(r"(?<=\S)\n(?=\S)")


class BPETokenizer:
    """A tokenizer of the `tokenizers` library with a separator that text cannot spell."""

    def __init__(self, backend: tokenizers.Tokenizer, separator: str, name: str = "bpe") -> None:
        """Wrap `backend`; the separator is added where its vocabulary lacks it."""
        self.name = name
        self.separator = separator
        backend.no_truncation()
        backend.no_padding()
        backend.add_special_tokens([AddedToken(separator, normalized=False, special=True)])
        backend.encode_special_tokens = True  # text that looks like a special token is plain text
        self._backend = backend
        vocab = backend.get_vocab(with_added_tokens=True)
        self.separator_id = vocab[separator]
        self.vocab_size = max(vocab.values()) + 1  # ids may have holes
        settings = json.loads(backend.to_str())
        self._bytes_of = _byte_level_tokens(backend, vocab, settings)
        self._cuttable = _cuts_at_line_ends(settings)

    def encode(self, text: str) -> TokenIds:
        """Return the ids of `text`, shape (tokens,), without a separator."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[TokenIds]:
        """Return the ids of each of `texts`; uses every core."""
        pieces = [list(cut_text(text)) if self._cuttable else [text] for text in texts]
        flat = [piece for text_pieces in pieces for piece in text_pieces]
        encodings = iter(self._backend.encode_batch_fast(flat, add_special_tokens=False))
        out = []
        for text, text_pieces in zip(texts, pieces, strict=True):
            parts = [np.array(next(encodings).ids, dtype=np.int32) for _ in text_pieces]
            ids = parts[0] if len(parts) == 1 else np.concatenate(parts)
            out.append(self._without_separator(text, ids))
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
        path.write_text(json.dumps(self._content(), ensure_ascii=False), encoding="utf-8")

    def save_huggingface(self, path: Path) -> None:
        """Write the plain `tokenizer.json` of the `tokenizers` library to the file `path`."""
        path.write_text(self._backend.to_str(), encoding="utf-8")

    def hash(self) -> str:
        """Return 32 hex digits of the content."""
        return xxhash.xxh3_128_hexdigest(json.dumps(self._content(), sort_keys=True).encode())

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


def train_bpe(
    config: BPETokenizerConfig, documents: Iterable[str], total_bytes: int | None = None
) -> BPETokenizer:
    """Learn merges from `documents` (Sennrich et al. 2016, section 3.2, over bytes).

    Args:
        config: Sizes and limits.
        documents: Texts to learn from; read once.
        total_bytes: UTF-8 size of them all. Known, `train_bytes` is spread evenly over the
            documents (the head of each); unknown, documents are taken until it is used up.
    """
    backend = make_byte_level(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        min_frequency=config.min_frequency,
        special_tokens=[config.separator],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    texts = _sample(documents, config.train_bytes, total_bytes)
    backend.train_from_iterator(texts, trainer=trainer)
    return BPETokenizer(backend, config.separator)


def make_byte_level(model: models.Model) -> tokenizers.Tokenizer:
    """Return GPT-2's way around `model`: its pattern, its bytes, no normaliser."""
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    backend.decoder = decoders.ByteLevel()
    return backend


def _sample(documents: Iterable[str], limit: int, total: int | None) -> Iterator[str]:
    """Yield about `limit` bytes of `documents`: the same share of each where `total` is known."""
    share = min(1.0, limit / total) if total else 1.0
    left = limit
    for text in documents:
        if left <= 0:
            return
        part = text if share == 1.0 else text[: max(1, round(len(text) * share))]
        left -= len(part.encode("utf-8"))
        yield from cut_text(part)


def cut_text(text: str) -> Iterator[str]:
    """Yield a long `text` in pieces of about `CHUNK_CHARS`, cut where GPT-2's pattern cuts too."""
    start = 0
    while len(text) - start > CHUNK_CHARS:
        cut = SAFE_CUT.search(text, start + CHUNK_CHARS // 2)
        if cut is None:
            break
        yield text[start : cut.end()]
        start = cut.end()
    yield text[start:]


def _byte_level_tokens(
    backend: tokenizers.Tokenizer, vocab: dict[str, int], settings: dict[str, Any]
) -> dict[int, bytes] | None:
    """Return the bytes of every id, or None where ids are not plain bytes."""
    if (settings.get("decoder") or {}).get("type") != "ByteLevel":
        return None
    byte_of = gpt2_bytes()
    added = backend.get_added_tokens_decoder()
    bytes_of = {}
    for token, index in vocab.items():
        if index in added or not all(c in byte_of for c in token):
            bytes_of[index] = token.encode("utf-8")
        else:
            bytes_of[index] = bytes(byte_of[c] for c in token)
    return bytes_of


def _cuts_at_line_ends(settings: dict[str, Any]) -> bool:
    """Say whether `SAFE_CUT` changes no id: GPT-2's own pattern, without a normaliser."""
    pre = settings.get("pre_tokenizer") or {}
    plain = pre.get("type") == "ByteLevel" and pre.get("use_regex", True)
    return bool(plain and not pre.get("add_prefix_space") and not settings.get("normalizer"))


def gpt2_bytes() -> dict[str, int]:
    """Return which byte each character of GPT-2's printable alphabet stands for.

    Printable Latin-1 stands for itself; the other 68 bytes follow from U+0100, in order.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [b for b in range(256) if b not in set(printable)]
    byte_of = {chr(b): b for b in printable}
    return byte_of | {chr(0x100 + i): b for i, b in enumerate(rest)}
