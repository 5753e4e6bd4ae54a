"""Raw text to shards: read, clean, dedup, split, tokenize, write; once for the same input.

source -> clean -> exact dedup -> corpus (scratch file) -> near dedup -> split -> order
       -> tokenizer -> shards
"""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from llmtrain.config.groups.data import DataConfig
from llmtrain.config.groups.tokenizer import TokenizerConfig
from llmtrain.console import make_console
from llmtrain.data.cache import cache_root, new_folder, only_one, settings_hash
from llmtrain.data.clean import Cleaner
from llmtrain.data.corpus import Corpus
from llmtrain.data.dedup import Deduplicator, content_digest
from llmtrain.data.dedup_near import NearDuplicates, are_near, find_near_duplicates
from llmtrain.data.dedup_report import exact_report
from llmtrain.data.locate import check_source
from llmtrain.data.manifest import MANIFEST, FileCheck, Manifest, Shard, load_manifest, verify_files
from llmtrain.data.order import hash_shard, hash_shard_bits, order_documents
from llmtrain.data.shard import ShardWriter, write_file
from llmtrain.data.source import iter_documents, source_bytes
from llmtrain.data.split import Split, split_corpus
from llmtrain.errors import DataError
from llmtrain.tokenizer.base import TokenIds, Tokenizer
from llmtrain.tokenizer.build import train_tokenizer

REPORT = "report.json"
TOKENIZER = "tokenizer.json"

BATCH_BYTES = 4 << 20
"""Text that is tokenized at once."""

SAMPLED_DOCUMENTS = 64
"""Documents from which mode `hash` estimates the bytes of a token."""


def prepare(
    data: DataConfig, tokenizer: TokenizerConfig, *, console: Console | None = None
) -> Path:
    """Return the folder with the shards of `data` under `tokenizer`, made if it is not there yet.

    The folder is `<cache>/<data.name>-<16 hex digits>`; the digits stand for the content of the
    inputs and every setting that matters. Safe to call from several processes at once.

    Args:
        data: The source and what is done to it.
        tokenizer: How text becomes ids.
        console: Where progress goes; None: stderr. Silent where it is no terminal.

    Raises:
        ConfigError: a setting is missing.
        DataError: an input cannot be used, the cache cannot be written, or what it holds is
            corrupt.
    """
    console = console or make_console(stderr=True)
    check_source(data)
    root = cache_root(data)
    digest = settings_hash(data, tokenizer)
    folder = root / f"{data.name}-{digest[:16]}"
    if not _is_ready(folder):
        with only_one(folder, lambda: console.print(f"waiting: {folder} is being prepared")):
            if not _is_ready(folder):
                _make(folder, digest, data, tokenizer, console)
    return folder


