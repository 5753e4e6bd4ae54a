"""The meeting of several hosts: a store that the first serves, and torch's rendezvous on it.

torch's own rendezvous is used as it is. What stands here is around it: the store listens on the
address that hosts were given and no other, a host that cannot be reached is named in seconds, all
hosts are seen to work in one run directory, and the first leaves last.

torch keeps the rendezvous' state pickled in the store, so that whoever reaches the port could run
code on all hosts: it belongs into a network whose members are trusted.
"""

import datetime
import json
import secrets
import socket
import time
from pathlib import Path

from torch.distributed import DistError, TCPStore
from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousStoreInfo
from torch.distributed.elastic.rendezvous.c10d_rendezvous_backend import C10dRendezvousBackend
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import (
    DynamicRendezvousHandler,
    RendezvousTimeout,
)
from torch.distributed.elastic.rendezvous.static_tcp_rendezvous import StaticTCPRendezvous

from llmtrain.config.paths import LOGS
from llmtrain.distributed.loopback import BACKLOG
from llmtrain.distributed.node import Node, bound, reachable_address
from llmtrain.distributed.waiting import for_hosts, told
from llmtrain.durable import replace_text
from llmtrain.errors import ConfigError

TRY_S = 0.5
"""Seconds between two tries to reach the first host."""
STORE_S = 60.0
"""How long the store may take to answer, seconds: a short cut of the network is sat out."""
SEEN_S = 20.0
"""How long a file of the first host may take to be seen on another: network file systems cache."""
CALL_S = 3.0
"""How long hosts that come in may take to be seen by one whose ranks were told to stop."""
LAST_CALL_S = 5.0
"""With fewer hosts than there may be: how long more are waited for, seconds."""
LEAVE_S = 20.0
"""How long the first host waits for the others to end before it takes the store away."""

WELCOME = "welcome"


def serve(
    host: str, port: int, address: tuple[int, str] | None, patience_s: float = STORE_S
) -> TCPStore:
    """Return the store of the first host.

    Args:
        host: Its name, as the others know it.
        port: Where it listens.
        address: Family and address of that name; None: it is none that others reach, and this
            machine listens on all it has.
        patience_s: How long what is asked of the store may be waited for.

    Raises:
        ConfigError: when the port is taken, or may not be had.
    """
    with bound(host, port, address) as listener:
        listener.listen(BACKLOG)
        return TCPStore(
            address[1] if address else "127.0.0.1", port, is_master=True, wait_for_workers=False,
            timeout=datetime.timedelta(seconds=patience_s), master_listen_fd=listener.detach(),
        )  # fmt: skip


def reach(host: str, port: int, timeout_s: float, patience_s: float = STORE_S) -> TCPStore:
    """Return the store of the first host, from another one.

    Args:
        host: The first host.
        port: Where it listens.
        timeout_s: How long to try.
        patience_s: How long what is asked of the store may be waited for.

    Raises:
        ConfigError: when it cannot be reached; says why, as far as that can be known.
    """
    until = time.monotonic() + timeout_s
    why = ""
    with told(lambda: f"waiting for the first host at {host}:{port}{why}"):
        while True:
            left = max(TRY_S, until - time.monotonic())
            try:
                # Whether anybody listens is known in a moment; TCPStore itself tries for minutes.
                with socket.create_connection((host, port), timeout=min(left, 5.0)):
                    why = ""
                store = TCPStore(
                    host, port, is_master=False, wait_for_workers=False,
                    timeout=datetime.timedelta(seconds=min(left, STORE_S)),
                )  # fmt: skip
                store.set_timeout(datetime.timedelta(seconds=patience_s))
                return store
            except (OSError, DistError, ValueError) as error:
                if time.monotonic() + TRY_S > until:
                    raise _unreachable(host, port, timeout_s, error) from None
                if isinstance(error, OSError):
                    why = f" ({error.strerror or error})"
            time.sleep(TRY_S)


