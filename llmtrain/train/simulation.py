"""Simulation: replicas and their server in one process, on a virtual clock.

The conductor and the replicas are those of a real run; only what lies between them is not there. A
heap says whose steps end next: what they computed is computed then, from the weights they were
given. So a run is a function of its configuration, order of pushes and staleness included.
"""

import heapq
import math
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from llmtrain.errors import ConfigError
from llmtrain.sync.server.packing import WEIGHTS, under
from llmtrain.sync.server.tensors import Tensors
from llmtrain.sync.transport.frame import Frame
from llmtrain.sync.transport.hub import Answers
from llmtrain.sync.virtual.durations import Durations
from llmtrain.train.conductor import Conductor
from llmtrain.train.push_log import read_pushes
from llmtrain.train.replica import Replica


class VirtualLine:
    """What a replica knows of the way to the server: how much goes along it."""

    def __init__(self) -> None:
        self.bytes = 0

    def traffic(self) -> int:
        """Return the bytes that went both ways since it was last asked."""
        since, self.bytes = self.bytes, 0
        return since

    def close(self) -> None:
        """There is nothing to close."""


class Simulation:
    """Replicas around a conductor."""

    def __init__(
        self, conductor: Conductor, replicas: Sequence[Replica], lines: Sequence[VirtualLine]
    ) -> None:
        """Set up; nothing happens yet."""
        self.now_s = 0.0
        """On the virtual clock, from the first start of the run on."""
        self._conductor, self._replicas, self._lines = conductor, replicas, lines
        self._given: dict[int, Frame] = {}
        """The weights that each replica computes from."""
        self._pushed_s: dict[int, float] = {}
        """When each pushed last."""
        self.waited_s = [0.0] * len(replicas)
        """Virtual seconds in which each waited for the server."""

    def run(self, durations: Durations, stop: Callable[[], str | None]) -> None:
        """Let replicas compute as long as `durations` says, until training is over.

        Args:
            durations: Of each step of each replica.
            stop: How training is to end now; None: it is not.
        """
        heap: list[tuple[float, int, int]] = []
        order = 0
        ready = self._begin()
        while ready or heap:
            for worker in ready:
                took = self._steps_s(worker, durations)
                order += 1
                heapq.heappush(heap, (self.now_s + took, order, worker))
            asked = stop()
            if asked is not None:
                self._settle(self._conductor.stop(asked))
            wakes_s = self._wakes_before(heap[0][0] if heap else math.inf)
            if wakes_s is not None:
                ready = self._wake(wakes_s)
                continue
            self.now_s, _, worker = heapq.heappop(heap)
            ready = self._push(worker)
        if not self._conductor.finished:
            raise RuntimeError(f"all virtual replicas wait for the server, at {self.now_s} s")

    def replay(self, log: Path, stop: Callable[[], str | None]) -> None:
        """Let replicas push in the order of a log, at its times.

        Raises:
            ConfigError: when it is of another run.
        """
        lines = read_pushes(log, len(self._replicas))
        self._begin()
        for line in lines:
            if line["kind"] != "push" or self._conductor.finished:
                continue
            while (wakes_s := self._wakes_before(line["now"])) is not None:
                self._wake(wakes_s)
            worker, given = line["worker"], self._given.get(line["worker"])
            if given is None or given.fields["version"] != line["base_version"]:
                raise ConfigError(
                    f"sync.simulate.log={log} is of a run with another mode or other settings: in "
                    f"its push {line['ticket']} replica {worker} had other weights than here. "
                    "Replay it with sync=... and the settings that it had."
                )
            self.now_s = line["now"]
            self._push(worker)
            asked = stop()
            if asked is not None:
                break
        if not self._conductor.finished:
            raise ConfigError(
                f"sync.simulate.log={log} ends before the run does, at step "
                f"{self._conductor.step}; lower train.steps to that."
            )

    def _begin(self) -> list[int]:
        """Let all replicas say hello; return those who may compute."""
        ready: list[int] = []
        for worker, replica in enumerate(self._replicas):
            ready += self._settle(self._conductor.handle(worker, replica.hello()))
        return ready

    def _push(self, worker: int) -> list[int]:
        """Let a replica compute and push; return those who may compute then."""
        replica, given = self._replicas[worker], self._given.pop(worker)
        frame = replica.obey(given)
        self._lines[worker].bytes += _bytes(frame.tensors)
        self._pushed_s[worker] = self.now_s
        return self._settle(self._conductor.handle(worker, frame))

    def _wakes_before(self, until_s: float) -> float | None:
        """Return when the server has to look at the clock, if that is before `until_s`."""
        wakes_s = self._conductor.wakes_s
        return wakes_s if wakes_s is not None and wakes_s < until_s else None

    def _wake(self, now_s: float) -> list[int]:
        """Let the server look at the clock: a grace ends. Return those who may compute then."""
        self.now_s = now_s
        return self._settle(self._conductor.tick(range(len(self._replicas))))

    def _settle(self, answers: Answers) -> list[int]:
        """Have all orders followed; return the replicas that got weights."""
        ready: list[int] = []
        waiting = deque(answers)
        while waiting:
            worker, frame = waiting.popleft()
            if frame.kind == "weights":
                self._lines[worker].bytes += _bytes(frame.tensors)
                waited = self.now_s - self._pushed_s.get(worker, self.now_s)
                self.waited_s[worker] += waited
                self._replicas[worker].wait_s = waited
                self._given[worker] = frame
                ready.append(worker)
            elif frame.kind != "stop":
                said = self._replicas[worker].obey(frame)
                if said.kind == "opening" and said.fields["server"] is not None:
                    self._go_on(said)
                waiting.extend(self._conductor.handle(worker, said))
        return ready

    def _go_on(self, opening: Frame) -> None:
        """Take up what replicas and lines knew when the checkpoint was written.

        All waited then, each with a push behind it whose bytes the next report tells: a push's
        tensors are those of the weights. Sums on a clock that began anew would be rounded anew.
        """
        server = opening.fields["server"]
        self.now_s = server["now"]
        pushed = _bytes(under(WEIGHTS, opening.tensors))
        for member in server["core"]["members"]:
            if member["waiting_since_s"] is not None:
                self._pushed_s[member["worker"]] = member["waiting_since_s"]
                self._lines[member["worker"]].bytes += pushed

    def _steps_s(self, worker: int, durations: Durations) -> float:
        said = self._given[worker].fields
        first = said["position"] // self._replicas[worker].samples_per_step
        return sum(durations(worker, step) for step in range(first, first + said["local_steps"]))


def _bytes(tensors: Tensors) -> int:
    """Return what the tensors of a frame weigh on a real line."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
