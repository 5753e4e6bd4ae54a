"""The group `sync`, choice gossip: replicas that talk to a few peers at a time."""

from dataclasses import dataclass

from llmtrain.config.groups.sync import SemiSyncConfig
from llmtrain.errors import require, require_choice

GRAPHS = {
    "dpsgd": ("ring", "exponential", "random_pair", "complete"),
    "push_sum": ("exponential", "random_peer"),
}
"""Algorithm -> the graphs it is for: peers that hear each other, or not."""


@dataclass(kw_only=True)
class GossipConfig(SemiSyncConfig):
    """Each replica steps on its own and mixes its weights with a few peers', never all at once."""

    name: str = "gossip"
    algorithm: str = "push_sum"
    """push_sum (SGP, arXiv:1811.10792): a replica sends without hearing back | dpsgd (D-PSGD,
    arXiv:1705.09056): peers hear each other."""
    graph: str = "exponential"
    """Who the peers are: exponential | ring, random_pair, complete (dpsgd) | random_peer
    (push_sum)."""
    sync_every_steps: int = 1
    """Steps of a replica between two rounds."""
    seed: int = 0
    """Of the random graphs: which peers meet in a round is a function of it and the round."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.sync_every_steps > 0,
            f"sync.sync_every_steps={self.sync_every_steps} must be positive.",
        )
        require_choice("sync.algorithm", self.algorithm, GRAPHS)
        known = dict.fromkeys(graph for graphs in GRAPHS.values() for graph in graphs)
        require_choice("sync.graph", self.graph, known)
        other = next(a for a, graphs in GRAPHS.items() if self.graph in graphs)
        heard = "a peer need not hear back" if other == "push_sum" else "peers hear each other"
        require(
            self.graph in GRAPHS[self.algorithm],
            f"sync.graph={self.graph}, on which {heard}, is not one of "
            f"sync.algorithm={self.algorithm}; use sync.algorithm={other}, or "
            f"sync.graph={' or '.join(GRAPHS[self.algorithm])}.",
        )
