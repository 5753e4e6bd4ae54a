"""A side of a comparison: processes of its own that run steps on request."""

import json
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path


class Contender:
    """One or several ranks of `benchmarks.side`, which run steps together when told to."""

    def __init__(
        self, kind: str, device: str, number: int, run_dir: Path, env: Mapping[str, str],
        world_size: int = 1,
    ) -> None:  # fmt: skip
        """Start the processes and wait until they have warmed up.

        Args:
            kind: ours | plain.
            device: cpu | cuda.
            number: Of the device's case, which the plain loop needs.
            run_dir: A frozen run.
            env: The environment of every process.
            world_size: How many.
        """
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self._processes = [
            subprocess.Popen(
                [sys.executable, "-m", "benchmarks.side", kind, device, str(number), str(run_dir)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                env={**env, **_rank(rank, world_size, port)},
            )
            for rank in range(world_size)
        ]  # fmt: skip
        self.flops_per_token = self._answers("flops_per_token")[0]

    def seconds(self, steps: int) -> float:
        """Run `steps` steps; return how long the slowest rank took."""
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write(f"{steps}\n")
            process.stdin.flush()
        return max(self._answers("seconds"))

    def close(self) -> None:
        """End the processes."""
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.close()
        for process in self._processes:
            process.wait()

    def _answers(self, name: str) -> list[float]:
        answers = []
        for process in self._processes:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                raise RuntimeError("a side of the benchmark died; its error is above")
            answers.append(float(json.loads(line)[name]))
        return answers


def _rank(rank: int, world_size: int, port: int) -> dict[str, str]:
    """Return the variables by which torchrun tells a process who it is; none to one alone."""
    if world_size == 1:
        return {}
    numbers = {
        "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size,
        "LOCAL_WORLD_SIZE": world_size, "MASTER_PORT": port,
    }  # fmt: skip
    return {"MASTER_ADDR": "127.0.0.1", **{name: str(value) for name, value in numbers.items()}}
