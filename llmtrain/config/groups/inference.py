"""The commands `evaluate` and `generate`: what to do with a finished run."""

from dataclasses import dataclass

from llmtrain.errors import require, require_choice


@dataclass(kw_only=True)
class FromRunConfig:
    """What every command on a finished run has."""

    run: str | None = None
    """The run directory."""
    step: str = "best"
    """Which checkpoint: best (of lowest validation loss; the newest where none was evaluated) |
    latest | a step."""
    device: str = "auto"
    """auto (cuda where there is one) | cpu | cuda."""

    def __post_init__(self) -> None:
        require(
            self.run is not None and self.run != "",
            "run is missing: name the run directory, such as run=runs/my_run/2026-01-31_12-00-00.",
        )
        if not self.step.isdigit():
            require_choice("step", self.step, ("best", "latest", "<a step>"))
        require_choice("device", self.device, ("auto", "cpu", "cuda"))


@dataclass(kw_only=True)
class EvaluateConfig(FromRunConfig):
    """`llmtrain evaluate run=DIR`: loss and perplexity of a checkpoint."""

    split: str = "validation"
    """validation | train."""
    tokens: float | None = None
    """Tokens read at most; null: the whole split."""
    batch_size: int = 8
    """Sequences in a forward."""
    json: bool = False
    """Print one JSON object on stdout instead of a table."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice("split", self.split, ("validation", "train"))
        require(self.batch_size > 0, f"batch_size={self.batch_size} must be positive.")
        require(self.tokens is None or self.tokens > 0, f"tokens={self.tokens} must be positive.")


@dataclass(kw_only=True)
class GenerateConfig(FromRunConfig):
    """`llmtrain generate run=DIR prompt=...`: text from a checkpoint."""

    prompt: str = "\n"
    """What the text goes on from."""
    max_new_tokens: int = 200
    """Tokens to generate."""
    temperature: float = 0.8
    """Divides the logits; 0: always the likeliest token."""
    top_k: int | None = 200
    """Only the k likeliest tokens may be drawn; null: all."""
    top_p: float | None = None
    """Only the likeliest tokens that together reach this probability may be drawn; null: all."""
    seed: int = 1337
    """Seed of the draws."""
    n: int = 1
    """How many texts."""
    stream: bool = True
    """Print tokens as they come."""
    json: bool = False
    """Print one JSON object on stdout instead of text."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.max_new_tokens > 0, f"max_new_tokens={self.max_new_tokens} must be positive.")
        require(self.temperature >= 0, f"temperature={self.temperature} must not be negative.")
        require(self.n > 0, f"n={self.n} must be positive.")
        require(self.top_k is None or self.top_k > 0, f"top_k={self.top_k} must be positive.")
        require(
            self.top_p is None or 0 < self.top_p <= 1,
            f"top_p={self.top_p} must be in (0, 1].",
        )
