"""One source on its way to shards, stage by stage; every process of a crew runs all of it.

    list       once: cut the source into parts                           data/part.py
    read       each part: read and clean                                 data/reading.py
    choose     once: duplicates, split, order                            data/choose.py
    tokenizer  once: train it, or take what was given                    llmtrain/tokenizer/
    encode     each part: what was chosen of it, as ids                  data/encode.py
    shard      each shard: its documents gathered, in their order        data/gather.py
    finish     once: report, manifest, and the rename that makes it real

Between stages every process computes the same plan from the same records.
"""

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich.progress import Progress

from llmtrain.config.groups.data import DataConfig
from llmtrain.data.choose import Choice, Earlier, choose_documents
from llmtrain.data.corpus import Corpus
from llmtrain.data.crew import Crew, Tick
from llmtrain.data.encode import encode_documents
from llmtrain.data.gather import ShardPlan
from llmtrain.data.manifest import FileCheck, Manifest, Shard, dtype_for
from llmtrain.data.part import Part
from llmtrain.data.publish import (
    DIGESTS,
    REPORT,
    TOKENIZER,
    bytes_per_token,
    json_bytes,
    publish,
)
from llmtrain.data.reading import ReadCounts, read_and_clean
from llmtrain.data.record import Record, RecordReader
from llmtrain.data.shard import write_file
from llmtrain.data.source import list_parts
from llmtrain.data.tokenizer_report import TokenizerReport, in_sample
from llmtrain.errors import DataError
from llmtrain.tokenizer.base import Tokenizer


class SourceWork:
    """The stages of one source."""

    def __init__(self, crew: Crew, data: DataConfig, digest: str, bars: Progress) -> None:
        """Set up the work.

        Args:
            crew: Joined.
            data: The source's settings.
            digest: Of everything that decides what the folder holds.
            bars: Show how far it is.
        """
        self._crew = crew
        self._data = data
        self._digest = digest
        self._bars = bars

    def parts(self, unread: Sequence[DataConfig] = ()) -> Path:
        """Return the record of the parts; with it, other processes begin to read.

        Args:
            unread: As in `choose`.

        Raises:
            DataError: an input cannot be used.
            FinishedError: the folder is there.
        """
        return self._crew.once("list", lambda: _list([self._data, *unread]))

    def choose(self, earlier: Earlier, unread: Sequence[DataConfig] = ()) -> Choice:
        """Read, clean, and choose which documents stay, and where.

        Args:
            earlier: What the sources before this one have kept.
            unread: Those of them whose documents are not in `earlier.records`, and are needed.

        Raises:
            DataError: an input cannot be used, or nothing is left.
            FinishedError: the folder is there.
        """
        own, *others = RecordReader(self.parts(unread)).facts["parts"]
        read = self._read("read", [(self._data, part) for part in own])
        before = [
            (source, part) for source, found in zip(unread, others, strict=True) for part in found
        ]
        earlier = earlier.add(earlier.digests[:0], self._read("before", before))
        return Choice(read, self._crew.once("choose", lambda: self._choose(read, earlier)))

    def _read(self, stage: str, parts: Sequence[tuple[DataConfig, dict[str, Any]]]) -> list[Path]:
        found = [(source, Part.from_facts(part)) for source, part in parts]
        tick = self._bar("read and clean", [part.bytes for _, part in found]) if found else None
        return self._crew.each(
            stage, len(found), lambda number: read_and_clean(*found[number]), tick
        )

    def _choose(self, read: Sequence[Path], earlier: Earlier) -> Record:
        counts = ReadCounts.collect(self._data, (RecordReader(path).facts for path in read))
        if not any(len(RecordReader(path).array("sizes")) for path in read):
            raise DataError(counts.nothing_left(self._data))
        chosen = choose_documents(read, self._data, earlier, self._crew.folder, self._bars)
        report = chosen.facts["report"]
        report["documents"] = {"read": counts.read} | report["documents"]
        chosen.facts["report"] = {
            "documents": report.pop("documents"),
            "replaced": counts.replaced,
            "skipped": counts.skipped.to_json(),
            "clean": counts.cleaner.report(),
            **report,
        }
        return chosen

    def finish(self, choice: Choice, tokenizer: Tokenizer) -> None:
        """Encode, write the shards and the rest, and make the folder real.

        Args:
            choice: What `choose` returned.
            tokenizer: What `shared_tokenizer` returned for this crew.

        Raises:
            FinishedError: always: the folder is there.
        """
        sizes = choice.corpus.sizes()
        texts = [int(sizes[a:b].sum()) for a, b in pairwise(choice.bounds)]
        measured = partial(in_sample, total_bytes=sum(texts), documents=len(choice.corpus))
        encoded = self._crew.each(
            "encode",
            len(choice.records),
            lambda number: encode_documents(
                Corpus([choice.records[number]]), choice.written(number), tokenizer, measured
            ),
            self._bar("tokenize", texts),
        )
        plan = ShardPlan(choice, encoded, self._data)
        fit = partial(_tokenizer_report, tokenizer, encoded)
        written = self._crew.each(
            "shard",
            len(plan.shards),
            lambda number: plan.write(number, self._crew.out),
            self._bar("write shards", [shard.tokens for shard in plan.shards]),
        )
        self._crew.once("finish", lambda: self._finish(choice, plan, tokenizer, written, fit()))

    def _finish(
        self,
        choice: Choice,
        plan: ShardPlan,
        tokenizer: Tokenizer,
        written: Sequence[Path],
        fit: dict[str, Any],
    ) -> Record:
        """Write the report, and then the manifest."""
        out = self._crew.out
        shards: dict[str, list[Shard]] = {split: [] for split in choice.orders}
        for shard in plan.shards:
            shards[shard.split].append(Shard(shard.name, shard.tokens, len(shard.documents)))
        files = {TOKENIZER: _check(self._crew.record("tokenizer"))[TOKENIZER]}
        for path in written:
            files |= _check(path)
        files[DIGESTS] = write_file(out / DIGESTS, choice.digests().tobytes())
        report = _report(choice, shards, tokenizer) | {"tokenizer_report": fit}
        if prompt_tokens := plan.prompt_tokens():
            report["prompt_tokens"] = prompt_tokens
        files[REPORT] = write_file(out / REPORT, json_bytes(report))
        manifest = Manifest(
            dtype=dtype_for(tokenizer.vocab_size).name,
            settings_hash=self._digest,
            tokenizer_name=tokenizer.name,
            tokenizer_hash=tokenizer.hash(),
            vocab_size=tokenizer.vocab_size,
            separator_id=tokenizer.separator_id,
            splits=shards,
            files=files,
        )
        return publish(self._crew, files, manifest.to_json())

    def _bar(self, name: str, sizes: Sequence[int]) -> Tick:
        """Return what moves a bar by the `sizes` of the units that are done."""
        bar = self._bars.add_task(name, total=sum(sizes))
        return lambda done: self._bars.update(bar, completed=sum(sizes[n] for n in done))


