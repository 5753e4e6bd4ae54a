"""When replicas that train apart exchange something: a function of the step alone."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Rounds:
    """The exchanges of one part of the weights."""

    every: int
    """Steps between two."""
    warmup: int
    """Steps before the first round begins."""
    total: int
    """Steps of the run; the last ends every round."""
    offset: int = 0
    """How many steps of a round lie after its exchange: parts that take turns differ in it."""

    def is_due(self, step: int) -> bool:
        """Return whether the part is exchanged when `step` steps are done."""
        if step <= self.warmup:
            return False
        return step == self.total or self.is_whole(step)

    def is_whole(self, step: int) -> bool:
        """Return whether a round that ends when `step` steps are done is as long as all others."""
        return step > self.warmup and (step - self.warmup + self.offset) % self.every == 0
