"""Ranks for tests: real processes over gloo, started once and reused by many tests.

Importing torch costs seconds a process, so a pool of N ranks lives as long as the test session.
A function runs on every rank at once; what it returns comes back as a list by rank, and the first
error fails the test with that rank's traceback.
"""

import multiprocessing
import os
import tempfile
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

TIMEOUT_S = 240.0
"""How long one call may take on all ranks; then the pool is ended and the test fails."""


class RankPool:
    """N processes in one gloo process group."""

    def __init__(self, world_size: int) -> None:
        """Start the ranks; each has one thread."""
        self.world_size = world_size
        self._folder = tempfile.TemporaryDirectory(prefix="llmtrain-pool-")
        context = multiprocessing.get_context("spawn")
        self._pipes: list[Connection] = []
        self._processes = []
        for rank in range(world_size):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_serve, args=(rank, world_size, self._folder.name, theirs), daemon=True
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
        results, failures = [], []
        for rank, pipe in enumerate(self._pipes):
            # After a failure the others may wait for the dead one: they get a short grace.
            if not pipe.poll(5.0 if failures else TIMEOUT_S):
                failures.append(f"rank {rank} did not answer")
                continue
            ok, value = pipe.recv()
            (results if ok else failures).append(value)
        if failures:
            self.close()
            raise RuntimeError("\n".join(failures))
        return results

    def close(self) -> None:
        """End the ranks."""
        for pipe, process in zip(self._pipes, self._processes, strict=True):
            pipe.close()
            process.join(timeout=2.0)
            if process.is_alive():
                process.kill()
        self._folder.cleanup()


def _serve(rank: int, world_size: int, folder: str, pipe: Connection) -> None:
    """What a rank does: answer calls until the pipe closes."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size))
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    store = dist.FileStore(str(Path(folder) / "store"), world_size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
    while True:
        try:
            function, args = pipe.recv()
        except (EOFError, OSError):
            os._exit(0)
        try:
            pipe.send((True, function(*args)))
        except BaseException:
            pipe.send((False, f"rank {rank}:\n{traceback.format_exc()}"))
