"""Waiting for something to become true."""

import time
from collections.abc import Callable

DEADLINE_S = 200.0
"""Long, for busy machines: a condition that comes true is not waited for any longer."""


def eventually(condition: Callable[[], object], deadline_s: float = DEADLINE_S) -> bool:
    """Return whether `condition` came true in time."""
    end = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def wait_until(condition: Callable[[], object], what: str, deadline_s: float = 120.0) -> None:
    """Wait for `condition`; fail where it does not come true in time, naming `what`."""
    assert eventually(condition, deadline_s), f"waited in vain for {what}"
