"""The stage `read`: one part of a source, cleaned."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from llmtrain.config.groups.data import DataConfig
from llmtrain.data.clean import Cleaner
from llmtrain.data.clean_count import RuleCount
from llmtrain.data.corpus import CorpusWriter
from llmtrain.data.part import Part
from llmtrain.data.record import Record
from llmtrain.data.skip import SkipCount
from llmtrain.data.source import read_part


def read_and_clean(config: DataConfig, part: Part) -> Record:
    """Return the cleaned documents of `part` as a record that `Corpus` reads, and what was done.

    Raises:
        DataError: something there cannot be used.
    """
    cleaner, skipped = Cleaner(config.clean), SkipCount()
    documents = CorpusWriter(config.near if config.dedup == "near" else None)
    read = replaced = 0
    for document in read_part(config, part, skipped):
        read += 1
        replaced += document.replaced
        kept = cleaner.clean_document(document)
        if kept is not None:
            prompt, text = kept
            documents.add(text, document.id, prompt)
    counts = {name: asdict(count) for name, count in cleaner.counts.items()}
    facts = {"read": read, "replaced": replaced, "skipped": asdict(skipped), "clean": counts}
    return documents.record(facts)


@dataclass
class ReadCounts:
    """What reading and cleaning did, over all parts."""

    cleaner: Cleaner
    skipped: SkipCount = field(default_factory=SkipCount)
    read: int = 0
    """Documents, those that were skipped not counted."""
    replaced: int = 0
    """U+FFFD that stand for bytes that were no UTF-8."""

    @classmethod
    def collect(cls, config: DataConfig, records: Iterable[dict[str, Any]]) -> Self:
        """Add up the facts of the `records` of the stage."""
        whole = cls(Cleaner(config.clean))
        for facts in records:
            whole.read += facts["read"]
            whole.replaced += facts["replaced"]
            whole.skipped.merge(SkipCount.from_facts(facts["skipped"]))
            counts = {name: RuleCount.from_facts(count) for name, count in facts["clean"].items()}
            whole.cleaner.merge(counts)
        return whole

    def nothing_left(self, config: DataConfig) -> str:
        """Return the message for a source of which no document is left."""
        where = getattr(config, "path", None) or config.name
        if not self.read and self.skipped.documents:
            return self.skipped.nothing_left()
        if not self.read:
            return f"data.path={where} holds no documents."
        drops = self.cleaner.drops()
        if set(drops) == {"min_chars"}:
            return (
                f"data.path={where} is empty: none of {self.read} documents has text of at least "
                f"data.clean.min_chars={config.clean.min_chars} characters after cleaning."
            )
        rules = ", ".join(f"data.clean.{rule} {count}" for rule, count in drops.items())
        return (
            f"data.path={where}: cleaning drops all of {self.read} documents ({rules}). Loosen the "
            "rule that drops the most."
        )
