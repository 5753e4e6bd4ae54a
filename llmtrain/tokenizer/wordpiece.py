"""WordPiece, trained here by the Hugging Face `tokenizers` library.

A word is its longest known beginning, then again the longest known piece of what is left, written
with ## in front (Devlin et al. 2019, section 3). Where BERT drops spaces, case and accents, and
reads words with an unknown character as [UNK], the words here are byte-level: all 256 bytes are
known as beginnings and as continuations, so any text comes back and none is unknown.
"""

from collections.abc import Iterable

from tokenizers import Tokenizer, models, trainers

from llmtrain.config.groups.tokenizer import WordPieceTokenizerConfig
from llmtrain.tokenizer.byte_level import ALPHABET, CONTINUED, make_splits, make_wordpiece_decoder
from llmtrain.tokenizer.library import LibraryTokenizer
from llmtrain.tokenizer.sample import sample_texts

ONE_NUMBER_SIGN = "#"
"""Each # is a word of its own, else a word that starts with ## would read as a continuation."""

LONGEST_WORD_CHARS = 32
"""Longer words are cut: looking for the longest piece takes the square of the length."""


def train_wordpiece(
    config: WordPieceTokenizerConfig, documents: Iterable[str], total_bytes: int | None = None
) -> LibraryTokenizer:
    """Learn pieces from `documents`.

    The library joins the most frequent pair, as byte-pair encoding does; Schuster and Nakajima
    2012, section 3, join the one that raises the likelihood most.

    Args:
        config: Sizes and limits.
        documents: Texts to learn from; read once.
        total_bytes: UTF-8 size of them all, where known; see `sample_texts`.
    """
    # Continuations get their ids in the order of a hash map, and ids decide between equally
    # frequent pairs (huggingface/tokenizers#1794), unless they are known from the start.
    continuations = [CONTINUED + character for character in ALPHABET]
    trainer = trainers.WordPieceTrainer(
        vocab_size=config.vocab_size - len(config.special_tokens) - 1,
        min_frequency=config.min_frequency,
        special_tokens=continuations,
        initial_alphabet=list(ALPHABET),
        continuing_subword_prefix=CONTINUED,
        show_progress=False,
    )
    trained = _make(models.WordPiece(continuing_subword_prefix=CONTINUED))
    texts = sample_texts(documents, config.train_bytes, total_bytes)
    trained.train_from_iterator(texts, trainer=trainer)
    # A new one, in which the continuations are no special tokens.
    model = models.WordPiece(
        trained.get_vocab(),
        unk_token="[UNK]",  # needed by the library, never used
        continuing_subword_prefix=CONTINUED,
        max_input_chars_per_word=4 * LONGEST_WORD_CHARS,  # which are bytes here
    )
    return LibraryTokenizer(_make(model), config.separator, "wordpiece", config.special_tokens)


def _make(model: models.Model) -> Tokenizer:
    backend = Tokenizer(model)
    backend.pre_tokenizer = make_splits(ONE_NUMBER_SIGN, rf"[\s\S]{{1,{LONGEST_WORD_CHARS}}}")
    backend.decoder = make_wordpiece_decoder()
    return backend
