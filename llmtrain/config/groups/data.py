"""The group `data`: where text comes from and how it becomes samples, one dataclass a source."""

from dataclasses import dataclass, field

from llmtrain.config.groups.clean import CleanConfig
from llmtrain.config.groups.dedup import NearConfig
from llmtrain.errors import require, require_choice

SAMPLES = ("windows", "masked_windows", "documents", "packed")

OLD_DEDUP = {True: "exact", False: "none"}
"""What `data.dedup` was in configurations written before it had three values."""


@dataclass(kw_only=True)
class DataConfig:
    """What every source has."""

    name: str
    """shakespeare | text | jsonl | parquet | huggingface | synthetic."""
    clean: CleanConfig = field(default_factory=CleanConfig)
    """Cleaning rules."""
    dedup: str = "exact"
    """Which documents are dropped: none | exact (cleaned text seen before, by 128-bit hash) | near
    (exact, and those that share most of their n-grams with one that is kept, see data.near)."""
    near: NearConfig = field(default_factory=NearConfig)
    """What counts as a near-duplicate, where data.dedup=near."""
    encoding_errors: str = "replace"
    """Bytes that are not UTF-8: replace (counted, U+FFFD) | strict (refused)."""
    val_ratio: float = 0.05
    """Share of the text held out for validation, whole documents chosen by content hash."""
    shard_mode: str = "random"
    """How documents go to shards: random | ordered | hash."""
    shard_tokens: int = 100_000_000
    """Tokens in one shard file, about."""
    samples: str = "windows"
    """windows: seq_len tokens each, across documents | masked_windows: the same, attention stays
    within each document | documents: one document each, truncated or padded | packed: several whole
    documents each, attention stays within each; padding is never counted in the loss."""
    cache_dir: str | None = None
    """Where prepared data is kept; null: $LLMTRAIN_CACHE, else ~/.cache/llmtrain."""
    seed: int = 1234
    """Seed of the validation split and of the `random` shard mode."""

    def __post_init__(self) -> None:
        _check_dedup(self.dedup)
        require_choice("data.encoding_errors", self.encoding_errors, ("replace", "strict"))
        require_choice("data.shard_mode", self.shard_mode, ("random", "ordered", "hash"))
        require_choice("data.samples", self.samples, SAMPLES)
        require(0 < self.val_ratio < 1, f"data.val_ratio={self.val_ratio} must be in (0, 1).")
        require(self.shard_tokens > 0, f"data.shard_tokens={self.shard_tokens} must be positive.")

    @property
    def masks_documents(self) -> bool:
        """Whether attention stays within each document of a row."""
        return self.samples in ("masked_windows", "packed")


def _check_dedup(value: str) -> None:
    for old, new in OLD_DEDUP.items():
        require(
            value.lower() != str(old).lower(),
            f"data.dedup={value.lower()} is spelt data.dedup={new} now: none, exact or near.",
        )
    require_choice("data.dedup", value, ("none", "exact", "near"))


@dataclass(kw_only=True)
class ShakespeareDataConfig(DataConfig):
    """The corpus that ships with the project: 42 works, 5 MB."""

    name: str = "shakespeare"


@dataclass(kw_only=True)
class TextDataConfig(DataConfig):
    """Plain text files, one document a file."""

    name: str = "text"
    path: str | None = None
    """A file, a folder (searched for *.txt and *.md) or a glob."""


@dataclass(kw_only=True)
class JsonlDataConfig(DataConfig):
    """JSON lines, one document a line; .gz is read too."""

    name: str = "jsonl"
    path: str | None = None
    """A file, a folder (searched for *.jsonl and *.jsonl.gz) or a glob."""
    text_key: str = "text"
    """The field that holds the text."""


@dataclass(kw_only=True)
class ParquetDataConfig(DataConfig):
    """Parquet files, one document a row."""

    name: str = "parquet"
    path: str | None = None
    """A file, a folder (searched for *.parquet) or a glob."""
    text_key: str = "text"
    """The column that holds the text."""


@dataclass(kw_only=True)
class HuggingFaceDataConfig(DataConfig):
    """A dataset of the Hugging Face `datasets` library: a hub name or a local folder."""

    name: str = "huggingface"
    path: str | None = None
    """Hub name, such as `roneneldan/TinyStories`, or a folder written by `save_to_disk`."""
    subset: str | None = None
    """The dataset's configuration name, where it has several."""
    split: str = "train"
    """The split that is read."""
    text_key: str = "text"
    """The column that holds the text."""


@dataclass(kw_only=True)
class SyntheticDataConfig(DataConfig):
    """Made-up text, for tests and benchmarks: documents of random words from a Zipf law."""

    name: str = "synthetic"
    documents: int = 200
    """Documents made."""
    words_per_document: int = 500
    """Words in each."""
    vocabulary: int = 1000
    """Different words."""
