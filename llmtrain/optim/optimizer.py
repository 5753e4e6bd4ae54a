"""Optimizer: from the group `optimizer` and a model's name patterns to torch optimizers.

Which parameters decay, and which are hidden matrices, is told by the model as plain fnmatch
patterns on parameter names ("*norm*.weight", "*.bias", "blocks.*.w*.weight"), never guessed from
their shapes. The parameter groups depend on names only, not on the layout, so that a checkpoint
loads on any other one.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from llmtrain.config.groups.optimizer import OptimizerConfig
from llmtrain.errors import require, require_choice
from llmtrain.models.init import matches
from llmtrain.optim.adafactor import Adafactor
from llmtrain.optim.elementwise import ShardAdam, ShardAdamW, ShardSGD
from llmtrain.optim.lion import Lion
from llmtrain.optim.muon import Muon

FUSED_DEVICES = frozenset({"cpu", "cuda", "xpu", "mps"})
"""Where torch 2.13 has fused Adam and AdamW, for every floating dtype."""

WRAPPERS = ("_orig_mod.", "_checkpoint_wrapped_module.", "_fsdp_wrapped_module.")
"""What torch.compile and the wrappers put into parameter names."""

Builder = Callable[[Any, list[dict[str, Any]]], Optimizer]
"""Config of its own class, parameter groups -> optimizer."""

Named = Mapping[str, Tensor]
"""Parameter name -> parameter."""


def build_optimizers(
    config: OptimizerConfig,
    model: nn.Module,
    *,
    no_decay: Sequence[str],
    hidden: Sequence[str] = (),
) -> list[Optimizer]:
    """Build the optimizers of `model`, after it was sharded.

    Args:
        config: one dataclass an algorithm.
        model: its trainable parameters, tied ones once; plain tensors or DTensors.
        no_decay: fnmatch patterns of the names that take no weight decay.
        hidden: fnmatch patterns of the hidden matrices; read by muon only.

    Returns:
        One optimizer; two for muon (Muon, then AdamW for the rest) where `model` has both kinds.
        `torch.distributed.checkpoint.state_dict` takes the list as it is.

    Raises:
        ConfigError: when the name is unknown, or the model declares no hidden matrices for muon.
        ValueError: when a hidden parameter is no matrix.
    """
    require_choice("optimizer.name", config.name, _BUILDERS)
    named = {clean_name(name): p for name, p in model.named_parameters() if p.requires_grad}
    parts: list[tuple[Builder, Named]] = [(_BUILDERS[config.name], named)]
    if config.name == "muon":
        require(
            bool(hidden),
            "optimizer=muon needs a model that declares its hidden matrices, and this one does "
            "not; try optimizer=adamw.",
        )
        matrices = {name: p for name, p in named.items() if matches(name, hidden)}
        rest = {name: p for name, p in named.items() if name not in matrices}
        parts = [(_muon, matrices), (_adamw, rest)]
    return [
        build(config, decay_groups(part, no_decay, config.weight_decay))
        for build, part in parts
        if part
    ]


def build_elementwise(
    config: OptimizerConfig, named: Named, *, no_decay: Sequence[str]
) -> Optimizer:
    """Build an optimizer over any shards of a model's parameters.

    Args:
        config: One of an algorithm that looks at single numbers only (`config.meetings`).
        named: Tensors, under names whose ends are those of the parameters.
        no_decay: fnmatch patterns of the parameters' names that take no weight decay.
    """
    ends = [*no_decay, *(f"*/{pattern}" for pattern in no_decay)]
    return _BUILDERS[config.name](config, decay_groups(named, ends, config.weight_decay))


def decay_groups(
    named: Named, no_decay: Sequence[str], weight_decay: float
) -> list[dict[str, Any]]:
    """Split `named` into the parameters that decay and those that match `no_decay`.

    Returns:
        At most two parameter groups, without the empty ones (which torch's checkpoint helpers
        refuse).
    """
    decay = [p for name, p in named.items() if not matches(name, no_decay)]
    rest = [p for name, p in named.items() if matches(name, no_decay)]
    groups = [
        {"params": decay, "weight_decay": weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def clean_name(name: str) -> str:
    """Return a parameter's name as the model wrote it, without what wrappers put into it."""
    for wrapper in WRAPPERS:
        name = name.replace(wrapper, "")
    return name.removeprefix("module.")  # DistributedDataParallel


def fused_supported(groups: Iterable[dict[str, Any]]) -> bool:
    """Return whether torch has fused Adam for every parameter: by device and dtype alone."""
    return all(
        p.device.type in FUSED_DEVICES and p.is_floating_point()
        for group in groups
        for p in group["params"]
    )


def _sgd(config: Any, groups: list[dict[str, Any]]) -> Optimizer:
    """Plain SGD; weight decay is L2."""
    return ShardSGD(groups, lr=config.lr)


def _momentum(config: Any, groups: list[dict[str, Any]]) -> Optimizer:
    """SGD with momentum; weight decay is L2."""
    return ShardSGD(
        groups,
        lr=config.lr,
        momentum=config.momentum,
        nesterov=config.nesterov and config.momentum > 0,
    )


def _adam(config: Any, groups: list[dict[str, Any]]) -> Optimizer:
    """Adam; weight decay is L2."""
    betas = (config.beta1, config.beta2)
    return ShardAdam(
        groups, lr=config.lr, betas=betas, eps=config.eps, fused=fused_supported(groups)
    )


def _adamw(config: Any, groups: list[dict[str, Any]]) -> Optimizer:
    """AdamW; also what Muon leaves."""
    betas = (config.beta1, config.beta2)
    return ShardAdamW(
        groups, lr=config.lr, betas=betas, eps=config.eps, fused=fused_supported(groups)
    )


def _adafactor(config: Any, groups: list[dict[str, Any]]) -> Optimizer:
    """Adafactor; decoupled weight decay."""
    return Adafactor(
        groups,
        lr=config.lr,
        beta2_decay=config.beta2_decay,
        clip_threshold=config.clip_threshold,
    )


def _lion(config: Any, groups: list[dict[str, Any]]) -> Optimizer:
    """Lion; decoupled weight decay."""
    return Lion(groups, lr=config.lr, betas=(config.beta1, config.beta2))


def _muon(config: Any, groups: list[dict[str, Any]]) -> Optimizer:
    """Muon; decoupled weight decay."""
    return Muon(groups, lr=config.lr, momentum=config.momentum, ns_steps=config.ns_steps)


_BUILDERS: dict[str, Builder] = {
    "sgd": _sgd,
    "momentum": _momentum,
    "adam": _adam,
    "adamw": _adamw,
    "adafactor": _adafactor,
    "lion": _lion,
    "muon": _muon,
}
