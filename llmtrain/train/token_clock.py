"""TokenClock: where training stands when no step is everyone's: the tokens that all have read."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class TokenClock:
    """Turns tokens into steps, and says when to rest. Tokens are positions, padded ones too: a
    step's are always as many."""

    tokens_per_step: int
    total_steps: int
    eval_every_steps: int | None
    save_every_steps: int | None

    @property
    def total_tokens(self) -> int:
        """Tokens of the run."""
        return self.total_steps * self.tokens_per_step

    def step(self, tokens: int) -> int:
        """Return the whole steps that `tokens` make, as many as the run has at most."""
        return min(tokens // self.tokens_per_step, self.total_steps)

    def next_rest(self, tokens: int) -> int:
        """Return the tokens, more than `tokens`, at which all rest to evaluate, save or end."""
        step = tokens // self.tokens_per_step
        every = (self.eval_every_steps, self.save_every_steps)
        ahead = [(step // n + 1) * n * self.tokens_per_step for n in every if n is not None]
        return min([*ahead, self.total_tokens])

    def evaluates(self, last: int, step: int) -> bool:
        """Whether an evaluation is due at `step`, the last having been at `last`."""
        return step > last and (
            step == self.total_steps or _passed(self.eval_every_steps, last, step)
        )

    def saves(self, last: int, step: int) -> bool:
        """Whether a checkpoint is due at `step`, the last having been at `last`."""
        return step == self.total_steps or _passed(self.save_every_steps, last, step)


def _passed(every: int | None, last: int, step: int) -> bool:
    """Whether a multiple of `every` lies after `last`, up to `step`."""
    return every is not None and step // every > last // every
