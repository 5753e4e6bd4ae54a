"""Shards: all servers of a run as their lead sees them. One shard is in its own process."""

import torch.distributed as dist

from llmtrain.sync.server.entry import Entry
from llmtrain.sync.transport.frame import Frame
from llmtrain.sync.transport.hub import Answers, Desk
from llmtrain.sync.transport.shard import GIVE, PART, Open, Shard
from llmtrain.sync.transport.stamps import END, Stamps


class Shards:
    """Those who are told what the lead decides."""

    def __init__(self, store: dist.Store, servers: int, opening: Open) -> None:
        """Set up.

        Args:
            store: A connection to the rendezvous store that nobody waits on.
            servers: How many hold the weights.
            opening: Builds the core of the shard in this process.
        """
        self._stamps = Stamps(store, servers)
        self.own = Shard(opening)

    def publish(self, entry: Entry) -> None:
        """Tell all of them."""
        self._stamps.publish(entry)
        answers = self.own.follow(entry)
        assert not answers, "nobody asks for what the lead has not answered yet"

    def end(self) -> None:
        """Tell the others that nobody will ask any more."""
        self._stamps.publish(END)


class Together:
    """The desk of the process that leads: its shard's beside the one that decides."""

    def __init__(self, lead: Desk, shards: Shards) -> None:
        self._lead, self._shard = lead, shards.own

    def handle(self, worker: int, frame: Frame) -> Answers:
        """Take in what a replica says."""
        desk: Desk = self._shard if frame.kind in (PART, GIVE) else self._lead
        return desk.handle(worker, frame)

    def lost(self, worker: int) -> Answers:
        """Take note that a replica's line has broken."""
        self._shard.lost(worker)
        return self._lead.lost(worker)
