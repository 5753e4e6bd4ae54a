"""Stamps: the lead's entries on their way to the other servers, through the rendezvous store."""

import json
from collections.abc import Iterator

import torch.distributed as dist

from llmtrain.sync.server.entry import Entry
from llmtrain.sync.transport.session import GLANCE

END: Entry = {"kind": "end"}
"""The last entry: nobody will ask any more."""


class Stamps:
    """The lead's end: a copy of each entry for each other server."""

    def __init__(self, store: dist.Store, servers: int) -> None:
        """Set up; `servers` are all of them, the lead's own process included."""
        self._store, self._others, self._count = store, range(1, servers), 0

    def publish(self, entry: Entry) -> None:
        """Tell all others."""
        self._count += 1
        text = json.dumps(entry)
        for server in self._others:
            self._store.set(f"stamps/{server}/{self._count}", text)


def entries(store: dist.Store, server: int) -> Iterator[Entry]:
    """Yield what `server` is told, without the last; what is read is gone from the store.

    Raises:
        DistError: when the store is gone.
    """
    number = 1
    while True:
        key = f"stamps/{server}/{number}"
        try:
            # Short waits: a signal's handler runs only when one returns.
            store.wait([key], GLANCE)
        except dist.DistStoreError:
            continue
        entry: Entry = json.loads(store.get(key))
        store.delete_key(key)
        if entry == END:
            return
        yield entry
        number += 1
