"""What workers tell the server, and what it answers.

A worker has one request in flight. The answer to a Hello or a Push is the permission to compute
again, and may be withheld: that is all that bounded staleness, a round or a checkpoint ask of it.

    worker   Hello ----------> server      worker   Push ------> server
             <-------- Weights                      <----- Weights | Rejected | Stop
"""

from dataclasses import dataclass, field

from llmtrain.sync.server.tensors import Tensors


@dataclass(frozen=True, kw_only=True)
class Hello:
    """A worker joins, or joins again under a larger incarnation."""

    worker: int
    incarnation: int


@dataclass(frozen=True, kw_only=True)
class Push:
    """What a worker computed from the weights of `base_version`."""

    worker: int
    incarnation: int
    seq: int
    """1, 2, ... within the incarnation; a push that is sent again keeps its number."""
    base_version: int
    local_steps: int
    """Steps computed since the last answer."""
    tokens: int
    """Tokens read since the last answer."""
    payload: Tensors = field(repr=False)
    """A direction to descend: a gradient, or weights received minus weights reached; for the
    elastic rule the weights reached themselves."""


@dataclass(frozen=True, kw_only=True)
class Pull:
    """Asks for the weights to look at (evaluation, export): no permission, no membership."""

    worker: int
    incarnation: int


@dataclass(frozen=True, kw_only=True)
class Heartbeat:
    """A worker lives; every other message says so too."""

    worker: int
    incarnation: int


@dataclass(frozen=True, kw_only=True)
class Bye:
    """A worker leaves in order."""

    worker: int
    incarnation: int


@dataclass(frozen=True, kw_only=True)
class Save:
    """Asks for a checkpoint of everything at one moment; anyone may ask."""

    worker: int
    incarnation: int


@dataclass(frozen=True, kw_only=True)
class Saved:
    """A worker has written its part."""

    worker: int
    incarnation: int


Message = Hello | Push | Pull | Heartbeat | Bye | Save | Saved


@dataclass(frozen=True, kw_only=True)
class Weights:
    """The weights to go on from. They belong to the server: read them, do not write into them."""

    version: int
    """Updates that the weights have seen; the base_version of the next push."""
    ticket: int
    """The global number of the push that this answers, the same on every shard; 0 for none."""
    clock: int
    """Pushes of this worker that counted, or what a late joiner was credited with."""
    slowest_clock: int
    """The least clock of the living."""
    tokens: int
    """Tokens of all workers that went into the weights: what learning rates are a function of."""
    steps: int
    """Local steps that this worker has pushed, in all its incarnations: where its data goes on."""
    local_steps: int
    """Steps to compute before the next push."""
    weights: Tensors = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Rejected:
    """A push did not count, or the worker is not a member."""

    reason: str
    fresh: Weights | None = None
    """Weights to go on from; None where the worker must say Hello under a new incarnation."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Everyone has pushed and nothing is in flight: write your part, then say Saved."""

    version: int


@dataclass(frozen=True, kw_only=True)
class Stop:
    """Training has read its tokens; Pull gives the final weights."""

    version: int
    tokens: int


Reply = Weights | Rejected | Checkpoint | Stop

Replies = list[tuple[int, Reply]]
"""Worker and reply, in the order to be sent."""
