"""What `llmtrain verify` runs: the named strategies, and verify.json, which tells of the runs.

The launching tower writes verify.json as runs end; the task `verify` completes it.
"""

import dataclasses
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmtrain.config.groups.verify import VerifyConfig
from llmtrain.durable import replace_text
from llmtrain.errors import ConfigError, did_you_mean

REPORT = "verify.json"
REFERENCE = "reference"


@dataclass(frozen=True)
class Preset:
    """A strategy with a short name."""

    processes: int
    overrides: str
    """As typed after `llmtrain train`, without launcher.nproc_per_node."""


def _pipeline(schedule: str, micro_batch_size: int) -> str:
    return (
        f"strategy=pipeline strategy.schedule={schedule} "
        f"train.micro_batch_size={micro_batch_size}"
    )  # fmt: skip


PRESETS = {
    "dp2": Preset(2, "strategy=data"),
    "dp4": Preset(4, "strategy=data"),
    "zero1": Preset(2, "strategy=data strategy.zero=1 train.micro_batch_size=2"),
    "zero2": Preset(2, "strategy=data strategy.zero=2 train.micro_batch_size=2"),
    "zero3": Preset(2, "strategy=data strategy.zero=3"),
    "hsdp2x2": Preset(
        4, "strategy=data strategy.zero=3 strategy.dp_replicate=2 strategy.dp_shard=2"
    ),
    "tp2": Preset(2, "strategy=model"),
    "tp2_no_sp": Preset(2, "strategy=model strategy.sequence_parallel=false"),
    "tp4": Preset(4, "strategy=model"),
    "cp2": Preset(2, "strategy=hybrid strategy.cp=2 strategy.tp=1"),
    "pp2_gpipe": Preset(2, _pipeline("GPipe", 2)),
    "pp2_1f1b": Preset(2, _pipeline("1F1B", 2)),
    "pp2_interleaved": Preset(2, _pipeline("Interleaved1F1B", 2)),
    "pp2_zero_bubble": Preset(2, _pipeline("InterleavedZeroBubble", 2)),
    "pp2_zbv": Preset(2, _pipeline("ZBVZeroBubble", 2)),
    "pp2_dualpipev": Preset(2, _pipeline("DualPipeV", 1)),
    "pp4": Preset(4, _pipeline("1F1B", 2)),
    "dp2xtp2": Preset(4, "strategy=hybrid strategy.dp_replicate=2 strategy.tp=2"),
    "dp2xpp2": Preset(
        4,
        "strategy=hybrid strategy.dp_replicate=2 strategy.tp=1 strategy.pp=2 "
        "train.micro_batch_size=1",
    ),
    "tp2xpp2": Preset(4, "strategy=hybrid strategy.tp=2 strategy.pp=2 train.micro_batch_size=2"),
    "zero3xtp2": Preset(
        4, "strategy=hybrid strategy.zero=3 strategy.dp_shard=2 strategy.tp=2"
    ),
    "zero3xpp2": Preset(
        4,
        "strategy=hybrid strategy.zero=3 strategy.dp_shard=2 strategy.tp=1 strategy.pp=2 "
        "train.micro_batch_size=1",
    ),
    "dp2xtp2xpp2": Preset(
        8,
        "strategy=hybrid strategy.dp_replicate=2 strategy.tp=2 strategy.pp=2 "
        "train.micro_batch_size=1",
    ),
    "dp2xcp2xtp2": Preset(
        8, "strategy=hybrid strategy.dp_replicate=2 strategy.cp=2 strategy.tp=2"
    ),
}  # fmt: skip
"""Short names for verify.strategies."""

QUICK = ("dp2", "zero3", "tp2", "pp2_1f1b")
"""Replicas, shards, features and layers over two processes each: a minute on two cores."""

