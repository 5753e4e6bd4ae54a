"""The group `metrics`: who is told how training goes. metrics.jsonl is always written."""

from dataclasses import dataclass

from llmtrain.errors import require


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
    """Peak of one device in TFLOP/s, for mfu; null: known GPUs by name (bf16), else measured."""
    record: bool = False
    """Write RUN_DIR/records: the whole gradients and weights of every step. `llmtrain verify` sets
    it for models that are small; a step writes twice the model's size."""
    trace: bool = False
    """Trace some steps: RUN_DIR/profile gets a Chrome trace a rank (for Perfetto or
    chrome://tracing), the time each computes, communicates and idles, and a drawn timeline."""
    trace_after_steps: int = 3
    """Steps that a start of the run does before those traced; the first are never typical."""
    trace_steps: int = 2
    """Steps that are traced. Each takes memory and disk for every operation."""

    def __post_init__(self) -> None:
        require(
            self.trace_after_steps >= 0,
            f"metrics.trace_after_steps={self.trace_after_steps} must be 0 or more.",
        )
        require(self.trace_steps > 0, f"metrics.trace_steps={self.trace_steps} must be 1 or more.")
