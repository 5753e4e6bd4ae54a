"""The group `tokenizer`: how text becomes ids."""

import re
from dataclasses import dataclass, field

from llmtrain.errors import require

AUTO_SEPARATOR = "auto"
LETTER = re.compile(r"[^\W\d_]")
SIGN = re.compile(r"[^\w\s']")


GIVEN_TOKENIZERS = ("byte", "pretrained")
"""Those that learn nothing from the text."""


@dataclass(kw_only=True)
class TokenizerConfig:
    """What every tokenizer has."""

    name: str
    """byte | char | bpe | unigram | wordpiece | pretrained."""
    separator: str = "<|endoftext|>"
    """The special token between documents."""


@dataclass(kw_only=True)
class ByteTokenizerConfig(TokenizerConfig):
    """One id a UTF-8 byte (256) and one for the separator. Nothing to train."""

    name: str = "byte"


@dataclass(kw_only=True)
class CharTokenizerConfig(TokenizerConfig):
    """One id a Unicode character of the corpus, and one for the separator."""

    name: str = "char"


@dataclass(kw_only=True)
class TrainedTokenizerConfig(TokenizerConfig):
    """What the byte-level tokenizers have that are trained on the corpus."""

    vocab_size: int = 8192
    """Entries in the vocabulary: bytes, separator and special tokens counted."""
    train_bytes: int = 100_000_000
    """Text it is learned from, at most, in bytes; taken evenly over the documents."""
    special_tokens: list[str] = field(default_factory=list)
    """Texts of further ids, the last ones, which text never becomes: marks of a chat, say."""

    def __post_init__(self) -> None:
        require(
            self.train_bytes > 0,
            f"tokenizer.train_bytes={self.train_bytes} must be over 0; the default is 100000000.",
        )
        names = [self.separator, *self.special_tokens]
        for token in self.special_tokens:
            # Of two kinds of characters, which no word has, so that no piece can be spelled alike.
            require(
                bool(LETTER.search(token) and SIGN.search(token)),
                f"tokenizer.special_tokens has {token!r}: it needs letters and a sign, such as "
                "'<|user|>'.",
            )
            require(
                names.count(token) == 1,
                f"tokenizer.special_tokens has {token!r} twice, or it is tokenizer.separator: "
                "leave one out.",
            )

    def _require_vocab_size(self, alphabet: int, of_what: str) -> None:
        least = alphabet + 1 + len(self.special_tokens)
        also = f" + {len(self.special_tokens)} special tokens" if self.special_tokens else ""
        require(
            self.vocab_size > least,
            f"tokenizer.vocab_size={self.vocab_size} must be over {least} ({of_what} + "
            f"separator{also}).",
        )


@dataclass(kw_only=True)
class BPETokenizerConfig(TrainedTokenizerConfig):
    """Byte-level byte-pair encoding, trained on the corpus (Sennrich et al. 2016; GPT-2)."""

    name: str = "bpe"
    min_frequency: int = 2
    """How often a pair must occur to be merged."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_vocab_size(256, "256 bytes")


@dataclass(kw_only=True)
class UnigramTokenizerConfig(TrainedTokenizerConfig):
    """Pieces of characters, each with a probability; the likeliest split wins (Kudo 2018)."""

    name: str = "unigram"
    train_bytes: int = 5_000_000
    """Text it is learned from, at most, in bytes. Learning takes up to 20 seconds a million
    bytes, the longer the fewer words repeat."""
    max_piece_chars: int = 16
    """The longest piece, in characters."""
    character_coverage: float = 0.9995
    """Share of the characters of the text that are pieces at least; rarer ones are bytes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_vocab_size(256, "256 bytes")
        require(
            self.max_piece_chars > 1,
            f"tokenizer.max_piece_chars={self.max_piece_chars} must be over 1; the default is 16.",
        )
        require(
            0 < self.character_coverage <= 1,
            f"tokenizer.character_coverage={self.character_coverage} must be over 0 and at most 1; "
            "the default is 0.9995.",
        )


@dataclass(kw_only=True)
class WordPieceTokenizerConfig(TrainedTokenizerConfig):
    """Byte-level pieces, longest first, those within a word marked ## (Devlin et al. 2019)."""

    name: str = "wordpiece"
    min_frequency: int = 2
    """How often a pair must occur to be joined."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_vocab_size(512, "256 bytes that begin a word, 256 that continue one")


@dataclass(kw_only=True)
class PretrainedTokenizerConfig(TokenizerConfig):
    """A tokenizer somebody has trained: a `tokenizer.json`, or GPT-2's vocab and merges files."""

    name: str = "pretrained"
    separator: str = AUTO_SEPARATOR
    """The special token between documents. auto: the `eos_token` of the `tokenizer_config.json` or
    `special_tokens_map.json` beside the tokenizer, where its vocabulary has it, else
    <|endoftext|>."""
    path: str | None = None
    """The `tokenizer.json`, a folder that holds one, or a folder with `vocab.json` (or
    `encoder.json`) and `merges.txt` (or `vocab.bpe`)."""