def load_report(folder: Path) -> dict[str, Any]:
    """Return what `prepare` counted when it made `folder`.

    Raises:
        DataError: there is no report.
    """
    try:
        return json.loads((folder / REPORT).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{folder / REPORT} cannot be read ({error}).") from error


def _is_ready(folder: Path) -> bool:
    if not folder.exists():
        return False
    verify_files(folder, load_manifest(folder))
    return True


def _make(
    folder: Path, digest: str, data: DataConfig, tokenizer: TokenizerConfig, console: Console
) -> None:
    bars = Progress(console=console, transient=True, disable=not console.is_terminal)
    try:
        with new_folder(folder) as scratch, bars:
            _Preparation(scratch, digest, data, tokenizer, bars).run()
    except OSError as error:
        raise DataError(
            f"Preparing {folder} failed: {error.strerror or error}. Free some space there, or set "
            "data.cache_dir to another folder."
        ) from error


@dataclass
class _Preparation:
    """One pass from source to shards, and what it counts on the way."""

    folder: Path
    digest: str
    data: DataConfig
    tokenizer_config: TokenizerConfig
    bars: Progress
    seconds: dict[str, float] = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=dict)
    files: dict[str, FileCheck] = field(default_factory=dict)

    def run(self) -> None:
        """Fill the folder; the manifest comes last."""
        start = time.perf_counter()
        scratch = self.folder / "corpus.tmp"
        with Corpus(scratch) as corpus:
            self._timed("read", self._read, corpus)
            self._timed("dedup", self._drop_near, corpus)
            split = self._split(corpus)
            orders = {
                name: order_documents(corpus, numbers, self.data.shard_mode, self.data.seed)
                for name, numbers in (("train", split.train), ("validation", split.validation))
            }
            tokenizer = self._timed("tokenizer", self._train, corpus, orders)
            shards = {
                name: self._timed(f"tokenize_{name}", self._write, corpus, name, order, tokenizer)
                for name, order in orders.items()
            }
            sizes = corpus.sizes()
            text_bytes = {name: int(sizes[order].sum()) for name, order in orders.items()}
        scratch.unlink()
        self.seconds["total"] = time.perf_counter() - start
        self._finish(tokenizer, shards, text_bytes, split.note)

    def _timed(self, name: str, step: Any, *arguments: Any) -> Any:
        start = time.perf_counter()
        result = step(*arguments)
        self.seconds[name] = time.perf_counter() - start
        return result

    def _read(self, corpus: Corpus) -> None:
        """Clean and dedup every document of the source into `corpus`."""
        cleaner, seen = Cleaner(self.data.clean), Deduplicator()
        bar = self.bars.add_task("read and clean", total=source_bytes(self.data))
        read = replaced = 0
        for document in iter_documents(self.data):
            read += 1
            replaced += document.replaced
            self.bars.advance(bar, len(document.text))
            text = cleaner.clean(document.text, document.id)
            if text is None:
                continue
            raw = text.encode("utf-8")
            digest = content_digest(raw)
            if self.data.dedup == "none" or seen.is_new(digest, document.id, len(text)):
                corpus.add(raw, digest, document.id)
        if not len(corpus):
            raise DataError(self._nothing_left(read, cleaner))
        self.report |= {
            "documents": {"read": read, "duplicates": seen.duplicates},
            "replaced": replaced,
            "clean": cleaner.report(),
            "dedup": {"exact": exact_report(seen, corpus)},
        }

    def _drop_near(self, corpus: Corpus) -> None:
        """Drop the near-duplicates of `corpus`, where they are to be dropped."""
        near = NearDuplicates()
        if self.data.dedup == "near":
            near = find_near_duplicates(corpus, self.data.near, self.folder, self.bars)
            corpus.drop(near.dropped)
            self.report["dedup"]["near"] = near.report()
        counts = {"near_duplicates": len(near.dropped), "kept": len(corpus)}
        self.report["documents"] |= counts

    def _split(self, corpus: Corpus) -> Split:
        """Hold out the validation split; of one document, a tail that is new.

        Raises:
            DataError: there is no such tail.
        """
        split = split_corpus(corpus, self.data.val_ratio, self.data.seed)
        if self.data.dedup == "near" and len(split.train) == len(split.validation) == 1:
            pair = [corpus.text(number) for number in (*split.train, *split.validation)]
            if are_near(pair[0], pair[1], self.data.near):
                raise DataError(
                    "The validation split would be a near-duplicate of what is trained on: the "
                    "corpus is one document that repeats itself. Add text, or set data.dedup=exact."
                )
        return split

    def _nothing_left(self, read: int, cleaner: Cleaner) -> str:
        where = getattr(self.data, "path", None) or self.data.name
        if not read:
            return f"data.path={where} holds no documents."
        drops = cleaner.drops()
        if set(drops) == {"min_chars"}:
            return (
                f"data.path={where} is empty: none of {read} documents has text of at least "
                f"data.clean.min_chars={self.data.clean.min_chars} characters after cleaning."
            )
        rules = ", ".join(f"data.clean.{rule} {count}" for rule, count in drops.items())
        return (
            f"data.path={where}: cleaning drops all of {read} documents ({rules}). Loosen the rule "
            "that drops the most."
        )

    def _train(self, corpus: Corpus, orders: dict[str, list[int]]) -> Tokenizer:
        """Learn from the training split; `char` from both, for it has no id for what is new."""
        self.bars.add_task("train tokenizer", total=None)
        numbers = list(orders["train"])
        if self.tokenizer_config.name == "char":
            numbers += orders["validation"]
        total = int(corpus.sizes()[numbers].sum())
        tokenizer = train_tokenizer(self.tokenizer_config, corpus.texts(numbers), total)
        path = self.folder / TOKENIZER
        tokenizer.save(path)
        self.files[TOKENIZER] = write_file(path, path.read_bytes())  # once more, to the disk
        return tokenizer

    def _write(
        self, corpus: Corpus, split: str, order: list[int], tokenizer: Tokenizer
    ) -> list[Shard]:
        """Tokenize the documents `order` of `corpus` into the shards of `split`."""
        bits = self._shard_bits(corpus, order, tokenizer)
        bar = self.bars.add_task(f"tokenize {split}", total=int(corpus.sizes()[order].sum()))
        writer = ShardWriter(
            self.folder,
            split,
            vocab_size=tokenizer.vocab_size,
            separator_id=tokenizer.separator_id,
            shard_tokens=self.data.shard_tokens if bits is None else None,
        )
        try:
            for number, ids, size in _encode(corpus, order, tokenizer):
                while bits is not None and len(writer.shards) < hash_shard(
                    corpus.digest(number), bits
                ):
                    writer.next_shard()
                writer.add(ids)
                self.bars.advance(bar, size)
            while bits is not None and len(writer.shards) < (1 << bits) - 1:
                writer.next_shard()
            writer.close()
        except BaseException:
            writer.abort()
            raise
        self.files |= writer.files
        return writer.shards

    def _shard_bits(self, corpus: Corpus, order: list[int], tokenizer: Tokenizer) -> int | None:
        """Return how many bits of the content hash name a shard, or None where none do."""
        if self.data.shard_mode != "hash":
            return None
        sampled = list(_encode(corpus, order[:SAMPLED_DOCUMENTS], tokenizer))
        tokens = sum(ids.size + 1 for _, ids, _ in sampled)
        share = tokens / max(1, sum(size for _, _, size in sampled))
        return hash_shard_bits(share * float(corpus.sizes()[order].sum()), self.data.shard_tokens)

    def _finish(
        self,
        tokenizer: Tokenizer,
        shards: dict[str, list[Shard]],
        text_bytes: dict[str, int],
        note: str,
    ) -> None:
        """Write the report, and then the manifest."""
        documents = {name: sum(s.documents for s in part) for name, part in shards.items()}
        tokens = {name: sum(s.tokens for s in part) for name, part in shards.items()}
        self.report["documents"] |= documents
        self.report |= {
            "tokens": tokens,
            "bytes": text_bytes,
            # Separators are no text.
            "bytes_per_token": round(
                sum(text_bytes.values()) / max(1, sum(tokens.values()) - sum(documents.values())),
                4,
            ),
            "tokenizer": tokenizer.name,
            "vocab_size": tokenizer.vocab_size,
            "note": note,
            "seconds": {name: round(value, 3) for name, value in self.seconds.items()},
        }
        self.files[REPORT] = write_file(self.folder / REPORT, _json(self.report))
        manifest = Manifest(
            dtype="uint16" if tokenizer.vocab_size <= 1 << 16 else "uint32",
            settings_hash=self.digest,
            tokenizer_name=tokenizer.name,
            tokenizer_hash=tokenizer.hash(),
            vocab_size=tokenizer.vocab_size,
            separator_id=tokenizer.separator_id,
            splits=shards,
            files=self.files,
        )
        write_file(self.folder / MANIFEST, _json(manifest.to_json()))


def _encode(
    corpus: Corpus, order: list[int], tokenizer: Tokenizer
) -> Iterator[tuple[int, TokenIds, int]]:
    """Yield (number, ids, bytes) of each document in `order`, tokenized in batches."""
    sizes = corpus.sizes()
    numbers: list[int] = []
    held = 0
    for position, number in enumerate(order):
        numbers.append(number)
        held += int(sizes[number])
        if held >= BATCH_BYTES or position == len(order) - 1:
            texts = list(corpus.texts(numbers))
            for n, ids in zip(numbers, tokenizer.encode_batch(texts), strict=True):
                yield n, ids, int(sizes[n])
            numbers, held = [], 0


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode("utf-8")
