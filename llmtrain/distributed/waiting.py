"""What a person sees while hosts wait for each other: a line, and one more at every change."""

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence

from llmtrain.panel import show_note

QUIET_S = 1.0
"""How long nothing is said: most waits are over by then."""
LOOK_S = 0.2
"""Seconds between two looks for a change."""


@contextlib.contextmanager
def told(line: Callable[[], str]) -> Iterator[None]:
    """Show what `line` returns, and again whenever that has changed, until the block ends.

    In a thread: what waits here waits inside torch, or in a call of the network.

    Args:
        line: What is waited for; "": nothing is to be said now.
    """
    done = threading.Event()

    def tell() -> None:
        shown, pause_s = "", QUIET_S
        while not done.wait(pause_s):
            pause_s, now = LOOK_S, line()
            if now and now != shown:
                shown = now
                show_note(now)

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def for_hosts(endpoint: str, least: int, most: int, came: Sequence[str] = ()) -> str:
    """Return the line of a host that waits for others.

    Args:
        endpoint: Where they meet.
        least: How many must come.
        most: How many may.
        came: Names of those that have, this one too; none: that is not known.
    """
    wanted = f"{most}" if least == most else f"{least} to {most}"
    here = f": {len(came)} {'has' if len(came) == 1 else 'have'} come ({', '.join(came)})"
    return f"waiting at {endpoint} for {wanted} hosts{here if came else ''}"
