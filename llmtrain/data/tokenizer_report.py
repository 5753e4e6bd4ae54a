"""How well a tokenizer fits a corpus: measured on a sample of documents while they are encoded.

Several processes measure a part each, and `merge_arrays` adds them up. All is counted in integers,
and which documents are measured depends on their content, so the result depends neither on the
order of the documents nor on the number of processes.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from llmtrain.data.record import Arrays
from llmtrain.data.script import (
    FIRST_LETTER,
    KIND_NAMES,
    MARK,
    SIGN,
    SPACELESS_KINDS,
    KindTable,
)
from llmtrain.tokenizer.base import TokenIds, Tokenizer

SAMPLE_BYTES = 2_000_000
"""Text that is measured, about: a tenth of a second of work, a second where documents are of a
hundred bytes."""

SAMPLE_DOCUMENTS = 16
"""Documents that are measured at least, about, or all there are."""

MAX_BYTES = 1 << 20
"""The head of a document that is measured."""

Counts = npt.NDArray[np.int64]
"""One count a kind of characters, shape (len(KIND_NAMES),)."""


def in_sample(digest: bytes, total_bytes: int, documents: int) -> bool:
    """Say whether the document of this content hash is measured.

    Args:
        digest: Its hash. The last 8 bytes decide, for the first ones name shards in mode `hash`.
        total_bytes: UTF-8 size of the corpus.
        documents: How many the corpus has.
    """
    share = max(SAMPLE_BYTES / max(1, total_bytes), SAMPLE_DOCUMENTS / max(1, documents))
    return int.from_bytes(digest[-8:], "little") < share * 2.0**64


class TokenizerReport:
    """Counts tokens, bytes, characters and words by script, and which ids occur.

    A token is of the script of its first letter, `signs` where it has none. Where ids are not the
    bytes of their text one by one, all tokens of a document are of the script that most of its
    letters have.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Measure what `tokenizer` encodes."""
        self.vocab_size = tokenizer.vocab_size
        self._lengths = tokenizer.byte_lengths()
        self._unknown_id = tokenizer.unknown_id
        self._table = KindTable()
        self.documents = 0
        zeros = np.zeros(len(KIND_NAMES), dtype=np.int64)
        self._counts: dict[str, Counts] = {
            name: zeros.copy()
            for name in ("tokens", "bytes", "characters", "letters", "words", "unknown")
        }
        self._used: dict[int, npt.NDArray[np.bool_]] = {}  # kind -> which ids occur

    def add(self, text: str, ids: TokenIds) -> None:
        """Count one document.

        Args:
            text: The document.
            ids: What the tokenizer makes of it, without separators, shape (tokens,).
        """
        self.documents += 1
        if not ids.size:
            return
        raw = np.frombuffer(text.encode("utf-8"), dtype=np.uint8)
        ends = None if self._lengths is None else self._lengths[ids].cumsum(dtype=np.int64)
        if ends is not None and ends[-1] != raw.size:
            ends = None
        if ends is not None and raw.size > MAX_BYTES:
            raw, ends = _head(raw, ends)
            text, ids = raw.tobytes().decode("utf-8"), ids[: ends.size]
        codes = raw if text.isascii() else np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
        kinds = self._table.kinds(codes)
        self._count_words(kinds)
        if ends is None:
            self._count_document(kinds, ids, raw.size)
            return
        starts = np.concatenate([[0], ends[:-1]])
        lengths = characters = ends - starts
        byte_kinds = kinds
        if codes.size < raw.size:
            ordinals = ((raw & 0xC0) != 0x80).cumsum()  # of characters, those begun counted
            byte_kinds = kinds[ordinals - 1]
            characters = np.diff(ordinals[ends - 1], prepend=0)
        letters = np.append(np.flatnonzero(byte_kinds >= FIRST_LETTER), raw.size)
        first = letters[np.searchsorted(letters, starts)]
        token_kinds = np.append(byte_kinds, SIGN)[np.where(first < ends, first, raw.size)]
        self._add("tokens", token_kinds)
        self._add("bytes", token_kinds, lengths)
        self._add("characters", token_kinds, characters)
        self._add("unknown", token_kinds[ids == self._unknown_id])
        for kind in np.flatnonzero(np.bincount(token_kinds)).tolist():
            self._mark_used(kind, ids[token_kinds == kind])

    def arrays(self) -> Arrays:
        """Return all counts, for `merge_arrays` in another process."""
        kinds = sorted(self._used)
        masks = [np.packbits(self._used[kind]) for kind in kinds]
        return {
            "measured": np.array([self.documents], dtype=np.int64),
            "counts": np.stack(list(self._counts.values())),
            "used_kinds": np.array(kinds, dtype=np.int64),
            "used": np.stack(masks) if masks else np.zeros((0, 0), dtype=np.uint8),
        }

    def merge_arrays(self, arrays: Arrays) -> None:
        """Add what another one has counted, of the same tokenizer."""
        self.documents += int(arrays["measured"][0])
        for own, counts in zip(self._counts.values(), arrays["counts"], strict=True):
            own += counts
        for kind, mask in zip(arrays["used_kinds"].tolist(), arrays["used"], strict=True):
            self._mark_used(kind, np.flatnonzero(np.unpackbits(mask, count=self.vocab_size)))

    def to_json(self) -> dict[str, Any]:
        """Return the report, ready for JSON.

        `tokens_per_word` is the fertility. `unknown_ratio` is the share of tokens that stand for
        what the vocabulary lacks. `vocabulary_used` counts ids that occur.
        """
        used = np.zeros(self.vocab_size, dtype=bool)
        for mask in self._used.values():
            used |= mask
        whole = {name: int(counts.sum()) for name, counts in self._counts.items()}
        scripts = sorted(self._used, key=lambda kind: (-self._counts["tokens"][kind], kind))
        return {
            "documents": self.documents,
            **_ratios(whole, int(used.sum())),
            "vocabulary_used_ratio": round(int(used.sum()) / self.vocab_size, 4),
            "scripts": {KIND_NAMES[kind]: self._script(kind) for kind in scripts},
        }

    def _script(self, kind: int) -> dict[str, Any]:
        counts = {name: int(counts[kind]) for name, counts in self._counts.items()}
        ratios = _ratios(counts, int(self._used[kind].sum()))
        words = float(counts["words"])
        if kind in SPACELESS_KINDS:
            words = counts["letters"] / SPACELESS_KINDS[kind].letters_per_word
        if words:
            ratios["tokens_per_word"] = round(counts["tokens"] / words, 4)
        return ratios

    def _count_words(self, kinds: npt.NDArray[np.uint8]) -> None:
        """Count letters and words: a word starts at a letter behind none of its script."""
        letters = kinds >= FIRST_LETTER
        before = np.concatenate([np.array([SIGN], dtype=np.uint8), kinds[:-1]])
        self._add("letters", kinds[letters])
        self._add("words", kinds[letters & (before != kinds) & (before != MARK)])

    def _count_document(self, kinds: npt.NDArray[np.uint8], ids: TokenIds, text_bytes: int) -> None:
        """Count all tokens of a document for the script that most of its letters have."""
        letters = np.bincount(kinds[kinds >= FIRST_LETTER])
        kind = int(letters.argmax()) if letters.size else SIGN
        self._counts["tokens"][kind] += ids.size
        self._counts["bytes"][kind] += text_bytes
        self._counts["characters"][kind] += kinds.size
        self._counts["unknown"][kind] += int((ids == self._unknown_id).sum())
        self._mark_used(kind, ids)

    def _add(self, name: str, kinds: npt.NDArray[Any], weights: Counts | None = None) -> None:
        # Floats hold integers up to 2^53, and a document is shorter.
        counted = np.bincount(kinds, weights=weights, minlength=len(KIND_NAMES))
        self._counts[name] += counted.astype(np.int64)

    def _mark_used(self, kind: int, ids: npt.NDArray[Any]) -> None:
        if kind not in self._used:
            self._used[kind] = np.zeros(self.vocab_size, dtype=bool)
        self._used[kind][ids] = True


def _head(raw: npt.NDArray[np.uint8], ends: Counts) -> tuple[npt.NDArray[np.uint8], Counts]:
    """Return the first tokens of a document, up to the end of a character, and their bytes."""
    count = int(np.searchsorted(ends, MAX_BYTES))
    while count < ends.size and (raw[ends[count - 1]] & 0xC0) == 0x80:
        count += 1
    return raw[: ends[count - 1]], ends[:count]


def _ratios(counts: dict[str, int], used: int) -> dict[str, Any]:
    tokens = max(1, counts["tokens"])
    return {
        "tokens": counts["tokens"],
        "bytes_per_token": round(counts["bytes"] / tokens, 4),
        "characters_per_token": round(counts["characters"] / tokens, 4),
        "unknown_ratio": round(counts["unknown"] / tokens, 6),
        "vocabulary_used": used,
    }
