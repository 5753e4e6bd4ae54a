"""A network switch in a thread: it carries Ethernet frames between hosts, or delays and loses them.

Each port is a TAP device, whose other end a host has as its network card. (The kernel's own netem
is a module that many machines lack.)
"""

import fcntl
import heapq
import os
import random
import select
import struct
import threading
import time
from dataclasses import dataclass

_TUNSETIFF = 0x400454CA
_IFF_TAP, _IFF_NO_PI = 0x0002, 0x1000
TUN = "/dev/net/tun"
FRAME_BYTES = 65536


@dataclass
class Port:
    """One cable."""

    descriptor: int
    is_cut: bool = False
    delay_s: float = 0.0
    """Of every frame that goes to the host."""
    loss: float = 0.0
    """Part of the frames to and from the host that are lost, 0 to 1."""


class Switch(threading.Thread):
    """Floods every frame to all other ports; hosts ignore what is not for them."""

    def __init__(self) -> None:
        super().__init__(name="switch", daemon=True)
        self.ports: list[Port] = []
        self.carried = 0
        """Frames."""
        self.lost = 0
        self._draw = random.Random(0)
        self._due: list[tuple[float, int, int, bytes]] = []
        self._wake_read, self._wake_write = os.pipe()
        self._is_closed = False

    def plug(self, name: str) -> Port:
        """Return a new port whose TAP device is `name`, in this process' network namespace."""
        descriptor = os.open(TUN, os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(
            descriptor, _TUNSETIFF, struct.pack("16sH", name.encode(), _IFF_TAP | _IFF_NO_PI)
        )
        self.ports.append(Port(descriptor))
        return self.ports[-1]

    def run(self) -> None:
        """Carry frames until `close`."""
        descriptors = {port.descriptor: port for port in self.ports}
        while not self._is_closed:
            wait_s = max(0.0, self._due[0][0] - time.monotonic()) if self._due else None
            ready, _, _ = select.select([*descriptors, self._wake_read], [], [], wait_s)
            for descriptor in ready:
                if descriptor in descriptors:
                    self._take(descriptors[descriptor])
            while self._due and self._due[0][0] <= time.monotonic():
                self._give(*self._due[0][2:])
                heapq.heappop(self._due)

    def close(self) -> None:
        """Stop, and take all devices away."""
        self._is_closed = True
        os.write(self._wake_write, b"\0")
        self.join()
        for descriptor in (self._wake_read, self._wake_write, *(p.descriptor for p in self.ports)):
            os.close(descriptor)

    def _take(self, port: Port) -> None:
        try:
            frame = os.read(port.descriptor, FRAME_BYTES)
        except OSError:
            return  # the host is being set up or taken down
        for other in self.ports:
            if other is port:
                continue
            self.carried += 1
            if port.is_cut or other.is_cut or self._draw.random() < max(port.loss, other.loss):
                self.lost += 1
            elif other.delay_s:
                due = time.monotonic() + other.delay_s
                heapq.heappush(self._due, (due, self.carried, other.descriptor, frame))
            else:
                self._give(other.descriptor, frame)

    def _give(self, descriptor: int, frame: bytes) -> None:
        try:
            os.write(descriptor, frame)
        except OSError:
            self.lost += 1
