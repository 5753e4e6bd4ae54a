"""The numbers of a run over all replicas, which are known when the replicas meet.

While replicas train apart, each knows its own loss and tokens. What is to be logged waits here
until they meet, and is then added up in one message, so that logging costs no meeting of its own.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llmtrain.distributed.collectives import all_sum
from llmtrain.distributed.mesh import Mesh
from llmtrain.train.step import StepResult


@dataclass(frozen=True)
class Settled:
    """A logged step's numbers over all replicas."""

    line: dict[str, Any]
    """As given to `log`."""
    loss: float
    """Mean over the tokens of the step, in nats."""
    grad_norm: float
    """The gradient's norm before clipping; of replicas that step apart, the mean of theirs."""
    tokens: int
    """Counted tokens since the logged step before."""


class Ledger:
    """Takes down every step; tells the logged ones when replicas meet."""

    def __init__(self, mesh: Mesh) -> None:
        """Begin an empty ledger."""
        self._group = mesh.token_group
        self._replicas = mesh.size("dp_replicate")
        self._is_first = mesh.rank("dp_replicate") == 0
        self._counts = all(mesh.rank(axis) == 0 for axis in ("pp", "dp_shard", "cp"))
        self._tokens = 0.0
        """This rank's part of the tokens since the last logged step."""
        self._known = 0
        """All of them since the last meeting, if every step was of all replicas."""
        self._is_apart = False
        """Whether a step since the last meeting was not of all replicas."""
        self._lines: list[dict[str, Any]] = []
        self._rows: list[list[float]] = []
        """This rank's part of the tokens of each line, and of those since the line before."""
        self._sums: list[Tensor] = []
        """The line's loss and norm, where they were computed: no device is waited for."""

    def add(self, result: StepResult, *, together: bool) -> None:
        """Take down a step.

        Args:
            result: What the step gave.
            together: Whether it was a step of all replicas, whose tokens each of them knows.
        """
        self._is_apart |= not together
        self._tokens += result.tokens * self._share(together)
        self._known += result.tokens

    def log(
        self, line: dict[str, Any], result: StepResult, norm: Tensor, *, together: bool
    ) -> None:
        """Have the step that was added last told as `line` when replicas meet."""
        share = self._share(together)
        mean_norm = norm.detach() * share / (1 if together else self._replicas)
        self._sums.append(torch.stack([result.loss_sum.detach().double(), mean_norm.double()]))
        self._rows.append([result.tokens * share, self._tokens])
        self._lines.append(line)
        self._tokens = 0.0

    def settle(self) -> tuple[list[Settled], int]:
        """Return the logged steps since the last meeting, and the tokens of steps after them.

        Collective over `token_group`, unless every rank knows it all.
        """
        if not self._rows and not self._is_apart:
            known, self._known, self._tokens = self._known, 0, 0.0
            return [], known
        rest = torch.tensor([[0.0, 0.0, 0.0, self._tokens]], dtype=torch.float64)
        table = torch.cat([*self._table(), rest])
        *rows, last = all_sum(table, self._group).tolist()
        settled = [
            Settled(line, loss / max(tokens, 1), norm, int(since))
            for line, (loss, norm, tokens, since) in zip(self._lines, rows, strict=True)
        ]
        self._lines, self._rows, self._sums, self._tokens, self._known = [], [], [], 0.0, 0
        self._is_apart = False
        return settled, int(last[3])

    def _table(self) -> list[Tensor]:
        """Return the lines' numbers, (lines, 4) on the CPU, in a list that is empty without any."""
        if not self._rows:
            return []
        counts = torch.tensor(self._rows, dtype=torch.float64)
        return [torch.cat([torch.stack(self._sums).cpu(), counts], dim=1)]

    def _share(self, together: bool) -> int:
        """Return 1 on the rank that speaks for the tokens of its team's batch, else 0."""
        return int(self._counts and (self._is_first or not together))
