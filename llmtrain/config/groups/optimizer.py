"""The group `optimizer`: one dataclass an algorithm."""

from dataclasses import dataclass

from llmtrain.errors import require


@dataclass(kw_only=True)
class OptimizerConfig:
    """What every optimizer has."""

    name: str
    """sgd | momentum | adam | adamw | adafactor | lion | muon."""
    lr: float = 1e-3
    """Peak learning rate; the scheduler multiplies it."""
    weight_decay: float = 0.0
    """Decoupled where the algorithm says so. Never applied to what the model lists in NO_DECAY
    (norms and biases)."""

    def __post_init__(self) -> None:
        require(self.lr >= 0, f"optimizer.lr={self.lr} must not be negative.")
        require(
            self.weight_decay >= 0,
            f"optimizer.weight_decay={self.weight_decay} must not be negative.",
        )
        for key in ("beta1", "beta2", "momentum"):
            value = getattr(self, key, 0.0)
            require(0 <= value < 1, f"optimizer.{key}={value} must be in [0, 1).")


@dataclass(kw_only=True)
class SGDConfig(OptimizerConfig):
    """Plain stochastic gradient descent."""

    name: str = "sgd"
    lr: float = 0.1


@dataclass(kw_only=True)
class MomentumConfig(OptimizerConfig):
    """SGD with momentum (Sutskever et al. 2013)."""

    name: str = "momentum"
    lr: float = 0.05
    momentum: float = 0.9
    """How much of the last update is kept."""
    nesterov: bool = True
    """Look ahead along the momentum."""


@dataclass(kw_only=True)
class AdamConfig(OptimizerConfig):
    """Adam with L2 regularisation (arXiv:1412.6980)."""

    name: str = "adam"
    beta1: float = 0.9
    """Decay of the first moment."""
    beta2: float = 0.999
    """Decay of the second moment."""
    eps: float = 1e-8
    """Added to the root of the second moment."""


@dataclass(kw_only=True)
class AdamWConfig(AdamConfig):
    """Adam with decoupled weight decay (arXiv:1711.05101); fused kernel where torch has one."""

    name: str = "adamw"
    beta2: float = 0.95
    weight_decay: float = 0.1


@dataclass(kw_only=True)
class AdafactorConfig(OptimizerConfig):
    """Adafactor: factored second moment (arXiv:1804.04235)."""

    name: str = "adafactor"
    lr: float = 1e-2
    beta2_decay: float = -0.8
    """Exponent of the second moment's decay, 1 - step^beta2_decay (section 7.2)."""
    clip_threshold: float = 1.0
    """Largest root-mean-square of an update (section 6)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.beta2_decay <= 0,
            f"optimizer.beta2_decay={self.beta2_decay} must not be positive; the paper uses -0.8.",
        )


@dataclass(kw_only=True)
class LionConfig(OptimizerConfig):
    """Lion: the sign of an interpolated momentum (arXiv:2302.06675)."""

    name: str = "lion"
    lr: float = 1e-4
    beta1: float = 0.9
    """Interpolation of the update."""
    beta2: float = 0.99
    """Decay of the momentum."""
    weight_decay: float = 0.3


@dataclass(kw_only=True)
class MuonConfig(OptimizerConfig):
    """Muon: orthogonalised momentum for hidden matrices; AdamW for everything else.

    Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks"; update
    scale 0.2 sqrt(max(rows, columns)) from arXiv:2502.16982, so that one `lr` serves both.
    """

    name: str = "muon"
    momentum: float = 0.95
    """How much of the last update is kept (Nesterov)."""
    ns_steps: int = 5
    """Newton-Schulz iterations."""
    weight_decay: float = 0.1
    beta1: float = 0.9
    """AdamW's first-moment decay, for what Muon does not take."""
    beta2: float = 0.95
    """AdamW's second-moment decay, for what Muon does not take."""
    eps: float = 1e-8
    """AdamW's epsilon, for what Muon does not take."""
