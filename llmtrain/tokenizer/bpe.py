"""Byte-pair encoding, trained here by the Hugging Face `tokenizers` library."""

from collections.abc import Iterable

from tokenizers import models, trainers

from llmtrain.config.groups.tokenizer import BPETokenizerConfig
from llmtrain.tokenizer.byte_level import ALPHABET, make_byte_level, make_splits
from llmtrain.tokenizer.library import LibraryTokenizer
from llmtrain.tokenizer.sample import sample_texts

LONGEST_WORD = r"[\s\S]{1,1000}"
"""Pieces into which words are cut for training, whose time grows with the square of their length: a
word of a million letters would take minutes."""


def train_bpe(
    config: BPETokenizerConfig, documents: Iterable[str], total_bytes: int | None = None
) -> LibraryTokenizer:
    """Learn merges from `documents` (Sennrich et al. 2016, section 3.2, over bytes).

    The separator is id 0, then the bytes, then merges in the order they were learned; the special
    tokens are last, so that they change no other id.

    Args:
        config: Sizes and limits.
        documents: Texts to learn from; read once.
        total_bytes: UTF-8 size of them all, where known; see `sample_texts`.
    """
    backend = make_byte_level(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size - len(config.special_tokens),
        min_frequency=config.min_frequency,
        special_tokens=[config.separator],
        initial_alphabet=list(ALPHABET),
        show_progress=False,
    )
    used = backend.pre_tokenizer
    backend.pre_tokenizer = make_splits(LONGEST_WORD)
    texts = sample_texts(documents, config.train_bytes, total_bytes)
    backend.train_from_iterator(texts, trainer=trainer)
    backend.pre_tokenizer = used
    return LibraryTokenizer(backend, config.separator, "bpe", config.special_tokens)
