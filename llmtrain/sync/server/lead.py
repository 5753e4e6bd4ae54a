"""Lead: the core that decides where several servers hold the weights together.

    worker's part of a push ------------------> every server keeps its part
    worker: "all have it" --> Lead: decides, stamps --> entries --> every server does the same

The lead holds no tensor. What a core decides depends on messages and times alone, so each server's
own core, told both in the lead's order, decides the same, and all stand at one version: stamps are
the global tickets of all there is, not of pushes only.
"""

from collections.abc import Callable, Collection

from llmtrain.sync.server.core import ServerCore
from llmtrain.sync.server.entry import Entry, words_of
from llmtrain.sync.server.messages import Message, Replies
from llmtrain.sync.server.rules import NoWeights, State
from llmtrain.sync.server.settings import ServerSettings
from llmtrain.sync.server.tensors import Tensors

Publish = Callable[[Entry], None]


class Lead(ServerCore):
    """A core whose inputs others are told, in its order."""

    def __init__(self, settings: ServerSettings, publish: Publish) -> None:
        """Wait for the first Hello.

        Args:
            settings: Those of every server.
            publish: Tells the servers that hold weights; each reads every entry, in this order.
        """
        super().__init__(NoWeights(), settings, lambda tokens: 0.0)
        self.stamp: int = 0
        self._tell = publish

    def handle(self, message: Message, now: float) -> Replies:
        """Take in one message whose tensors the servers have already."""
        replies = super().handle(message, now)
        kind, said = words_of(message)
        self._publish(kind, now=now, said=said)
        return replies

    def tick(self, now: float, alive: Collection[int] = ()) -> Replies:
        """Let time pass, for all servers."""
        replies = super().tick(now, alive)
        self._publish("tick", now=now, alive=list(alive))
        return replies

    def plan_rest(self, at_tokens: int | None, *, stopping: bool = False) -> None:
        """Have all servers rest at the same place."""
        super().plan_rest(at_tokens, stopping=stopping)
        self._publish("rest", at_tokens=at_tokens, stopping=stopping)

    def show_weights(self) -> Tensors:
        """Have every server show its weights to whoever comes with this stamp; return none."""
        self._publish("show", state=False)
        return super().show_weights()

    def show_state(self) -> State:
        """Have every server show its state likewise; return what has no tensors in it."""
        self._publish("show", state=True)
        return super().show_state()

    def load_state_dict(self, state: State) -> None:
        """Take back a state; the servers take theirs from what the first replica gave them."""
        super().load_state_dict(state)
        self._publish("open")

    def _publish(self, kind: str, **more: object) -> None:
        self.stamp += 1
        after = [self.version, self.ticket]
        self._tell({"stamp": self.stamp, "kind": kind, "after": after, **more})