def _unreachable(host: str, port: int, timeout_s: float, error: Exception) -> ConfigError:
    where = f"launcher.rdzv_endpoint={host}:{port}"
    waited = f"tried for {timeout_s:g} s (launcher.connect_timeout_s)"
    if isinstance(error, socket.gaierror):
        return ConfigError(
            f"{where}: this machine knows no host of the name '{host}' ({error.strerror}; "
            f"{waited}). Check its spelling, or give its address."
        )
    if isinstance(error, ConnectionRefusedError):
        return ConfigError(
            f"{where}: nothing listens on port {port} of {host} ({waited}). Was the command "
            "started on the first host, with the same port?"
        )
    if not isinstance(error, OSError):
        return ConfigError(
            f"{where}: something listens there that does not speak as the first host does "
            f"({waited}). Is the port another program's?"
        )
    return ConfigError(
        f"{where} does not answer ({error.strerror or error}; {waited}). Is it up, and does a "
        f"firewall let port {port} through?"
    )


class Meeting:
    """One host's side of the store and the rendezvous."""

    def __init__(self, node: Node) -> None:
        """Serve the store, or reach it.

        Raises:
            ConfigError: when it cannot be served or reached.
        """
        self.node, self.leads, self.nnodes = node, node.leads, node.nnodes
        self.host = socket.gethostname()
        self._round = 0
        # torch's static rendezvous waits for other hosts in the store, the dynamic one looks again.
        self._patience_s = max(STORE_S, node.join_timeout_s) if node.is_static else STORE_S
        if node.leads:
            self._store = serve(
                node.host, node.port, reachable_address(node.host, node.nnodes), self._patience_s
            )
        else:
            self._store = reach(node.host, node.port, node.connect_timeout_s, self._patience_s)
        self.handler = self._static() if node.is_static else self._dynamic()

    def _static(self) -> RendezvousHandler:
        assert self.node.rank is not None
        handler = StaticTCPRendezvous(
            self.node.host, self.node.port, rank=self.node.rank, world_size=self.nnodes,
            run_id="llmtrain", timeout=int(self.node.join_timeout_s),
        )  # fmt: skip
        handler._store = self._store  # or it would make one that listens on every interface
        return handler

    def _dynamic(self) -> RendezvousHandler:
        place = self.node.rank
        if place is None:
            place = 0 if self.leads else 999999
        handler = DynamicRendezvousHandler.from_backend(
            "llmtrain", self._store, C10dRendezvousBackend(self._store, "llmtrain"),
            self.node.min_nodes, self.nnodes,
            # Hosts get their ranks in the order of these; without numbers the first is the first.
            local_addr=f"{place:06d}.{self.host}",
            timeout=RendezvousTimeout(
                join=datetime.timedelta(seconds=self.node.join_timeout_s),
                last_call=datetime.timedelta(seconds=LAST_CALL_S),
                heartbeat=datetime.timedelta(seconds=STORE_S),
            ),
        )  # fmt: skip
        # Else it would make a second store for the workers, that listens on every interface.
        handler._shared_tcp_store_server = self._store
        handler._bootstrap_store_info = RendezvousStoreInfo(self.node.host, self.node.port)
        return handler

    def met(self) -> int:
        """Take note that the hosts have met; return how often they had before."""
        if isinstance(self.handler, DynamicRendezvousHandler):
            self._round = int(self.handler._state_holder.state.round)
        return self._round

    def is_called(self) -> bool:
        """Whether hosts wait to come in, or meet again already without this one.

        torch looks at the rendezvous once a second, and its word may be older than the call.
        """
        if not isinstance(self.handler, DynamicRendezvousHandler):
            return False
        until = time.monotonic() + CALL_S
        while True:
            waiting = self.handler.num_nodes_waiting()
            state = self.handler._state_holder.state
            if state.closed:
                return False
            if waiting > 0 or not state.complete or state.round != self._round:
                return True
            if time.monotonic() > until:
                return False
            time.sleep(TRY_S)

    def waiting(self) -> str:
        """Return what to say while the others are waited for; "": they have come."""
        if isinstance(self.handler, DynamicRendezvousHandler):
            state = self.handler._state_holder.state
            if state.complete and self.handler._this_node in state.participants:
                return ""
            if state.complete:  # it came late, or has left for the next meeting before them
                others = ", ".join(self._others())
                return f"waiting at {self.node.endpoint} for {others} to meet again"
        return for_hosts(self.node.endpoint, self.node.min_nodes, self.nnodes, self._came())

    def _came(self) -> list[str]:
        """Return the names of the hosts that have come, this one too; []: that is not known."""
        if not isinstance(self.handler, DynamicRendezvousHandler):
            return []
        return sorted([self.host, *self._others()])

    def _others(self) -> list[str]:
        """Return the names of the other hosts at the meeting; of one machine there may be two."""
        assert isinstance(self.handler, DynamicRendezvousHandler)
        # Copied at once: the main thread may be changing it.
        there = [*self.handler._state_holder.state.participants]
        others = [node.addr for node in there if node != self.handler._this_node]
        return sorted(address.partition(".")[2] for address in others)

    def incomplete(self) -> str:
        """Return what to say when not all hosts have come in time."""
        came = self._came()
        here = f"; {len(came)} came: {', '.join(came)}" if came else ""
        needed = f"launcher.nnodes={self.nnodes}"
        if self.node.min_nodes < self.nnodes:
            needed = f"launcher.min_nodes={self.node.min_nodes}"
        return (
            f"{needed} hosts were waited for at {self.node.endpoint} for "
            f"{self.node.join_timeout_s:g} s (launcher.join_timeout_s){here}. Start the command on "
            "the others, or lower the number on all."
        )

    def agree(self, run_dir: Path | None, digest: str) -> Path:
        """Return the run directory, which is seen to be the same folder on all hosts.

        Args:
            run_dir: Where this host was told to work; None: where the first does.
            digest: Of this host's configuration; "": it has none of its own.

        Raises:
            ConfigError: when it is another folder here, or another configuration.
        """
        if not self.leads:
            return self._be_welcomed(run_dir, digest)
        assert run_dir is not None
        token = secrets.token_hex(8)
        replace_text(_token_path(run_dir), token)
        words = {"run_dir": str(run_dir), "token": token, "digest": digest}
        self._store.set(WELCOME, json.dumps(words))
        return run_dir

    def _be_welcomed(self, run_dir: Path | None, digest: str) -> Path:
        words = json.loads(_awaited(self._store, WELCOME, self.node.join_timeout_s))
        there = Path(words["run_dir"])
        if digest and digest != words["digest"]:
            raise ConfigError(
                "this host was started with other settings than the first; give both the same "
                "command line, with the same conf/ (`--cfg job` on both shows the difference)."
            )
        folder = run_dir or there
        until = time.monotonic() + SEEN_S
        while True:
            try:
                if _token_path(folder).read_text() == words["token"]:
                    return folder
            except OSError:
                pass
            if time.monotonic() > until:
                raise ConfigError(
                    f"run_dir={folder} on this host ({self.host}) is not the folder "
                    f"that the first host trains in ({there}): all hosts must share its file "
                    "system. Name a folder on a shared one with run_dir=DIR."
                )
            time.sleep(TRY_S)

    def leave(self, hosts: int) -> None:
        """Take note that the run is over here; the first host waits for the others: its store is
        theirs.

        Args:
            hosts: How many took part.
        """
        # Ends its thread, too: one that is inside the store while the interpreter ends aborts.
        self.handler.shutdown()
        try:
            gone = self._store.add("left", 1)
            until = time.monotonic() + LEAVE_S
            while self.leads and gone < hosts and time.monotonic() < until:
                time.sleep(0.1)
                gone = self._store.add("left", 0)
        except (RuntimeError, ValueError):
            pass  # the store's host has gone before


def _token_path(run_dir: Path) -> Path:
    return run_dir / LOGS / "meeting"


def _awaited(store: TCPStore, key: str, wait_s: float) -> str:
    until = time.monotonic() + wait_s
    while not store.check([key]):
        if time.monotonic() > until:
            raise ConfigError(f"the first host answers, but has begun no run in {wait_s:g} s.")
        time.sleep(0.1)
    return str(store.get(key).decode())
