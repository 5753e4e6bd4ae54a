"""The group `data`: where text comes from and how it becomes samples, one dataclass a source."""

from dataclasses import dataclass, field

from llmtrain.config.groups.clean import CleanConfig
from llmtrain.config.groups.dedup import NearConfig
from llmtrain.config.template import check_templates
from llmtrain.errors import require, require_choice

SAMPLES = ("windows", "masked_windows", "documents", "packed")

TRUNCATE = ("prompt_start", "end", "drop")

OLD_DEDUP = {True: "exact", False: "none"}
"""What `data.dedup` was in configurations written before it had three values."""

OLD_ERRORS = {"replace": "skip", "strict": "strict"}
"""What `data.errors` was when it was `data.encoding_errors`, and broken lines were refused."""


@dataclass(kw_only=True)
class DataConfig:
    """What every source has."""

    name: str
    """shakespeare | text | jsonl | csv | parquet | huggingface | synthetic | mixture."""
    clean: CleanConfig = field(default_factory=CleanConfig)
    """Cleaning rules."""
    dedup: str = "exact"
    """Which documents are dropped: none | exact (cleaned text seen before, by 128-bit hash) | near
    (exact, and those that share most of their n-grams with one that is kept, see data.near)."""
    near: NearConfig = field(default_factory=NearConfig)
    """What counts as a near-duplicate, where data.dedup=near."""
    errors: str = "skip"
    """A document that cannot be read, such as a broken line: skip (left out and counted; bytes that
    are not UTF-8 become U+FFFD) | strict (refused)."""
    max_document_bytes: int = 100_000_000
    """Longer documents are errors; longer text files are cut at ends of lines."""
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
    truncate: str = "prompt_start"
    """Of data.samples=documents, what becomes of a document that is longer than a row: prompt_start
    (its prompt loses its start, a document without one its end) | end (it loses its end; left out
    where that is the whole target) | drop (left out)."""
    cache_dir: str | None = None
    """Where prepared data is kept; null: $LLMTRAIN_CACHE, else ~/.cache/llmtrain."""
    processes: int | None = None
    """Processes that prepare the data; null: one a core, fewer for a few megabytes."""
    seed: int = 1234
    """Seed of the validation split and of the `random` shard mode."""
    mode: str = "prepared"
    """prepared (cleaned, tokenized and written before training) | streaming (read, cleaned and
    tokenized while it trains; only the validation split is kept)."""
    shuffle_documents: int = 0
    """Of a stream: so many documents are held and shuffled together; 0: source order."""

    def __post_init__(self) -> None:
        _check_dedup(self.dedup)
        require_choice("data.errors", self.errors, ("skip", "strict"))
        require(
            self.max_document_bytes >= 1024,
            f"data.max_document_bytes={self.max_document_bytes} must be at least 1024.",
        )
        require_choice("data.shard_mode", self.shard_mode, ("random", "ordered", "hash"))
        require_choice("data.samples", self.samples, SAMPLES)
        require_choice("data.truncate", self.truncate, TRUNCATE)
        require(
            self.truncate == TRUNCATE[0] or self.samples == "documents",
            f"data.truncate={self.truncate} says what becomes of documents that are longer than a "
            f"row, and data.samples={self.samples} leaves nothing out: set data.samples=documents, "
            "or leave data.truncate out.",
        )
        require(0 < self.val_ratio < 1, f"data.val_ratio={self.val_ratio} must be in (0, 1).")
        require(
            self.processes is None or self.processes > 0,
            f"data.processes={self.processes} must be positive, or null for one a core.",
        )
        require(self.shard_tokens > 0, f"data.shard_tokens={self.shard_tokens} must be positive.")
        require_choice("data.mode", self.mode, ("prepared", "streaming"))
        require(
            self.shuffle_documents >= 0,
            f"data.shuffle_documents={self.shuffle_documents} must not be negative.",
        )
        require(
            self.mode == "streaming" or not self.shuffle_documents,
            f"data.shuffle_documents={self.shuffle_documents} is for data.mode=streaming: prepared "
            "data is shuffled as a whole.",
        )

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
class FileDataConfig(DataConfig):
    """What every source has that is made of files."""

    path: str | None = None
    """A file, a folder, a glob, or - for the standard input."""
    pattern: str | None = None
    """Which files of a folder are read, such as *.rst; null: those named as usual for the source.
    """


@dataclass(kw_only=True)
class RowDataConfig(DataConfig):
    """What every source has whose documents are rows of named fields."""

    text_key: str = "text"
    """The field, or column, that holds the text."""
    target: str | None = None
    """Instead of data.text_key: the text that is learned, with fields in braces, such as
    " {label}"."""
    prompt: str | None = None
    """What stands before it and is not counted in the loss, such as "German: {de}\\nEnglish:";
    null: nothing."""
    label_names: list[str] | None = None
    """Names of the numbers 0, 1, ... in the field of data.target; null: as the source has them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_templates("data.", self.prompt, self.target, self.label_names)


@dataclass(kw_only=True)
class TextDataConfig(FileDataConfig):
    """Plain text files, one document a file; of a folder *.txt and *.md, also with .gz or .zst, and
    with data.clean.html=true *.html and *.htm."""

    name: str = "text"


@dataclass(kw_only=True)
class JsonlDataConfig(FileDataConfig, RowDataConfig):
    """JSON lines, one document a line; of a folder *.jsonl, *.jsonl.gz and *.jsonl.zst."""

    name: str = "jsonl"


@dataclass(kw_only=True)
class CsvDataConfig(FileDataConfig, RowDataConfig):
    """Tables as text, one document a row, under a row of column names; of a folder *.csv and *.tsv,
    also with .gz or .zst."""

    name: str = "csv"
    delimiter: str | None = None
    """What stands between columns: one character, or tab; null: a tab in *.tsv, else a comma."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.delimiter is None
            or self.delimiter == "tab"
            or (len(self.delimiter) == 1 and self.delimiter not in '"\r\n'),
            f"data.delimiter={self.delimiter!r} must be one character, such as ';', or tab.",
        )


@dataclass(kw_only=True)
class ParquetDataConfig(FileDataConfig, RowDataConfig):
    """Parquet files, one document a row; of a folder *.parquet."""

    name: str = "parquet"


@dataclass(kw_only=True)
class HuggingFaceDataConfig(RowDataConfig):
    """A dataset of the Hugging Face `datasets` library: a hub name or a local folder."""

    name: str = "huggingface"
    path: str | None = None
    """Hub name, such as `roneneldan/TinyStories`, or a folder written by `save_to_disk`."""
    subset: str | None = None
    """The dataset's configuration name, where it has several."""
    split: str = "train"
    """The split that is read."""
    revision: str | None = None
    """Of a dataset on the hub: a branch, tag or commit; null: its newest state."""
    streaming: bool = False
    """Of a dataset on the hub: read it as it arrives, without keeping it on disk."""


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
