"""Sleeps in every training step of a worker, and notes when its training began and ended.

Python imports a module of this name at its start, from the folders in PYTHONPATH:
`benchmarks.stragglers` puts this one there, so that the command under test needs no code for it.
"""

import json
import os
import time
from pathlib import Path
from typing import Any

SLEEPS_ENV = "LLMTRAIN_BENCH_SLEEPS_S"
"""Seconds that each replica sleeps in a step: a JSON list."""
FOLDER_ENV = "LLMTRAIN_BENCH_FOLDER"
"""Where each replica's seconds go."""


def slow_down(replica: int, sleep_s: float, folder: Path) -> None:
    """Have every training step of this process sleep before it computes.

    Args:
        replica: Its number.
        sleep_s: Seconds.
        folder: Where REPLICA.json is written when the process ends: [begin, end] of every step, in
            seconds.
    """
    import atexit

    from llmtrain.train.step import SequentialStep

    step = SequentialStep.__call__
    steps: list[tuple[float, float]] = []

    def slowed(self: Any, *args: Any, **kwargs: Any) -> Any:
        began = time.time()
        time.sleep(sleep_s)
        result = step(self, *args, **kwargs)
        steps.append((began, time.time()))
        return result

    def tell() -> None:
        (folder / f"{replica}.json").write_text(json.dumps(steps))

    SequentialStep.__call__ = slowed  # type: ignore[method-assign]
    atexit.register(tell)


if SLEEPS_ENV in os.environ and "RANK" in os.environ:
    own = int(os.environ.get("LLMTRAIN_REPLICA", os.environ["RANK"]))
    slow_down(own, json.loads(os.environ[SLEEPS_ENV])[own], Path(os.environ[FOLDER_ENV]))
