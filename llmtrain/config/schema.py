"""The roots of the configuration: one dataclass a command.

Groups live in `config/groups/`, one file each; values live in `conf/` as YAML. Group fields are
MISSING here: a factory would run their checks on unset values.
"""

import dataclasses
from dataclasses import dataclass, field

from omegaconf import MISSING

from llmtrain.config.groups.checkpoint import CheckpointConfig
from llmtrain.config.groups.data import DataConfig
from llmtrain.config.groups.launcher import LauncherConfig
from llmtrain.config.groups.metrics import MetricsConfig
from llmtrain.config.groups.model import ModelConfig
from llmtrain.config.groups.optimizer import OptimizerConfig
from llmtrain.config.groups.scheduler import SchedulerConfig
from llmtrain.config.groups.strategy import StrategyConfig
from llmtrain.config.groups.sweep import SweepConfig
from llmtrain.config.groups.sync import SyncConfig
from llmtrain.config.groups.tokenizer import TokenizerConfig
from llmtrain.config.groups.train import TrainConfig
from llmtrain.config.groups.verify import VerifyConfig


@dataclass(kw_only=True)
class RunConfig:
    """`llmtrain train`: everything a run is made of."""

    experiment_name: str = "default"
    """Label of the run; the parent folder of its run directory."""
    run_dir: str | None = None
    """Where the run is kept; null: runs/<experiment_name>/<date>_<time>-<short id>. An existing one
    is resumed."""
    model: ModelConfig = MISSING
    tokenizer: TokenizerConfig = MISSING
    data: DataConfig = MISSING
    strategy: StrategyConfig = MISSING
    sync: SyncConfig = MISSING
    optimizer: OptimizerConfig = MISSING
    scheduler: SchedulerConfig = MISSING
    train: TrainConfig = MISSING
    checkpoint: CheckpointConfig = MISSING
    metrics: MetricsConfig = MISSING
    launcher: LauncherConfig = MISSING


@dataclass(kw_only=True)
class TrainCommandConfig(RunConfig):
    """The command line of `llmtrain train`: a run, and how several are swept, which none of them
    knows."""

    sweep: SweepConfig = field(default_factory=SweepConfig)
    """How a sweep (-m, or sweep=NAME) runs its jobs."""


def run_of(config: RunConfig) -> RunConfig:
    """Return what `config`, of whatever command, says of a run."""
    return RunConfig(**{f.name: getattr(config, f.name) for f in dataclasses.fields(RunConfig)})


@dataclass(kw_only=True)
class PrepareConfig:
    """`llmtrain prepare`: raw text to shards, nothing more."""

    tokenizer: TokenizerConfig = MISSING
    data: DataConfig = MISSING
    json: bool = False
    """Print one JSON object on stdout instead of a table."""


@dataclass(kw_only=True)
class VerifyRunConfig(RunConfig):
    """`llmtrain verify`: a run, and the strategies under which it is compared with one process."""

    verify: VerifyConfig = MISSING
    json: bool = False
    """Print verify.json on stdout instead of a table."""
