"""Ranks for tests: real processes over gloo, started once and reused by many tests.

Importing torch costs seconds a process, so a pool of N ranks lives as long as the test session.
A function runs on every rank at once; what it returns comes back as a list by rank, and the first
error fails the test with that rank's traceback.
"""

import faulthandler
import gc
import itertools
import multiprocessing
import os
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any

import torch.distributed as dist

TIMEOUT_S = 240.0
"""How long one call may take on all ranks; then the pool is ended and the test fails."""


class RankPool:
    """N processes in one gloo process group."""

    def __init__(self, world_size: int) -> None:
        """Start the ranks; each has one thread."""
        self.world_size = world_size
        self._store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        context = multiprocessing.get_context("spawn")
        self._pipes: list[Connection] = []
        self._processes = []
        for rank in range(world_size):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_serve, args=(rank, world_size, self._store.port, theirs), daemon=True
            )
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    @property
    def alive(self) -> bool:
        """Whether every rank is there."""
        return all(process.is_alive() for process in self._processes)

    def run(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """Call `function(*args)` on every rank (it must be importable) and return what each gave.

        Raises:
            RuntimeError: with the traceback of the first rank that failed, or on a timeout.
        """
        for pipe in self._pipes:
            pipe.send((function, args))
        results: dict[int, Any] = {}
        failures: list[str] = []
        waiting = dict(zip(self._pipes, range(self.world_size), strict=True))
        while waiting:
            # After a failure the others may wait for the dead one: they get a short grace.
            ready = wait(list(waiting), 5.0 if failures else TIMEOUT_S)
            if not ready:
                failures.append(f"ranks {sorted(waiting.values())} did not answer")
                break
            for pipe in ready:
                assert isinstance(pipe, Connection)
                rank = waiting.pop(pipe)
                try:
                    ok, value = pipe.recv()
                except EOFError:
                    ok, value = False, f"rank {rank} died"
                if ok:
                    results[rank] = value
                else:
                    failures.append(value)
        if failures:
            self.close()
            raise RuntimeError("\n".join(failures))
        return [results[rank] for rank in range(self.world_size)]

    def close(self) -> None:
        """End the ranks."""
        for pipe, process in zip(self._pipes, self._processes, strict=True):
            pipe.close()
            process.join(timeout=2.0)
            if process.is_alive():
                process.kill()


def _serve(rank: int, world_size: int, port: int, pipe: Connection) -> None:
    """What a rank does: answer calls until the pipe closes, each in a process group of its own."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size))
    import torch

    torch.set_num_threads(1)
    store = dist.TCPStore("127.0.0.1", port, is_master=False)
    for call in itertools.count():
        try:
            function, args = pipe.recv()
        except (EOFError, OSError):
            os._exit(0)
        # A rank that hangs tells where, just before the pool gives up.
        faulthandler.dump_traceback_later(TIMEOUT_S - 20.0, exit=False)
        try:
            dist.init_process_group(
                "gloo", store=dist.PrefixStore(str(call), store), rank=rank, world_size=world_size
            )
            pipe.send((True, function(*args)))
            dist.destroy_process_group()
            # Groups of a mesh lie in cycles, and each keeps threads that poll its dead connections.
            gc.collect()
        except BaseException:
            pipe.send((False, f"rank {rank}:\n{traceback.format_exc()}"))
        faulthandler.cancel_dump_traceback_later()
