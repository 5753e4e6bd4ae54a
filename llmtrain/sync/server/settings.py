"""How the server treats pushes: plain values, all of them decided before the first message."""

from dataclasses import dataclass

from llmtrain.errors import require, require_choice


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """What a server does with a push, and with whoever does not push.

    | mode | settings |
    |---|---|
    | asynchronous | apply=per_push |
    | stale synchronous parallel | apply=per_push, max_staleness=s |
    | its bound 0, synchronous training, DiLoCo | apply=per_clock |
    | quorum | apply=per_clock, quorum=K, grace_s |
    """

    apply: str = "per_push"
    """per_push: an update a push, at once. per_clock: one update with the mean of a round."""

    max_staleness: int | None = None
    """Clocks that a worker may start ahead of the slowest; None is no bound. Of per_push: a round
    holds its workers until it closes, which is bound 0."""

    quorum: int | None = None
    """Pushes that close a round; None is one of every living worker. Of per_clock."""

    grace_s: float = 0.0
    """Seconds that a round waits for the others after its quorum is there."""

    staleness_policy: str = "accept"
    """accept; decay: scaled by 1/(1 + versions behind); reject: not counted when more than
    max_versions behind."""

    max_versions: int | None = None
    """Versions behind that staleness_policy=reject lets pass."""

    lr_over_workers: bool = True
    """per_push divides the learning rate by the living workers, so that one push of each makes one
    step. Off for rules that divide on their own (delayed Nesterov) and for raw outer steps."""

    min_workers: int = 1
    """Living workers below which nobody gets permission to compute and no round closes."""

    dead_after_s: float | None = None
    """Seconds of silence after which a worker counts as dead; None is never."""

    local_steps: int = 1
    """Steps between a worker's pushes."""

    adapt_local_steps: bool = False
    """Give slow workers fewer local steps, so that all push equally often (DyLU)."""

    step_tokens: int | None = None
    """Tokens of a worker's local step: where stop_tokens is near, workers are given no more steps
    than are left to each of the living; None: they are always given all."""

    stop_tokens: int | None = None
    """Tokens of all workers after which training stops; None is never."""

    def __post_init__(self) -> None:
        """Refuse what contradicts itself.

        Raises:
            ConfigError: when a value is impossible, or does not go with another.
        """
        require_choice("apply", self.apply, ("per_push", "per_clock"))
        require_choice("staleness_policy", self.staleness_policy, ("accept", "decay", "reject"))
        for name in ("min_workers", "local_steps"):
            require(getattr(self, name) >= 1, f"{name}={getattr(self, name)} must be at least 1.")
        require(
            self.max_staleness is None or (self.max_staleness >= 0 and self.apply == "per_push"),
            f"max_staleness={self.max_staleness} must be null or at least 0, and goes with "
            f"apply=per_push, not with apply={self.apply}: rounds are bound 0 already.",
        )
        require(
            self.apply == "per_clock" or (self.quorum is None and self.grace_s == 0),
            f"quorum={self.quorum} and grace_s={self.grace_s} need apply=per_clock.",
        )
        require(
            self.grace_s >= 0 and (self.quorum is None or self.quorum >= 1),
            f"quorum={self.quorum} must be null or at least 1, grace_s={self.grace_s} at least 0.",
        )
        require(
            (self.staleness_policy == "reject") == (self.max_versions is not None),
            f"staleness_policy={self.staleness_policy} with max_versions={self.max_versions}: "
            "reject needs a number of versions, and nothing else takes one.",
        )
