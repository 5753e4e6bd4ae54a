"""The rendezvous of the processes of one machine: a store that only this machine can reach.

torch's own c10d rendezvous listens on every interface and unpickles what stands in its store, so
that whoever reaches its port could run code here. One machine has no membership to agree on.
"""

import secrets
import socket

from torch.distributed import PrefixStore, TCPStore
from torch.distributed.elastic.rendezvous import (
    RendezvousHandler,
    RendezvousInfo,
    RendezvousStoreInfo,
)

HOST = "127.0.0.1"
BACKLOG = 1024
"""Connections that may wait to be accepted: all ranks come at once."""


def serve_store() -> TCPStore:
    """Return a store that this process serves, on a free port of the loopback interface.

    TCPStore binds every interface, whatever host it is given; a socket that is bound already it
    takes as it is.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.bind((HOST, 0))
        listener.listen(BACKLOG)
        port = listener.getsockname()[1]
        return TCPStore(
            HOST, port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach()
        )  # fmt: skip


class LoopbackRendezvous(RendezvousHandler):
    """The rendezvous of an elastic agent that is alone: always one node, at once."""

    def __init__(self) -> None:
        """Set up; serves nothing yet."""
        self._store: TCPStore | None = None
        self._run_id = secrets.token_hex(8)
        self._closed = False

    def get_backend(self) -> str:
        """Return a name for torch's logs."""
        return "loopback"

    @property
    def use_agent_store(self) -> bool:
        """Workers meet in the agent's store: it outlives each of them."""
        return True

    def next_rendezvous(self) -> RendezvousInfo:
        """Return the next attempt's world, with a store of its own.

        In the one before stand the addresses of processes that have died, under keys that the next
        ones look at: they would wait for the dead.
        """
        self._store = serve_store()
        store = PrefixStore("agent", self._store)
        return RendezvousInfo(store, 0, 1, RendezvousStoreInfo(HOST, self._store.port))

    def is_closed(self) -> bool:
        """Whether `set_closed` was called."""
        return self._closed

    def set_closed(self) -> None:
        """Take note that the run is over."""
        self._closed = True

    def num_nodes_waiting(self) -> int:
        """No other node ever comes."""
        return 0

    def get_run_id(self) -> str:
        """Return a word that no other run has."""
        return self._run_id

    def shutdown(self) -> bool:
        """Nothing has to be told to anybody."""
        return True
