"""Lines: a replica process's end where several servers hold the weights.

    part of the push to each server, all at once  ->  "taken" from each
    the push without tensors, to the lead         ->  its answer, with a stamp
    "give" that stamp to each, all at once        ->  each one's part of the answer

Two short round trips more than with one server, and each tensor goes one way to one server. The
parts of an answer are of one version, or it is refused.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch.distributed as dist

from llmtrain.sync.server.packing import joined, placed_name
from llmtrain.sync.server.tensors import Tensors
from llmtrain.sync.transport.frame import Frame
from llmtrain.sync.transport.line import Line
from llmtrain.sync.transport.session import Caller, call
from llmtrain.sync.transport.shard import GIVE, GONE, PART, ShardError


class Lines:
    """Lines to all servers of a run; `Line` is the one to the lead."""

    def __init__(
        self,
        store: dist.TCPStore,
        caller: Caller,
        dead_after_s: float,
        owner: Mapping[str, int],
        servers: int,
    ) -> None:
        """Call all servers, and give signs of life from now on.

        Args:
            store: The rendezvous store of the run.
            caller: Who calls.
            dead_after_s: Seconds of silence after which a replica counts as dead.
            owner: Which server holds each of this process's parameters, by "place/name".
            servers: How many there are.

        Raises:
            LostLineError: when a server does not answer the call.
        """
        self._owner, self._servers = owner, servers
        self._lead = Line(store, caller, dead_after_s)
        self._others = [call(store, caller, server) for server in range(1, servers)]
        self._pool = ThreadPoolExecutor(servers, thread_name_prefix="llmtrain-lines")

    def ask(self, frame: Frame) -> Frame:
        """Say `frame` and return the answer, however long it takes.

        Raises:
            LostLineError: when a server is gone.
            ShardError: when the parts of an answer are of different versions.
        """
        if frame.tensors:
            self._all([Frame(PART, frame.fields, part) for part in self._parts(frame.tensors)])
        answer = self._lead.ask(Frame(frame.kind, frame.fields))
        stamp = answer.fields.get("stamp")
        if stamp is None:
            return answer
        return _whole(answer, self._all([Frame(GIVE, {"stamp": stamp})] * self._servers))

    def traffic(self) -> int:
        """Return the bytes that went both ways since it was last asked."""
        return self._lead.traffic() + sum(one.traffic() for one in self._others)

    def close(self) -> None:
        """Give no more signs of life."""
        self._lead.close()
        self._pool.shutdown(wait=False)

    def _parts(self, tensors: Tensors) -> list[Tensors]:
        parts: list[Tensors] = [{} for _ in range(self._servers)]
        for path, tensor in tensors.items():
            parts[self._owner[placed_name(path)]][path] = tensor
        return parts

    def _all(self, frames: Sequence[Frame]) -> list[Frame]:
        """Ask every server, the lead's process first; return all answers."""
        answers = [
            self._pool.submit(one.ask, frame)
            for one, frame in zip(self._others, frames[1:], strict=True)
        ]
        return [self._lead.ask(frames[0]), *(answer.result() for answer in answers)]


def _whole(answer: Frame, given: Sequence[Frame]) -> Frame:
    """Return the lead's answer with all servers' tensors, and their state where it is one."""
    if any(part.kind == GONE for part in given):
        return Frame("rejected", {"reason": "the servers have gone on without this replica"})
    versions = {part.fields["version"] for part in given}
    if len(versions) > 1:
        raise ShardError(f"the servers answered from versions {sorted(versions)}")
    fields = dict(answer.fields)
    if given[0].fields["core"] is not None:
        state = joined([part.fields["core"] for part in given])
        fields["server"] = {**fields["server"], "core": state}
    tensors = {name: tensor for part in given for name, tensor in part.tensors.items()}
    return Frame(answer.kind, fields, tensors)
