"""What is benchmarked: a model, a batch and a precision, under names both sides understand."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    """One comparison."""

    name: str
    overrides: tuple[str, ...]
    """Of `llmtrain train`."""
    vocabulary: str
    """tokenizer."""
    dim: int
    layers: int
    heads: int
    seq_len: int
    batch: int
    bf16: bool
    steps_per_round: int

    @property
    def compiled(self) -> bool:
        """Whether both sides compile each block."""
        return "train.compile=true" in self.overrides


def _case(
    name: str, model: str, tokenizer: str, dim: int, layers: int, heads: int, seq_len: int,
    batch: int, bf16: bool, steps_per_round: int, *more: str,
) -> Case:  # fmt: skip
    overrides = (
        f"model={model}", f"model.seq_len={seq_len}", f"tokenizer={tokenizer}",
        f"train.global_batch_size={batch}", f"train.precision={'bf16' if bf16 else 'fp32'}",
        "train.steps=100000", "optimizer.beta2=0.99", "scheduler.warmup_steps=100", *more,
    )  # fmt: skip
    return Case(
        name, overrides, tokenizer, dim, layers, heads, seq_len, batch, bf16, steps_per_round
    )


CPU, GPU = "train.device=cpu", "train.device=cuda"
PLAIN_124M = (GPU, "model.bias=false")
"""The plain loop's model has no biases."""

CASES = {
    "cpu": (
        _case("char GPT 0.8 M, fp32", "gpt_tiny", "char", 128, 4, 4, 64, 12, False, 40, CPU),
        _case("char GPT 0.8 M, bf16", "gpt_tiny", "char", 128, 4, 4, 64, 12, True, 40, CPU),
        _case("gpt_10m, fp32", "gpt_10m", "bpe", 384, 6, 6, 256, 8, False, 2, CPU),
        _case("gpt_10m, bf16", "gpt_10m", "bpe", 384, 6, 6, 256, 8, True, 4, CPU),
    ),
    "cuda": (
        _case("gpt_10m, bf16", "gpt_10m", "bpe", 384, 6, 6, 256, 64, True, 20, GPU),
        _case("gpt_124m, fp32", "gpt_124m", "bpe", 768, 12, 12, 1024, 16, False, 2, *PLAIN_124M),
        _case("gpt_124m, bf16", "gpt_124m", "bpe", 768, 12, 12, 1024, 16, True, 10, *PLAIN_124M),
        _case("gpt_124m, bf16, compiled", "gpt_124m", "bpe", 768, 12, 12, 1024, 16, True, 10,
              *PLAIN_124M, "train.compile=true"),
    ),
}  # fmt: skip
"""By the device they are sized for. The first on a GPU is what launching kernels costs, the others
what they take."""
