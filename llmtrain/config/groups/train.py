"""The group `train`: how long, how much at a time, in which precision."""

import math
from dataclasses import dataclass

from llmtrain.errors import require, require_choice

CHECKPOINTING = ("none", "selective", "full")
BAD_STEP = ("stop", "skip", "rollback", "lower_lr")


@dataclass(kw_only=True)
class TrainConfig:
    """The training loop. A step is one update of the optimizer."""

    steps: int | None = None
    """Length of training in steps. Give exactly one of steps, tokens, epochs."""
    tokens: float | None = None
    """Length of training in tokens (1e9 is read), rounded up to whole steps."""
    epochs: float | None = None
    """Length of training in passes over the training split, rounded up to whole steps."""
    seed: int = 1337
    """Seed of the initial weights, the dropout masks and the order of samples."""
    global_batch_size: int = 8
    """Sequences in a step, over all processes."""
    micro_batch_size: int | None = None
    """Sequences in one forward of one replica; null: all of its share at once."""
    precision: str = "fp32"
    """bf16 (weights and optimizer stay fp32, matrix products in bf16) | fp32 | fp64."""
    device: str = "auto"
    """auto (cuda where there is one) | cpu | cuda."""
    activation_checkpointing: str = "none"
    """What of a block is computed again in the backward instead of kept: none | selective (all but
    matrix products and attention) | full (all of it). Results are the same bit for bit."""
    compile: bool = False
    """Compile each block with torch.compile. The first step takes longer, a minute or so."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this global norm; 0: off."""
    on_bad_step: str = "stop"
    """What a step does whose gradient or loss is not finite, or whose loss is a spike: stop | skip
    (its update is left out) | rollback (to the last checkpoint, on with other samples) | lower_lr
    (skip, and a lower rate from then on)."""
    spike_factor: float | None = None
    """A loss above this many times its running mean is a spike; null: no loss is."""
    max_bad_steps: int = 20
    """Bad steps that a run may skip in all; it stops at one more."""
    max_bad_steps_in_row: int = 5
    """Bad steps that a run may skip one after the other; it stops at one more."""
    max_rollbacks: int = 3
    """Rollbacks of a run in all; it stops at one more bad step."""
    bad_step_lr_ratio: float = 0.5
    """What `lower_lr` multiplies the learning rate by, at each bad step."""
    label_smoothing: float = 0.0
    """Share of the target spread over the whole vocabulary (arXiv:1512.00567, section 7)."""
    log_every_steps: int = 10
    """Steps between lines of metrics.jsonl."""
    eval_every_steps: int | None = 250
    """Steps between evaluations on the validation split; null: only at the end."""
    eval_tokens: float | None = None
    """Validation tokens read in an evaluation, at most; null: the whole split."""
    early_stop_evals: int | None = None
    """Stop after so many evaluations in a row without a new best; null: never."""
    hang_timeout_s: float | None = 600.0
    """Seconds without a step done after which a run has hung: it is ended, and logs/hang_report.txt
    says which rank the others waited for; null: never. A step that is no longer than three of the
    longest before it is none that hangs."""
    hang_timeout_slow_s: float = 3600.0
    """The same where it may take long: at the start, in the first step, which compiles, in an
    evaluation, in a checkpoint."""
    sample_tokens: int = 200
    """Tokens of text generated when training ends; 0: none."""
    sample_prompt: str = "\n"
    """What that text goes on from."""

    def __post_init__(self) -> None:
        given = [k for k in ("steps", "tokens", "epochs") if getattr(self, k) is not None]
        require(
            len(given) == 1,
            f"train.steps, train.tokens, train.epochs: give exactly one, not "
            f"{' and '.join(given) or 'none'}; set the others to null.",
        )
        for key in (
            "steps", "tokens", "epochs", "global_batch_size", "micro_batch_size",
            "log_every_steps", "eval_every_steps", "eval_tokens", "early_stop_evals",
            "hang_timeout_s", "hang_timeout_slow_s",
            "max_bad_steps", "max_bad_steps_in_row", "max_rollbacks",
        ):  # fmt: skip
            value = getattr(self, key)
            require(
                value is None or 0 < value < math.inf,
                f"train.{key}={value} must be positive and finite.",
            )
        require(0 <= self.seed < 2**63, f"train.seed={self.seed} must be from 0 to 2^63 - 1.")
        require_choice("train.precision", self.precision, ("bf16", "fp32", "fp64"))
        require_choice(
            "train.activation_checkpointing", self.activation_checkpointing, CHECKPOINTING
        )
        require_choice("train.device", self.device, ("auto", "cpu", "cuda"))
        require(
            self.max_grad_norm >= 0,
            f"train.max_grad_norm={self.max_grad_norm} must not be negative; 0 turns it off.",
        )
        require_choice("train.on_bad_step", self.on_bad_step, BAD_STEP)
        require(
            self.spike_factor is None or 1 < self.spike_factor < math.inf,
            f"train.spike_factor={self.spike_factor} must be more than 1, such as 2: the loss is "
            "compared with that many times its running mean; null turns it off.",
        )
        require(
            0 < self.bad_step_lr_ratio < 1,
            f"train.bad_step_lr_ratio={self.bad_step_lr_ratio} must be between 0 and 1, such as "
            "0.5.",
        )
        require(
            0 <= self.label_smoothing < 1,
            f"train.label_smoothing={self.label_smoothing} must be in [0, 1).",
        )
        require(
            self.sample_tokens >= 0,
            f"train.sample_tokens={self.sample_tokens} must not be negative; 0 turns it off.",
        )
