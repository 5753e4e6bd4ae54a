"""The group `metrics`: who is told how training goes. metrics.jsonl is always written."""

from dataclasses import dataclass


@dataclass(kw_only=True)
class MetricsConfig:
    """Where metrics go besides metrics.jsonl."""

    progress: bool = True
    """A live line on the terminal; where stderr is no terminal, a line an interval."""
    tensorboard: bool = False
    """Write RUN_DIR/tensorboard (needs the extra llmtrain[tensorboard])."""
    wandb: bool = False
    """Send to Weights & Biases (needs the extra llmtrain[wandb] and WANDB_API_KEY)."""
    wandb_project: str = "llmtrain"
    """The W&B project."""
    peak_tflops: float | None = None
    """Peak of one device in TFLOP/s, for mfu; null: known GPUs by name, a CPU is measured."""
    record: bool = False
    """Write RUN_DIR/records: the whole gradients and weights of every step. `llmtrain verify` sets
    it for models that are small; a step writes twice the model's size."""
