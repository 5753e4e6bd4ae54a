"""The block `data.near`: what counts as a near-duplicate, and how hard it is looked for."""

from dataclasses import dataclass

from llmtrain.errors import require, require_choice


@dataclass(kw_only=True)
class NearConfig:
    """Near-duplicates, where data.dedup=near: documents that share most of their n-grams."""

    similarity: float = 0.8
    """Share of their n-grams that two documents have in common (Jaccard) from which on one goes."""
    permutations: int = 128
    """Numbers in a document's MinHash sketch: more are surer, and take 5 bytes of disk each."""
    ngram: int = 5
    """Words, or characters, in an n-gram."""
    unit: str = "words"
    """What an n-gram counts: words (in scripts without spaces, a character is a word) | characters
    (letters and digits in any script)."""
    seed: int = 1
    """Seed of the sketches."""

    def __post_init__(self) -> None:
        require_choice("data.near.unit", self.unit, ("words", "characters"))
        require(
            0 < self.similarity <= 1,
            f"data.near.similarity={self.similarity} must be above 0 and at most 1, such as 0.8.",
        )
        require(
            16 <= self.permutations <= 4096,
            f"data.near.permutations={self.permutations} must be 16 to 4096, such as 128.",
        )
        require(1 <= self.ngram <= 64, f"data.near.ngram={self.ngram} must be 1 to 64, such as 5.")
        require(self.seed >= 0, f"data.near.seed={self.seed} must not be negative.")
