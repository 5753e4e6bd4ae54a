"""Diagnosis: where in the model, and on which rank, the numbers of a bad step went bad.

Healthy steps pay nothing for it. The bad one is computed once more, from the same weights and the
same samples (dropout is a function of the step's samples, so its masks are the same too), under a
`LayerProbe`; then the ranks put together what each has seen.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from llmtrain.data.loader import Batch
from llmtrain.distributed.mesh import Team
from llmtrain.distributed.shards import to_local
from llmtrain.optim.optimizer import clean_name
from llmtrain.train.probe import (
    OUTPUT,
    OUTPUT_GRADIENT,
    PARAMETER_GRADIENT,
    LayerProbe,
    Sighting,
    first_sighting,
    place_of,
)
from llmtrain.train.step import TrainStep

WEIGHT, SUM, NORM, NOTHING = "weight", "sum of gradients", "norm", "nothing"
BACKWARD, UNSEEN = "backward", "unseen"
"""What a rank tells besides: its first bad gradient, and of a model without modules, parameter."""


@dataclass(frozen=True)
class Diagnosis:
    """What was found."""

    kind: str
    """weight | output | output gradient | parameter gradient | sum of gradients | norm |
    nothing."""
    layer: str | None
    """The module or parameter; None: nothing was found."""
    rank: int | None
    """The first rank that has it; None: none has, or all."""

    @property
    def text(self) -> str:
        """The finding as a sentence."""
        return _TEXTS[self.kind].format(layer=self.layer, rank=self.rank)


_TEXTS = {
    WEIGHT: "The weight {layer} is not finite, on rank {rank}.",
    OUTPUT: "The first layer that is not finite is {layer}: its output, on rank {rank}.",
    OUTPUT_GRADIENT: "Every output is finite; in the backward the first layer that is not is "
    "{layer}: the gradient of its output, on rank {rank}.",
    PARAMETER_GRADIENT: "Every output is finite; in the backward the first that is not is the "
    "gradient of {layer}, on rank {rank}.",
    SUM: "Every rank's own gradients are finite, but not their sum over the ranks: first that of "
    "{layer}.",
    NORM: "Every gradient is finite, but the squares of that of {layer} are too large to add up.",
    NOTHING: "Computed again from the same weights and samples, everything is finite: a fault of "
    "the machine, such as a flipped bit, or a kernel that does not compute the same twice.",
}


def diagnose(
    module: nn.Module, step: TrainStep, batches: Sequence[Batch], team: Team, *, compiled: bool
) -> Diagnosis:
    """Compute a step again and return where it went bad. Collective over `team`.

    Leaves the weights as they are, and in every parameter a gradient that is of no use.

    Args:
        module: What this rank holds of the model; its weights are those before the step.
        step: What computes.
        batches: This rank's micro-batches of the step.
        team: Whose gradients made it.
        compiled: Whether blocks are compiled: here they run as they are written.
    """
    for parameter in module.parameters():
        parameter.grad = None
    # Asked for only where something is compiled: it loads the compiler.
    eager = torch.compiler.set_stance("force_eager") if compiled else contextlib.nullcontext()
    with eager, LayerProbe(module) as probe:
        step(batches, team=team, stop=False)
    return _together(_gathered(_sightings(probe), team))


def diagnose_alone(probe: LayerProbe) -> Diagnosis:
    """Return what `probe` has seen, in a run of one process.

    To be called when the step's gradients are in the parameters, and not clipped.
    """
    return _together([(0, _plain(_sightings(probe)))])


def diagnose_late(module: nn.Module, team: Team) -> Diagnosis:
    """Return what a bad step has left in the weights. Collective over `team`.

    To be called when its update has been applied: all gradients that were not finite show in the
    weights, and it cannot be computed again.
    """
    return _together(_gathered({WEIGHT: _bad_weight(module, last=True)}, team))


def _sightings(probe: LayerProbe) -> dict[str, Sighting | None]:
    """Return the first of each kind that this rank has seen go bad in a step."""
    reduced, overflown = _reduced(probe.module)
    return {
        WEIGHT: _bad_weight(probe.module),
        OUTPUT: first_sighting(probe.seen, (OUTPUT,)),
        BACKWARD: first_sighting(probe.seen, (OUTPUT_GRADIENT, PARAMETER_GRADIENT)),
        # A traced graph has no modules to watch: then its parameters tell what they can.
        SUM if probe.outputs else UNSEEN: first_sighting(reduced, (PARAMETER_GRADIENT,)),
        NORM: overflown,
    }


def _bad_weight(module: nn.Module, *, last: bool = False) -> Sighting | None:
    """Return the first weight in the order of the forward that is not finite, or the last."""
    found = [
        Sighting(WEIGHT, clean_name(name), place_of(clean_name(name)), -i if last else i)
        for i, (name, weight) in enumerate(module.named_parameters())
        if not bool(to_local(weight.detach()).isfinite().all())
    ]
    pick = max if last else min
    return pick(found, key=lambda s: s.place, default=None)


def _reduced(module: nn.Module) -> tuple[list[Sighting], Sighting | None]:
    """Return which gradients are not finite as the optimizer would see them, and, where all are,
    the one whose norm is not."""
    bad, overflown = [], None
    for i, (raw, parameter) in enumerate(module.named_parameters()):
        if parameter.grad is None:
            continue
        name, grad = clean_name(raw), to_local(parameter.grad)
        sighting = Sighting(PARAMETER_GRADIENT, name, place_of(name), -i)
        if not bool(grad.isfinite().all()):
            bad.append(sighting)
        elif overflown is None and not bool(torch.linalg.vector_norm(grad).square().isfinite()):
            overflown = sighting
    return bad, overflown


def _gathered(own: dict[str, Sighting | None], team: Team) -> list[tuple[int, dict[str, Any]]]:
    """Return what each rank of `team` has seen, with its rank. Collective over `team`."""
    mine = (dist.get_rank(), _plain(own))
    everyone: list[Any] = [None] * dist.get_world_size(team.group)
    dist.all_gather_object(everyone, mine, group=team.group)
    return everyone


def _plain(own: dict[str, Sighting | None]) -> dict[str, Any]:
    return {kind: asdict(seen) for kind, seen in own.items() if seen is not None}


def _together(everyone: list[tuple[int, dict[str, Any]]]) -> Diagnosis:
    """Return what comes first of what all ranks have seen."""
    for key in (WEIGHT, OUTPUT, BACKWARD, UNSEEN, SUM, NORM):
        found = [
            (Sighting(**{**seen[key], "place": tuple(seen[key]["place"])}), rank)
            for rank, seen in everyone
            if key in seen
        ]
        if not found:
            continue
        sign = 1 if key in (WEIGHT, OUTPUT) else -1
        first, rank = min(
            found,
            key=lambda f: (sign * f[0].place[0], sign * f[0].place[1], f[0].moment, f[1]),
        )
        kind = key if key in (SUM, NORM) else first.kind
        return Diagnosis(kind, first.name, rank if kind != SUM else None)
    return Diagnosis(NOTHING, None, None)
