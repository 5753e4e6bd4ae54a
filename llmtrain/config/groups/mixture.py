"""`data=mixture`: several sources with weights, each as another choice of `data` has it."""

from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from llmtrain.config.groups import data
from llmtrain.config.groups.clean import CleanConfig
from llmtrain.config.groups.data import DataConfig
from llmtrain.config.template import check_templates
from llmtrain.errors import require, require_choice

KINDS: dict[str, type[DataConfig]] = {
    "shakespeare": data.ShakespeareDataConfig,
    "text": data.TextDataConfig,
    "jsonl": data.JsonlDataConfig,
    "csv": data.CsvDataConfig,
    "parquet": data.ParquetDataConfig,
    "huggingface": data.HuggingFaceDataConfig,
    "synthetic": data.SyntheticDataConfig,
}


@dataclass(kw_only=True)
class MixedSource:
    """One source of a mixture. A setting that its kind does not have must be left alone."""

    kind: str
    """shakespeare | text | jsonl | csv | parquet | huggingface | synthetic."""
    weight: float | None = None
    """Share of the tokens of an epoch, relative to the others'; null for all: by their sizes."""
    clean: CleanConfig | None = None
    """Cleaning rules; null: those of the mixture."""
    path: str | None = None
    """As in that choice."""
    pattern: str | None = None
    """As in that choice."""
    text_key: str = "text"
    """As in that choice."""
    target: str | None = None
    """As in that choice."""
    prompt: str | None = None
    """As in that choice."""
    label_names: list[str] | None = None
    """As in that choice."""
    delimiter: str | None = None
    """As in csv."""
    subset: str | None = None
    """As in huggingface."""
    split: str = "train"
    """As in huggingface."""
    revision: str | None = None
    """As in huggingface."""
    streaming: bool = False
    """As in huggingface."""
    documents: int = 200
    """As in synthetic."""

    def __post_init__(self) -> None:
        require_choice("data.sources.*.kind", self.kind, KINDS)
        require(
            self.weight is None or self.weight > 0,
            f"data.sources.*.weight={self.weight} must be positive; leave a source out to give it "
            "no share.",
        )
        known = {each.name for each in fields(KINDS[self.kind])} | {"kind", "weight", "clean"}
        for each in fields(self):
            value = getattr(self, each.name)
            require(
                each.name in known or each.default is MISSING or value == each.default,
                f"data.sources.*.{each.name}={value} makes no sense for kind={self.kind}.",
            )
        check_templates("data.sources.*.", self.prompt, self.target, self.label_names)


@dataclass(kw_only=True)
class MixtureDataConfig(DataConfig):
    """Several sources; of an epoch's tokens each has a share that is exactly its weight's."""

    name: str = "mixture"
    sources: dict[str, MixedSource] = field(default_factory=dict)
    """By a name of your own. Documents that stand in several are kept in the first of them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.sources:
            require(
                name.replace("-", "").replace("_", "").isalnum(),
                f"data.sources has the name {name!r}: use letters, digits, - and _.",
            )
        unweighted = [name for name, source in self.sources.items() if source.weight is None]
        require(
            len(unweighted) in (0, len(self.sources)),
            f"data.sources.{(unweighted or [''])[0]} has no weight, and others have: give all of "
            "them one, or none.",
        )

    @property
    def weights(self) -> dict[str, float]:
        """Of each source; empty where none has any."""
        return {n: s.weight for n, s in self.sources.items() if s.weight is not None}

    def of_source(self, name: str) -> DataConfig:
        """Return what the source `name` is on its own, under the settings of the mixture."""
        source = self.sources[name]
        kind = KINDS[source.kind]
        values: dict[str, Any] = {
            each.name: getattr(self, each.name)
            for each in fields(DataConfig)
            if each.name not in ("name", "clean")
        }
        for each in fields(kind):
            if each.name not in {*values, "name", "clean"} and hasattr(source, each.name):
                values[each.name] = getattr(source, each.name)
        return kind(clean=source.clean or self.clean, **values)


def sources_of(config: DataConfig) -> dict[str, DataConfig]:
    """Return the sources of `config` by name: itself, unless it is a mixture."""
    if not isinstance(config, MixtureDataConfig):
        return {config.name: config}
    return {name: config.of_source(name) for name in config.sources}