DEFAULT = (
    "dp2", "zero1", "zero2", "zero3", "tp2", "cp2", "pp2_gpipe", "pp2_1f1b", "pp2_interleaved",
    "pp2_zbv", "hsdp2x2", "dp2xtp2", "dp2xpp2", "tp2xpp2", "zero3xtp2",
)  # fmt: skip
"""Each axis, each kind of schedule, and the products of two axes."""


@dataclass(frozen=True)
class Case:
    """One strategy that is to be compared."""

    name: str
    """Of its row and its folder."""
    overrides: tuple[str, ...]
    """Of Hydra, launcher.nproc_per_node among them where it is known."""
    is_preset: bool


def chosen_cases(config: VerifyConfig) -> list[Case]:
    """Return what `config` asks for, each with a name of its own.

    Raises:
        ConfigError: when a name is not a preset's, or one is given twice.
    """
    wanted = config.strategies or (QUICK if config.quick else DEFAULT)
    cases: list[Case] = []
    for text in wanted:
        case = _custom(text) if "=" in text else _preset(text)
        if any(other.overrides == case.overrides for other in cases):
            raise ConfigError(f"verify.strategies: '{text}' is named twice; leave one out.")
        taken = sum(re.sub(r"-\d+$", "", other.name) == case.name for other in cases)
        if taken:
            case = dataclasses.replace(case, name=f"{case.name}-{taken + 1}")
        cases.append(case)
    return cases


def _preset(name: str) -> Case:
    if name not in PRESETS:
        raise ConfigError(
            f"verify.strategies: '{name}' is not a known strategy.{did_you_mean(name, PRESETS)}\n"
            f"Known: {', '.join(PRESETS)}. Any other is spelt as overrides in one string: "
            "'verify.strategies=[\"strategy=hybrid strategy.tp=2 strategy.pp=2\"]'."
        )
    preset = PRESETS[name]
    words = (*preset.overrides.split(), f"launcher.nproc_per_node={preset.processes}")
    return Case(name, words, is_preset=True)


def _custom(text: str) -> Case:
    """Return the case of a string of overrides, named by what it sets."""
    words = tuple(text.split())
    parts: list[str] = []
    for word in words:
        key, _, value = word.partition("=")
        leaf = key.rpartition(".")[2]
        if leaf == "strategy":
            parts.insert(0, value)
        elif leaf != "nproc_per_node":
            parts.append(value if leaf == "schedule" else f"{leaf}{value}")
    return Case(re.sub(r"[^\w.]+", "_", "-".join(parts)) or "strategy", words, is_preset=False)


@dataclass
class StrategyRun:
    """One run of a verification, and how it ended."""

    name: str
    """`REFERENCE`, or that of the case; its folder in the run directory."""
    overrides: list[str]
    processes: int
    status: str = "not started"
    """not started | completed | failed | stopped."""
    exit_code: int | None = None
    error: str | None = None
    """What ended it, where it failed."""
    wall_s: float | None = None


@dataclass
class Verification:
    """The contents of verify.json."""

    status: str = "running"
    """running | passed | failed | stopped."""
    precision: str = "fp64"
    steps: int = 0
    runs: list[StrategyRun] = field(default_factory=list)
    """The reference, then every strategy."""
    tolerance: dict[str, Any] | None = None
    """Its formula, the numbers in it and what came of it; null until runs are compared."""
    comparisons: list[dict[str, Any]] = field(default_factory=list)
    """A row for each strategy, see `train.compare.Comparison`."""

    def save(self, folder: Path) -> None:
        """Write verify.json, whole or not at all."""
        text = json.dumps(dataclasses.asdict(self), indent=2, allow_nan=False)
        replace_text(folder / REPORT, text + "\n")


def load_verification(folder: Path) -> Verification:
    """Read verify.json.

    Raises:
        ConfigError: when it is missing or damaged.
    """
    try:
        values = json.loads((folder / REPORT).read_text())
        runs = [StrategyRun(**run) for run in values.pop("runs")]
        return Verification(runs=runs, **values)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(f"{folder / REPORT} cannot be read: {error}") from None
