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


def _case(
    name: str, model: str, tokenizer: str, dim: int, layers: int, heads: int, seq_len: int,
    batch: int, bf16: bool, steps_per_round: int,
) -> Case:  # fmt: skip
    overrides = (
        f"model={model}", f"model.seq_len={seq_len}", f"tokenizer={tokenizer}",
        f"train.global_batch_size={batch}", f"train.precision={'bf16' if bf16 else 'fp32'}",
        "train.steps=100000", "optimizer.beta2=0.99", "scheduler.warmup_steps=100",
    )  # fmt: skip
    return Case(
        name, overrides, tokenizer, dim, layers, heads, seq_len, batch, bf16, steps_per_round
    )


CASES = (
    _case("char GPT 0.8 M, fp32", "gpt_tiny", "char", 128, 4, 4, 64, 12, False, 40),
    _case("char GPT 0.8 M, bf16", "gpt_tiny", "char", 128, 4, 4, 64, 12, True, 40),
    _case("gpt_10m, fp32", "gpt_10m", "bpe", 384, 6, 6, 256, 8, False, 2),
    _case("gpt_10m, bf16", "gpt_10m", "bpe", 384, 6, 6, 256, 8, True, 4),
)
