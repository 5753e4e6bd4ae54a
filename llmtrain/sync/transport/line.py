"""Line: a replica process's end. It asks, and waits for the answer; one question at a time."""

import threading
from collections.abc import Callable

import torch.distributed as dist

from llmtrain.sync.transport.frame import Frame
from llmtrain.sync.transport.session import Caller, call

SIGNS = 4
"""Signs of life in the time after which a replica counts as dead."""


def beat_key(worker: int) -> str:
    """Return where in the store a replica's signs of life are counted."""
    return f"beats/{worker}"


class Line:
    """A line to the server."""

    def __init__(self, store: dist.TCPStore, caller: Caller, dead_after_s: float) -> None:
        """Call the server, and give signs of life from now on.

        Args:
            store: The rendezvous store of the run.
            caller: Who calls.
            dead_after_s: Seconds of silence after which a replica counts as dead.

        Raises:
            LostLineError: when the server does not answer the call.
        """
        self._session = call(store, caller)
        self._ended = threading.Event()
        if caller.place == 0:
            beat = self._beats(own_client(store), beat_key(caller.worker), dead_after_s / SIGNS)
            threading.Thread(target=beat, name="llmtrain-beats", daemon=True).start()

    def ask(self, frame: Frame) -> Frame:
        """Say `frame` and return the answer, however long it takes.

        Raises:
            LostLineError: when the server is gone.
        """
        return self._session.ask(frame)

    def traffic(self) -> int:
        """Return the bytes that went both ways since it was last asked."""
        return self._session.traffic()

    def close(self) -> None:
        """Give no more signs of life."""
        self._ended.set()

    def _beats(self, store: dist.Store, key: str, every_s: float) -> Callable[[], None]:
        def beat() -> None:
            try:
                while not self._ended.wait(every_s):
                    store.add(key, 1)
            except dist.DistError:
                return  # the launcher is gone, and this process with it

        return beat


def own_client(store: dist.TCPStore) -> dist.TCPStore:
    """Return another connection to `store`: a wait on one holds up everybody who shares it."""
    return dist.TCPStore(store.host, store.port, is_master=False)
