"""The end of the time that a stopped run has for its last checkpoint."""

import logging
import time
from functools import partial
from pathlib import Path

from llmtrain.checkpoint.newest import goes_on, newest_step
from llmtrain.panel import show_note
from llmtrain.tasks.result import RunResult, load_result
from llmtrain.train.stop import StopRequest

log = logging.getLogger(__name__)


def limit_stop(stop: StopRequest, run_dir: Path, grace_s: float, *, tells: bool) -> None:
    """Have a stop of this process end after `grace_s`, whatever it waits for.

    Args:
        stop: Says when this process is asked to stop.
        run_dir: The run directory.
        grace_s: checkpoint.grace_s.
        tells: Whether this process writes result.json, and speaks to people.
    """
    t0 = time.monotonic()
    stop.limit(grace_s, partial(_give_up, stop, run_dir, grace_s, t0, tells))


def _give_up(stop: StopRequest, run_dir: Path, grace_s: float, t0: float, tells: bool) -> None:
    """Say that the last checkpoint was not done in time."""
    text = f"checkpoint.grace_s={grace_s:g} is over and the last checkpoint is not done. "
    text += goes_on(run_dir)
    if tells:
        show_note(f"{stop.status}: {text}")
    log.error(text)
    if not tells:
        return
    result = load_result(run_dir) or RunResult(status=stop.status)
    result.status, result.error, result.wall_s = stop.status, text, time.monotonic() - t0
    result.step = newest_step(run_dir) or 0
    # The disk may be what takes so long: nothing here waits for it.
    result.save(run_dir, durably=False)
