"""`llmtrain checkpoint list | verify | convert | delete`: what to do with what a run has saved."""

import re
from dataclasses import dataclass

from llmtrain.errors import require, require_choice

STEPS = re.compile(r"\d+(,\d+)*")
"""A step, or several with commas between them."""

NAMED = ("latest", "best")

ACTIONS = {
    "list": "steps, sizes, losses, and which are the latest and the best",
    "verify": "read every file and compare it with its hash",
    "convert": "write whole tensors into one safetensors file, whatever layout saved them",
    "delete": "delete checkpoints of a run that is not training",
}
"""Each action, and what it does."""

DTYPES = ("keep", "fp32", "bf16", "fp16")


@dataclass(kw_only=True)
class CheckpointCommandConfig:
    """`llmtrain checkpoint ACTION run=DIR`."""

    action: str = ""
    """list | verify | convert | delete; typed without its name: llmtrain checkpoint list."""
    run: str | None = None
    """The run directory."""
    step: str | None = None
    """Which checkpoints: latest | best | a step | several, 100,200; null: all (list, verify), the
    latest (convert)."""
    out: str | None = None
    """For convert: the file to write, such as model.safetensors."""
    all: bool = False
    """For convert: optimizer and synchronisation state too; else the weights alone."""
    dtype: str = "keep"
    """For convert: keep | fp32 | bf16 | fp16."""
    json: bool = False
    """Print one JSON object on stdout instead of tables."""

    def __post_init__(self) -> None:
        require(
            bool(self.action),
            f"What to do? llmtrain checkpoint {' | '.join(ACTIONS)}, such as: "
            "llmtrain checkpoint list run=runs/books",
        )
        require_choice("action", self.action, ACTIONS)
        require(bool(self.run), "run is missing: name the run directory, such as run=runs/books.")
        require(
            self.step is None or self.step in NAMED or bool(STEPS.fullmatch(self.step)),
            f"step={self.step} is not a checkpoint: write latest, best, a step, or several: "
            "step=100,200.",
        )
        require_choice("dtype", self.dtype, DTYPES)
        if self.action == "convert":
            require(
                bool(self.out), "out is missing: name the file to write, out=model.safetensors."
            )
            require(
                self.step is None or "," not in self.step,
                f"step={self.step}: one checkpoint at a time is converted.",
            )
        else:
            unused = {"out": self.out is None, "all": not self.all, "dtype": self.dtype == "keep"}
            for key, is_default in unused.items():
                require(
                    is_default, f"{key}={getattr(self, key)} is for llmtrain checkpoint convert."
                )
        if self.action == "delete":
            require(self.step is not None, "step is missing: name what to delete, step=100,200.")
