"""Round: the pushes that will move the weights together."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from llmtrain.sync.server.rules import State
from llmtrain.sync.server.tensors import Tensors, clone, mean

Key = tuple[int, int]
"""Worker and incarnation: a worker that died and came back may have a push of each in a round."""


@dataclass(frozen=True)
class Contribution:
    """One push that counts."""

    tokens: int
    payload: Tensors = field(repr=False)


class Round:
    """What was pushed since the last update.

    A push belongs to the round that is open when it arrives, however late: it counts once. With
    staleness_policy=reject and max_versions=0 a late one does not count at all.
    """

    def __init__(self) -> None:
        self._pushes: dict[Key, Contribution] = {}
        self._quorum_s: float | None = None

    def __contains__(self, key: Key) -> bool:
        """Return whether the worker has pushed into this round."""
        return key in self._pushes

    @property
    def tokens(self) -> int:
        """Tokens of all its pushes."""
        return sum(push.tokens for push in self._pushes.values())

    def add(self, key: Key, contribution: Contribution) -> None:
        """Take a push in."""
        self._pushes[key] = contribution

    def mean(self) -> Tensors:
        """Return the mean in worker order, which does not depend on who came first."""
        return mean([self._pushes[key].payload for key in sorted(self._pushes)])

    def clear(self) -> None:
        """Begin the next round."""
        self._pushes.clear()
        self._quorum_s = None

    def complete(
        self, living: Iterable[Key], quorum: int | None, grace_s: float, now: float
    ) -> bool:
        """Return whether the round closes now.

        It does once everyone alive is in, or once `grace_s` have passed since `quorum` were.
        """
        if not self._pushes:
            return False
        if all(key in self._pushes for key in living):
            return True
        if quorum is None or len(self._pushes) < quorum:
            return False
        if self._quorum_s is None:
            self._quorum_s = now
        # Not now - begin >= grace: at `closes_s`, as computed below, it has to be true.
        return now >= self._quorum_s + grace_s

    def closes_s(self, grace_s: float) -> float | None:
        """Return when it closes, whoever is missing; None: there is no quorum yet."""
        return None if self._quorum_s is None else self._quorum_s + grace_s

    def state_dict(self) -> State:
        """Return the pushes and since when there have been enough."""
        pushes = [
            {"key": list(key), "tokens": push.tokens, "payload": clone(push.payload)}
            for key, push in sorted(self._pushes.items(), key=lambda item: item[0])
        ]
        return {"pushes": pushes, "quorum_s": self._quorum_s}

    def load_state_dict(self, state: State) -> None:
        """Take back what `state_dict` gave."""
        self._quorum_s = state["quorum_s"]
        self._pushes = {
            (saved["key"][0], saved["key"][1]): Contribution(
                saved["tokens"], clone(saved["payload"])
            )
            for saved in state["pushes"]
        }
