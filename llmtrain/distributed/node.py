"""This host among several: its number, whether it is the first, how it is reached."""

import errno
import fcntl
import ipaddress
import os
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass

from llmtrain.config.groups.launcher import TorchrunLauncherConfig, split_endpoint
from llmtrain.errors import ConfigError

NODE_RANKS = (
    "LLMTRAIN_NODE_RANK", "NODE_RANK", "SLURM_NODEID", "JOB_COMPLETION_INDEX",
    "SKYPILOT_NODE_RANK",
)  # fmt: skip
"""Where a host's number may stand in the environment, ours first."""

_SIOCGIFADDR = 0x8915


@dataclass(frozen=True)
class Node:
    """What a host must know to meet the others."""

    host: str
    """The first host, as this one knows it."""
    port: int
    nnodes: int
    min_nodes: int
    rank: int | None
    """Its number; None: the rendezvous gives one."""
    leads: bool
    """Whether it is the first host: it composes, freezes the run, and serves the store."""
    is_static: bool = False
    connect_timeout_s: float = 20.0
    join_timeout_s: float = 600.0

    @property
    def endpoint(self) -> str:
        """HOST:PORT."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def check_port(self) -> None:
        """See, before anything is made, that the first host can have its port.

        Raises:
            ConfigError: when it cannot.
        """
        bound(self.host, self.port, reachable_address(self.host, self.nnodes)).close()

    def words(self) -> list[str]:
        """Return the arguments of `llmtrain.agent` for this host."""
        backend = "static" if self.is_static else "c10d"
        words = [
            "--nnodes", str(self.nnodes), "--min-nodes", str(self.min_nodes),
            "--rdzv-endpoint", self.endpoint, "--rdzv-backend", backend,
            "--connect-timeout-s", str(self.connect_timeout_s),
            "--join-timeout-s", str(self.join_timeout_s),
        ]  # fmt: skip
        if self.rank is not None:
            words += ["--node-rank", str(self.rank)]
        return [*words, *(["--leads"] if self.leads else [])]


def this_node(launcher: TorchrunLauncherConfig, env: Mapping[str, str] = os.environ) -> Node:
    """Return this host, where `launcher` and the environment say which it is.

    Raises:
        ConfigError: when its number is needed and not known, or out of range.
    """
    host, port = split_endpoint(launcher.rdzv_endpoint or "127.0.0.1")
    rank, source = launcher.node_rank, "launcher.node_rank"
    if rank is None:
        rank, source = node_rank(env)
    if rank is None and launcher.nnodes == 1:
        rank = 0
    if rank is None and launcher.rdzv_backend == "static":
        raise ConfigError(
            "launcher.rdzv_backend=static needs launcher.node_rank on every host: 0 on "
            f"{host}, then 1 to {launcher.nnodes - 1}."
        )
    if rank is not None and rank >= launcher.nnodes:
        raise ConfigError(
            f"{source}={rank}: with launcher.nnodes={launcher.nnodes} hosts are numbered from 0 to "
            f"{launcher.nnodes - 1}."
        )
    return Node(
        host, port, launcher.nnodes, launcher.min_nodes or launcher.nnodes, rank,
        leads=rank == 0 if rank is not None else is_this_machine(host),
        is_static=launcher.rdzv_backend == "static",
        connect_timeout_s=launcher.connect_timeout_s, join_timeout_s=launcher.join_timeout_s,
    )  # fmt: skip


def node_rank(env: Mapping[str, str]) -> tuple[int | None, str]:
    """Return this host's number where the environment has it, and the variable's name."""
    for name in NODE_RANKS:
        if env.get(name, "").isdigit():
            return int(env[name]), name
    return None, ""


def is_this_machine(host: str) -> bool:
    """Whether `host` is an address of this machine: a socket can be bound to it."""
    return bool(own_address(host))


def own_address(host: str) -> tuple[int, str] | None:
    """Return family and address of `host` where they are this machine's; None: another's.

    A name that is not known here is another machine's: the one that it is of knows it.
    """
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return None
    for family, _, _, _, address in found:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            try:
                probe.bind((address[0], 0))
            except OSError as error:
                if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT, errno.EINVAL):
                    continue
                raise
            return family, str(address[0])
    return None


def reachable_address(host: str, nnodes: int) -> tuple[int, str] | None:
    """Return `own_address`, unless it is a loopback one, which no other host reaches.

    On many machines the own name stands for 127.0.1.1, and for others it stands for the address.
    """
    address = own_address(host)
    is_loopback = address is not None and ipaddress.ip_address(address[1]).is_loopback
    return None if is_loopback and nnodes > 1 else address


def bound(host: str, port: int, address: tuple[int, str] | None) -> socket.socket:
    """Return a socket that has the first host's port, and does not listen yet.

    Args:
        host: Its name, as the others know it.
        port: Where it is to listen.
        address: Family and address of that name; None: all that this machine has.

    Raises:
        ConfigError: when the port is taken, or may not be had.
    """
    family, own = address or (socket.AF_INET, "")
    listener = socket.socket(family, socket.SOCK_STREAM)
    # A start right after another: the port is still remembered.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((own, port))
    except OSError as error:
        listener.close()
        why = "in use" if error.errno == errno.EADDRINUSE else error.strerror
        raise ConfigError(
            f"launcher.rdzv_endpoint={host}:{port}: the port cannot be had on this machine "
            f"({why}); name another, the same on every host."
        ) from None
    return listener


def interface_towards(host: str, port: int) -> str | None:
    """Return the name of the network interface by which `host` is reached; None: not known.

    gloo listens on the address of this machine's own name, which on many hosts is a loopback
    address that no other host reaches. Where `host` is this machine by such a name, it is the
    first interface that is no loopback. IPv4 on Linux only.
    """
    found = _interfaces()
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host, port))  # sends nothing
            address = probe.getsockname()[0]
    except OSError:
        return None
    if not address.startswith("127."):
        return next((name for name, own in found.items() if own == address), None)
    others = (name for name, own in found.items() if not own.startswith("127."))
    return next(others, "lo")


def _interfaces() -> dict[str, str]:
    """Return every network interface that has an address, and that."""
    found = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            try:
                answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, request)
            except OSError:
                continue  # an interface without an address
            found[name] = socket.inet_ntoa(answer[20:24])
    return found
