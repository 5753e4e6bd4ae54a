"""Where the loop is: what it tells whoever watches it. A call costs what an assignment does."""

from dataclasses import dataclass

START, STEP = "start", "step"


@dataclass(frozen=True)
class Place:
    """A place in a run."""

    phase: str
    """start | step | evaluate | save | end."""
    step: int
    """The step that is being done; outside of steps, how many are done."""

    def __str__(self) -> str:
        return f"step {self.step}" if self.phase == STEP else f"{self.phase} after step {self.step}"


class Whereabouts:
    """Where one rank's main thread is."""

    def __init__(self) -> None:
        self._steps = 0
        self.now = (0, Place(START, 0), True)
        """How often it has moved; the place; whether it may take long there. Replaced as a whole,
        so that another thread never reads one half."""

    def enter(self, phase: str, step: int) -> None:
        """Say that the main thread has come to `phase`, or goes on in it."""
        self._steps += phase == STEP
        # The first step compiles, and fills pools and caches.
        takes_long = phase != STEP or self._steps == 1
        self.now = (self.now[0] + 1, Place(phase, step), takes_long)
