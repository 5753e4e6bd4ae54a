r"""Byte-level tokenizers: a pattern cuts text into words, and words are runs of 256 known bytes.

Radford et al. 2019 (GPT-2), section 2.2: any text comes back unchanged, none is unknown. The
library writes each byte as a printable character, a space as Ġ.
"""

import json
from typing import Any

import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers

GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_HEAD = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"

PATTERNS = (
    GPT2_PATTERN,
    _HEAD + r"\p{N}{1,3}|" + _TAIL,  # cl100k, Llama 3
    _HEAD + r"\p{N}|" + _TAIL,  # Qwen 2
    # o200k
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTIONS}?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTIONS}?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)
"""Patterns that cover every text, cut at `sample.SAFE_CUT`, and mean the same to `tiktoken`."""

CONTINUED = "##"
"""What WordPiece writes before a piece that continues a word."""


def make_byte_level(model: models.Model) -> tokenizers.Tokenizer:
    """Return GPT-2's way around `model`: its pattern, its bytes, no normaliser."""
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    backend.decoder = decoders.ByteLevel()
    return backend


def make_wordpiece_decoder() -> decoders.Decoder:
    """Return what decodes byte-level pieces, some of which have `CONTINUED` in front."""
    return decoders.Sequence([decoders.Replace(Regex(f"^{CONTINUED}"), ""), decoders.ByteLevel()])


def decoded_prefix(decoder: dict[str, Any]) -> str | None:
    """Return what a byte-level `decoder` (as JSON) takes off pieces; None: it is not one."""
    if decoder.get("type") == "ByteLevel":
        return ""
    ours = json.loads(make_wordpiece_decoder().__getstate__())
    return CONTINUED if decoder == ours else None


def make_splits(*patterns: str) -> pre_tokenizers.PreTokenizer:
    """Return a pre-tokenizer that cuts at every match of GPT-2's pattern, then of `patterns`."""
    splits = [
        pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in (GPT2_PATTERN, *patterns)
    ]
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([*splits, last])


def split_steps(settings: dict[str, Any]) -> list[str] | None:
    """Return the patterns of a byte-level pre-tokenizer in order, the first one of `PATTERNS`.

    Args:
        settings: A tokenizer of the library as JSON.

    Returns:
        The patterns, or None where it does something else too.
    """
    pre = settings.get("pre_tokenizer") or {}
    *splits, last = pre["pretokenizers"] if pre.get("type") == "Sequence" else [pre]
    if last.get("type") != "ByteLevel" or last.get("add_prefix_space"):
        return None
    found = [_isolating(split) for split in splits]
    if last.get("use_regex", True):
        found.append(GPT2_PATTERN)
    patterns = [pattern for pattern in found if pattern is not None]
    if len(patterns) < len(found) or not patterns or patterns[0] not in PATTERNS:
        return None
    return patterns


def _isolating(split: dict[str, Any]) -> str | None:
    plain = (split.get("type"), split.get("behavior"), split.get("invert", False))
    if plain != ("Split", "Isolated", False):
        return None
    return split["pattern"].get("Regex")


def gpt2_bytes() -> dict[str, int]:
    """Return which byte each character of GPT-2's printable alphabet stands for.

    Printable Latin-1 stands for itself; the other 68 bytes follow from U+0100, in order.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [b for b in range(256) if b not in set(printable)]
    byte_of = {chr(b): b for b in printable}
    return byte_of | {chr(0x100 + i): b for i, b in enumerate(rest)}


_LATIN = {ord(c): chr(b) for c, b in gpt2_bytes().items()}
_LATIN |= {b: "\uffff" for b in range(256) if b not in _LATIN}  # is in no alphabet


def token_bytes(token: str) -> bytes | None:
    """Return the bytes that the characters of `token` stand for; None: not all of them do."""
    try:
        return token.translate(_LATIN).encode("latin-1")
    except UnicodeEncodeError:
        return None


ALPHABET = tuple(sorted(gpt2_bytes()))
"""The 256 characters, in code point order."""
