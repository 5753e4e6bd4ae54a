"""The group `tokenizer`: how text becomes ids."""

from dataclasses import dataclass

from llmtrain.errors import require


@dataclass(kw_only=True)
class TokenizerConfig:
    """What every tokenizer has."""

    name: str
    """byte | char | bpe | pretrained."""
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
class BPETokenizerConfig(TokenizerConfig):
    """Byte-level byte-pair encoding, trained on the corpus (Sennrich et al. 2016; GPT-2)."""

    name: str = "bpe"
    vocab_size: int = 8192
    """Entries in the vocabulary, the 256 bytes and the separator counted."""
    min_frequency: int = 2
    """How often a pair must occur to be merged."""
    train_bytes: int = 100_000_000
    """Text the merges are learned from, at most, in bytes; taken evenly over the documents."""

    def __post_init__(self) -> None:
        require(
            self.vocab_size > 257,
            f"tokenizer.vocab_size={self.vocab_size} must be over 257 (256 bytes + separator).",
        )


@dataclass(kw_only=True)
class PretrainedTokenizerConfig(TokenizerConfig):
    """A tokenizer somebody has trained: a `tokenizer.json`, or GPT-2's vocab and merges files."""

    name: str = "pretrained"
    path: str | None = None
    """The `tokenizer.json`, a folder that holds one, or a folder with `vocab.json` (or
    `encoder.json`) and `merges.txt` (or `vocab.bpe`)."""
