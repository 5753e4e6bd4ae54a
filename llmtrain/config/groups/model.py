"""The group `model`: the shape of the network, one dataclass a family."""

from dataclasses import dataclass

from llmtrain.errors import require


@dataclass(kw_only=True)
class ModelConfig:
    """What every family has. Sizes are counts unless the name says otherwise."""

    name: str
    """The family: gpt | llama."""
    n_layers: int
    """Transformer blocks."""
    n_heads: int
    """Query heads in a block; must divide `dim`."""
    dim: int
    """Width of the residual stream."""
    seq_len: int = 1024
    """Tokens in one sequence: the longest context the model is trained on."""
    vocab_size: int | None = None
    """Rows of the embedding; null: what the tokenizer needs."""
    ffn_dim: int | None = None
    """Hidden width of the feed-forward; null: 4 * dim."""
    tie_embeddings: bool = False
    """Use the token embedding as the output head."""
    dropout: float = 0.0
    """Probability of zeroing an activation after the embedding, attention and feed-forward, 0 to 1.
    Masks are a function of (seed, sample, position), so they do not depend on the layout."""
    norm_eps: float = 1e-5
    """Added to the variance inside the norms."""
    init_std: float = 0.02
    """Standard deviation of the initial weights; projections into the residual stream are divided
    by sqrt(2 n_layers) (GPT-2, Radford et al. 2019, section 2.3)."""

    @property
    def ffn_width(self) -> int:
        """Hidden width of the feed-forward."""
        return self.ffn_dim or 4 * self.dim

    def __post_init__(self) -> None:
        for key in ("n_layers", "n_heads", "dim", "seq_len"):
            require(getattr(self, key) > 0, f"model.{key}={getattr(self, key)} must be positive.")
        require(
            self.dim % self.n_heads == 0,
            f"model.n_heads={self.n_heads} must divide model.dim={self.dim}; try "
            f"{', '.join(str(n) for n in range(1, 65) if self.dim % n == 0)}.",
        )
        require(0 <= self.dropout < 1, f"model.dropout={self.dropout} must be in [0, 1).")
        require(
            self.vocab_size is None or self.vocab_size > 0,
            f"model.vocab_size={self.vocab_size} must be positive, or null for the tokenizer's.",
        )


@dataclass(kw_only=True)
class GPTConfig(ModelConfig):
    """GPT-2: learned positions, LayerNorm, GELU (Radford et al. 2019)."""

    name: str = "gpt"
    bias: bool = True
    """Biases in the linear layers and norms."""
    tie_embeddings: bool = True
    """Use the token embedding as the output head, as GPT-2 does."""


@dataclass(kw_only=True)
class LlamaConfig(ModelConfig):
    """Llama: RoPE, RMSNorm, SwiGLU, grouped-query attention (arXiv:2302.13971, 2307.09288)."""

    name: str = "llama"
    n_kv_heads: int | None = None
    """Key and value heads, shared by groups of query heads (arXiv:2305.13245); null: n_heads."""
    ffn_dim: int | None = None
    """Hidden width of the feed-forward; null: 8/3 * dim rounded up to `ffn_multiple_of`."""
    ffn_multiple_of: int = 64
    """What a derived `ffn_dim` is rounded up to."""
    rope_theta: float = 10_000.0
    """Base of the rotary wavelengths (arXiv:2104.09864, section 3.2.2)."""

    @property
    def ffn_width(self) -> int:
        """As given, else 8/3 dim rounded up (arXiv:2302.13971, section 2.2)."""
        if self.ffn_dim is not None:
            return self.ffn_dim
        multiple = self.ffn_multiple_of
        return -(-8 * self.dim // (3 * multiple)) * multiple

    def __post_init__(self) -> None:
        super().__post_init__()
        kv = self.n_kv_heads
        require(
            kv is None or (0 < kv <= self.n_heads and self.n_heads % kv == 0),
            f"model.n_kv_heads={kv} must divide model.n_heads={self.n_heads}; try "
            f"{', '.join(str(n) for n in range(1, self.n_heads + 1) if self.n_heads % n == 0)}.",
        )
        require(
            (self.dim // self.n_heads) % 2 == 0,
            f"model.dim / model.n_heads = {self.dim // self.n_heads} must be even for rotary "
            "positions; change model.n_heads.",
        )
