"""The table of every configuration choice, and how a typed configuration is written and read.

`SCHEMAS` feeds Hydra's ConfigStore (`register.py`) when a command line is composed, and picks the
class of each group by its `name` when a frozen `config.yaml` is read, where Hydra is not at hand.
"""

import dataclasses
from pathlib import Path
from typing import Any, TypeVar

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from llmtrain.config.groups import (
    checkpoint,
    cloud,
    data,
    gossip,
    launcher,
    metrics,
    mixture,
    model,
    optimizer,
    scheduler,
    served,
    slurm,
    strategy,
    sync,
    tokenizer,
    train,
    verify,
)
from llmtrain.config.groups.checkpoint_command import CheckpointCommandConfig
from llmtrain.config.groups.inference import EvaluateConfig, GenerateConfig
from llmtrain.config.groups.logs import LogsConfig
from llmtrain.config.groups.prepared import InspectConfig, SamplesConfig
from llmtrain.config.groups.replay import ReplayConfig
from llmtrain.config.schema import (
    PrepareConfig,
    RunConfig,
    TrainCommandConfig,
    VerifyRunConfig,
)
from llmtrain.errors import ConfigError, require_choice

SCHEMAS: dict[str, dict[str, type]] = {
    "model": {"gpt": model.GPTConfig, "llama": model.LlamaConfig},
    "tokenizer": {
        "byte": tokenizer.ByteTokenizerConfig,
        "char": tokenizer.CharTokenizerConfig,
        "bpe": tokenizer.BPETokenizerConfig,
        "unigram": tokenizer.UnigramTokenizerConfig,
        "wordpiece": tokenizer.WordPieceTokenizerConfig,
        "pretrained": tokenizer.PretrainedTokenizerConfig,
    },
    "data": {**mixture.KINDS, "mixture": mixture.MixtureDataConfig},
    "strategy": {
        "single": strategy.SingleStrategyConfig,
        "data": strategy.DataStrategyConfig,
        "model": strategy.ModelStrategyConfig,
        "pipeline": strategy.PipelineStrategyConfig,
        "hybrid": strategy.HybridStrategyConfig,
    },
    "sync": {
        "allreduce": sync.AllReduceConfig,
        "local_sgd": sync.LocalSGDConfig,
        "hierarchical": sync.HierarchicalConfig,
        "diloco": sync.DiLoCoConfig,
        "quorum_diloco": served.QuorumDiLoCoConfig,
        "ssp": served.SSPConfig,
        "async_ps": served.AsyncPSConfig,
        "async_local_sgd": served.AsyncLocalSGDConfig,
        "easgd": served.EASGDConfig,
        "gossip": gossip.GossipConfig,
    },
    "optimizer": {
        "sgd": optimizer.SGDConfig,
        "momentum": optimizer.MomentumConfig,
        "adam": optimizer.AdamConfig,
        "adamw": optimizer.AdamWConfig,
        "adafactor": optimizer.AdafactorConfig,
        "lion": optimizer.LionConfig,
        "muon": optimizer.MuonConfig,
    },
    "scheduler": {
        "constant": scheduler.ConstantConfig,
        "linear": scheduler.LinearConfig,
        "cosine": scheduler.CosineConfig,
        "wsd": scheduler.WSDConfig,
        "inverse_sqrt": scheduler.InverseSqrtConfig,
    },
    "launcher": {
        "local": launcher.LocalLauncherConfig,
        "torchrun": launcher.TorchrunLauncherConfig,
        "kubernetes": cloud.KubernetesLauncherConfig,
        "skypilot": cloud.SkyPilotLauncherConfig,
        "slurm": slurm.SlurmLauncherConfig,
    },
}
"""Groups whose choices differ in their fields: group -> value of `name` -> class."""

PLAIN_SCHEMAS: dict[str, type] = {
    "train": train.TrainConfig,
    "checkpoint": checkpoint.CheckpointConfig,
    "metrics": metrics.MetricsConfig,
    "verify": verify.VerifyConfig,
}
"""Groups whose choices all have the same fields."""

ROOTS: dict[str, type] = {
    "train": TrainCommandConfig,
    "prepare": PrepareConfig,
    "evaluate": EvaluateConfig,
    "generate": GenerateConfig,
    "replay": ReplayConfig,
    "verify": VerifyRunConfig,
    "inspect": InspectConfig,
    "samples": SamplesConfig,
    "checkpoint_command": CheckpointCommandConfig,
    "logs": LogsConfig,
}
"""The root dataclass of each command that takes overrides; `inspect` and `samples` are flags of
`prepare`."""

T = TypeVar("T")


def is_group(name: str) -> bool:
    """Whether a field of a root is a group's, whose choices fill it."""
    return name in SCHEMAS or name in PLAIN_SCHEMAS


def save(config: object, path: Path) -> None:
    """Write the typed `config` as YAML, every value resolved."""
    path.write_text(to_yaml(config))


def to_yaml(config: object) -> str:
    """Return the typed `config` as YAML, every value resolved."""
    return OmegaConf.to_yaml(OmegaConf.structured(config), resolve=True)


def load_run_config(path: Path) -> RunConfig:
    """Read a frozen `config.yaml`: equal to the `RunConfig` that was saved.

    Raises:
        ConfigError: when the file is missing or not a configuration of ours.
    """
    try:
        values = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read ({error.strerror}); is {path.parent} a run directory?"
        ) from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds no configuration.")
    return from_dict(RunConfig, values, str(path))


def from_dict(root: type[T], values: dict[str, Any], where: str) -> T:
    """Return the typed configuration that `values` (plain dicts) describe.

    Args:
        root: The dataclass of the whole; its groups' classes are picked by their `name`.
        values: Plain dicts and scalars.
        where: What to call the source in an error.

    Raises:
        ConfigError: when a key is unknown or a value has the wrong type or range.
    """
    node = OmegaConf.structured(root)
    known = {field.name for field in dataclasses.fields(root)}  # type: ignore[arg-type]
    try:
        for group, value in values.items():
            if group in PLAIN_SCHEMAS and group in known and isinstance(value, dict):
                base = OmegaConf.structured(PLAIN_SCHEMAS[group])
                node[group] = OmegaConf.merge(base, value)
            elif group in SCHEMAS and group in known and isinstance(value, dict):
                require_choice(f"{group}.name", value.get("name"), SCHEMAS[group])
                base = OmegaConf.structured(SCHEMAS[group][value["name"]])
                node[group] = OmegaConf.merge(base, _as_spelt_now(group, value))
            else:
                node[group] = value
        result = OmegaConf.to_object(node)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{where}: {str(error).splitlines()[0]}") from None
    assert isinstance(result, root)
    return result


def _as_spelt_now(group: str, values: dict[str, Any]) -> dict[str, Any]:
    """Return the `values` of a group with what an earlier llmtrain wrote in today's words."""
    if group != "data":
        return values
    now = dict(values)
    if isinstance(now.get("dedup"), bool):
        now["dedup"] = data.OLD_DEDUP[now["dedup"]]
    if now.get("encoding_errors") in data.OLD_ERRORS:
        now["errors"] = data.OLD_ERRORS[now.pop("encoding_errors")]
    return now
