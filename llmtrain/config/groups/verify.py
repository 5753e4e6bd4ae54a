"""The section `verify` of `llmtrain verify`: which strategies are compared, and for how long."""

from dataclasses import dataclass

from llmtrain.errors import require


@dataclass(kw_only=True)
class VerifyConfig:
    """What is compared with one process."""

    strategies: list[str] | None = None
    """Presets by name, or strategies spelt as overrides in one string: "strategy=hybrid
    strategy.tp=2 strategy.pp=2"; null: the default selection, or the quick one."""
    steps: int = 5
    """Optimizer steps that are trained and compared; this takes the place of train.steps."""
    quick: bool = False
    """Where no strategies are named: a selection of two processes, a minute on two cores."""
    keep_records: bool = False
    """Keep the recorded tensors also where all agree. Where one fails they are always kept."""

    def __post_init__(self) -> None:
        require(self.steps > 0, f"verify.steps={self.steps} must be positive.")
        require(
            self.strategies is None or len(self.strategies) > 0,
            "verify.strategies=[] names nothing to compare; name some, or set it to null for the "
            "default selection.",
        )
