"""The unigram language model, trained here by the Hugging Face `tokenizers` library.

Pieces are of whole characters, learned from characters; the 256 bytes stand in for characters that
are too rare to be one. All is written byte-level, so any text comes back and none is unknown.
"""

import json
import math
from collections import Counter
from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

from llmtrain.config.groups.tokenizer import UnigramTokenizerConfig
from llmtrain.tokenizer.byte_level import ALPHABET, GPT2_PATTERN, gpt2_bytes, make_byte_level
from llmtrain.tokenizer.library import LibraryTokenizer
from llmtrain.tokenizer.sample import sample_texts

LONGEST_WORD = r"[\s\S]{1,32}"
"""Pieces into which words are cut for training: its time grows with the square of their length,
and it fails on those of a million characters."""

PENALTY_STEP = 1e-4
"""The library puts characters that its model has dropped this far apart, by a hash map's order."""

SCORE_DIGITS = 4
"""Digits of a score (a natural logarithm) that are kept. Sums of floats in the order of a hash map
differ after 14 or so; pieces whose scores differ by less than 1e-4 are equally likely."""


def train_unigram(
    config: UnigramTokenizerConfig, documents: Iterable[str], total_bytes: int | None = None
) -> LibraryTokenizer:
    """Learn pieces and their probabilities from `documents` (Kudo 2018, section 3.2).

    Ids 0 and up are the pieces, likely ones first; then come the separator and the special tokens.

    Args:
        config: Sizes and limits.
        documents: Texts to learn from; read once.
        total_bytes: UTF-8 size of them all, where known; see `sample_texts`.
    """
    texts = list(sample_texts(documents, config.train_bytes, total_bytes))
    size = config.vocab_size - len(config.special_tokens) - 1 - len(ALPHABET)
    common, rare = _split_characters(texts, most=size // 2, coverage=config.character_coverage)
    # Those of ASCII are bytes, so they have a place already.
    size += sum(map(str.isascii, common))
    pieces = _learn((text.translate(rare) for text in texts), size, config) if common else []
    byte_level = {raw: name for name, raw in gpt2_bytes().items()}
    vocab = {
        "".join(byte_level[b] for b in piece.encode("utf-8")): score for piece, score in pieces
    }
    low = min(vocab.values(), default=0.0) - 1.0
    vocab |= {name: low for name in ALPHABET if name not in vocab}
    ordered = sorted(vocab.items(), key=lambda item: (-item[1], item[0]))
    backend = make_byte_level(models.Unigram(ordered, unk_id=None, byte_fallback=False))
    return LibraryTokenizer(backend, config.separator, "unigram", config.special_tokens)


def _split_characters(
    texts: list[str], most: int, coverage: float
) -> tuple[list[str], dict[int, str]]:
    """Return the `most` frequent characters, and what the others become: the end of a word.

    Rarer ones that are not needed to cover the share `coverage` of the text are left out too.
    """
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    ranked = sorted(counts, key=lambda character: (-counts[character], character))
    needed = coverage * sum(counts.values())
    common: list[str] = []
    for character in ranked[:most]:
        if needed <= 0 and not character.isascii():
            continue
        common.append(character)
        needed -= counts[character]
    return common, {ord(character): "\n" for character in counts.keys() - set(common)}


def _learn(
    texts: Iterable[str], size: int, config: UnigramTokenizerConfig
) -> list[tuple[str, float]]:
    """Return `size` pieces of `texts` with their scores, whatever hash maps and threads did."""
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(p), "isolated") for p in (GPT2_PATTERN, LONGEST_WORD)]
    )
    trainer = trainers.UnigramTrainer(
        vocab_size=size, max_piece_length=config.max_piece_chars, show_progress=False
    )
    backend.train_from_iterator(texts, trainer=trainer)
    pieces = json.loads(backend.to_str())["model"]["vocab"]
    known = [score for _, score in pieces if score is not None]  # null is NaN
    low = min(known, default=math.log(1 / len(pieces)))
    dropped = low + PENALTY_STEP * (1 + sum(len(piece) == 1 for piece, _ in pieces))
    scored = []
    for piece, score in pieces:
        if score is None or (len(piece) == 1 and score < dropped):
            score = low
        scored.append((piece, round(score, SCORE_DIGITS)))
    return scored