def _report(choice: Choice, shards: dict[str, list[Shard]], tokenizer: Tokenizer) -> dict[str, Any]:
    """Return what is told of the source: the same whoever made it, and how often it was begun."""
    documents = {name: sum(s.documents for s in part) for name, part in shards.items()}
    tokens = {name: sum(s.tokens for s in part) for name, part in shards.items()}
    sizes = choice.corpus.sizes()
    text_bytes = {name: int(sizes[order].sum()) for name, order in choice.orders.items()}
    return choice.report | {
        "documents": choice.report["documents"] | documents,
        "tokens": tokens,
        "bytes": text_bytes,
        "bytes_per_token": bytes_per_token(
            sum(text_bytes.values()), sum(tokens.values()), sum(documents.values())
        ),
        "tokenizer": tokenizer.name,
        "vocab_size": tokenizer.vocab_size,
    }


def _tokenizer_report(tokenizer: Tokenizer, encoded: Sequence[Path]) -> dict[str, Any]:
    """Return how well the tokenizer fits, over all records of the stage `encode`."""
    whole = TokenizerReport(tokenizer)
    for path in encoded:
        reader = RecordReader(path)
        whole.merge_arrays({name: reader.array(name) for name in whole.arrays()})
    return whole.to_json()


def _check(path: Path) -> dict[str, FileCheck]:
    """Return what the files of a record must be."""
    files = RecordReader(path).facts["files"]
    return {name: FileCheck(**check) for name, check in files.items()}


def _list(sources: Sequence[DataConfig]) -> Record:
    return Record({"parts": [[asdict(p) for p in list_parts(source)] for source in sources]})
