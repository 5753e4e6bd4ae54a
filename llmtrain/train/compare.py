"""Two recorded runs side by side: how far they lie apart, and where they part first.

The error of a number is |a - b| / |b|. That of a tensor is max|a - b| / max(max|b|, RMS), with the
root mean square over all tensors of its kind in that step: the gradient of a key's bias is 0 but
for rounding, and has no relative error of its own. b is always the reference.
"""

import json
import math
import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from llmtrain.config.paths import METRICS, RECORDS
from llmtrain.train.record import GRADIENT, KINDS, SPREAD, WEIGHT
from llmtrain.train.tolerance import Tolerance

LOSS, NORM, VALIDATION = "loss", "grad_norm", "val_loss"

SPOKEN = {
    LOSS: "loss", NORM: "gradient norm", GRADIENT: "gradient", WEIGHT: "weight",
    VALIDATION: "validation loss",
}  # fmt: skip

ORDER = (LOSS, GRADIENT, NORM, WEIGHT, VALIDATION)
"""In which order a step computes them: what goes wrong shows in the first, and then in the rest."""


@dataclass(frozen=True)
class Copy:
    """One rank's record of a tensor."""

    rank: int
    value: Tensor
    spread: float
    """The largest difference between copies on ranks that should hold the same."""


class Recording:
    """What a run has recorded."""

    def __init__(self, run_dir: Path) -> None:
        """Open the records and metrics of `run_dir`, which may have ended early."""
        self._folder = run_dir / RECORDS
        self._metrics = run_dir / METRICS

    @cached_property
    def scalars(self) -> dict[int, dict[str, float]]:
        """Step -> loss, gradient norm and validation loss, where metrics.jsonl has them."""
        text = self._metrics.read_text() if self._metrics.is_file() else ""
        found: dict[int, dict[str, float]] = {}
        for line in map(json.loads, text.splitlines()):
            numbers = {
                # null: it was not finite.
                k: math.nan if line[k] is None else float(line[k])
                for k in (LOSS, NORM, VALIDATION)
                if k in line
            }
            found.setdefault(line["step"], {}).update(numbers)
        return found

    @cached_property
    def weights_rms(self) -> float:
        """Root mean square of all weights before the first step."""
        return _rms([copies[0].value for copies in self.tensors(0)[WEIGHT].values()])

    @cached_property
    def steps(self) -> list[int]:
        """The steps of which there are tensors; 0: the weights at the start."""
        paths = self._folder.glob("step_*_rank_*.safetensors")
        return sorted({int(path.name.split("_")[1]) for path in paths})

    def tensors(self, step: int) -> dict[str, dict[str, list[Copy]]]:
        """Return kind -> parameter -> the record of each rank that wrote one."""
        found: dict[str, dict[str, list[Copy]]] = {kind: {} for kind in KINDS}
        for path in sorted(self._folder.glob(f"step_{step:05d}_rank_*.safetensors")):
            match = re.search(r"rank_(\d+)", path.name)
            assert match is not None
            for key, value in (stored := load_file(path)).items():
                kind, _, name = key.partition("/")
                if kind in KINDS:
                    spread = float(stored[f"{kind}.{SPREAD}/{name}"])
                    copy = Copy(int(match.group(1)), value, spread)
                    found[kind].setdefault(name, []).append(copy)
        return found


@dataclass
class Worst:
    """The largest error of one kind over all steps."""

    error: float = 0.0
    step: int = 0
    parameter: str | None = None
    share: float = 0.0
    """The largest error over that step's tolerance, maybe in another step; over 1 it diverges."""


@dataclass(frozen=True)
class Divergence:
    """Where a run first parts from the reference."""

    step: int
    quantity: str
    """loss | gradient | grad_norm | weight."""
    parameter: str | None
    """Of those that diverge, the one with the largest error; None for a number."""
    error: float
    parameters: list[str]
    """All that diverge in this quantity of this step, the largest error first."""
    text: str
    """All of it in a sentence or two."""


@dataclass
class Comparison:
    """How one run compares with the reference."""

    worst: dict[str, Worst] = field(default_factory=lambda: {kind: Worst() for kind in ORDER})
    """Quantity -> its largest error."""
    divergence: Divergence | None = None
    """None: all is within the tolerance."""

    @property
    def passed(self) -> bool:
        """Whether nothing diverges."""
        return self.divergence is None


@dataclass(frozen=True)
class _Finding:
    """One number or tensor of one step, compared."""

    quantity: str
    error: float
    text: str
    parameter: str | None = None
    is_missing: bool = False
    """A number that was not logged: a run that ended inside a step tells more elsewhere."""


def compare(reference: Recording, ours: Recording, tolerance: Tolerance) -> Comparison:
    """Compare `ours` with `reference`, step by step.

    Args:
        reference: The run of one process.
        ours: The run of a strategy.
        tolerance: What rounding may do.
    """
    result = Comparison()
    for step in reference.steps:
        findings = _compare_step(reference, ours, step)
        for finding in findings:
            worst = result.worst[finding.quantity]
            worst.share = max(worst.share, finding.error / tolerance.of(finding.quantity, step))
            if finding.error > worst.error:
                worst.error, worst.step = finding.error, step
                worst.parameter = finding.parameter
        if result.divergence is None:
            over = [f for f in findings if not f.error <= tolerance.of(f.quantity, step)]
            if over:
                result.divergence = _divergence(step, over, len(reference.steps) - 1)
    return result


def _compare_step(reference: Recording, ours: Recording, step: int) -> list[_Finding]:
    """Return every quantity of a step, compared."""
    if step not in ours.steps:
        last = ours.steps[-1] if ours.steps else None
        ended = "it recorded nothing" if last is None else f"its last record is of step {last}"
        return [_Finding(LOSS, math.inf, f"step {step} was not trained: {ended}")]
    findings = []
    if step:
        findings += [_number(LOSS, reference, ours, step), _number(NORM, reference, ours, step)]
    theirs, own = reference.tensors(step), ours.tensors(step)
    for kind in KINDS:
        if theirs[kind]:
            findings += _tensors(kind, theirs[kind], own[kind])
    if VALIDATION in reference.scalars.get(step, {}):
        findings.append(_number(VALIDATION, reference, ours, step))
    return findings


def _number(quantity: str, reference: Recording, ours: Recording, step: int) -> _Finding:
    b = reference.scalars.get(step, {}).get(quantity, math.nan)
    if quantity not in ours.scalars.get(step, {}):
        text = f"the {SPOKEN[quantity]} was not logged"
        return _Finding(quantity, math.inf, text, is_missing=True)
    a = ours.scalars[step][quantity]
    error = abs(a - b) / max(abs(b), 1e-300)
    error = error if math.isfinite(error) else math.inf
    return _Finding(quantity, error, f"the {SPOKEN[quantity]} is {a!r}, in one process {b!r}")


def _tensors(
    kind: str, theirs: dict[str, list[Copy]], ours: dict[str, list[Copy]]
) -> list[_Finding]:
    """Compare all tensors of a kind."""
    rms = _rms([copies[0].value for copies in theirs.values()])
    findings = [
        _Finding(kind, math.inf, f"no process has the parameter {name}", name)
        for name in theirs if name not in ours
    ]  # fmt: skip
    for name, copies in ours.items():
        if name not in theirs:
            text = f"the parameter {name} is not in the model of one process"
            findings.append(_Finding(kind, math.inf, text, name))
            continue
        findings.append(max(
            (_tensor(kind, name, copy, theirs[name][0].value, rms) for copy in copies),
            key=lambda finding: finding.error,
        ))  # fmt: skip
    return findings


def _tensor(kind: str, name: str, copy: Copy, b: Tensor, rms: float) -> _Finding:
    """Compare one rank's tensor with the reference's."""
    a, spoken = copy.value, f"the {SPOKEN[kind]} of {name} on rank {copy.rank}"
    if a.shape != b.shape:
        shapes = f"{tuple(a.shape)}, in one process {tuple(b.shape)}"
        return _Finding(kind, math.inf, f"{spoken} has the shape {shapes}", name)
    if not bool(a.isfinite().all()):
        count = int((~a.isfinite()).sum())
        text = f"{spoken} is missing or not finite in {count} of {a.numel()} elements"
        return _Finding(kind, math.inf, text, name)
    scale = max(float(b.abs().max()), rms, 1e-300)
    difference = (a.double() - b.double()).abs()
    at = int(difference.argmax())
    error, apart = float(difference.flatten()[at]) / scale, copy.spread / scale
    x, y = float(a.flatten()[at]), float(b.flatten()[at])
    index = ", ".join(str(int(i)) for i in torch.unravel_index(torch.tensor(at), a.shape))
    text = f"{spoken} at [{index}] is {x:.9g}, in one process {y:.9g}"
    if apart > error:
        text = f"{spoken} differs from its copies on other ranks by {copy.spread:.3g}"
    elif apart > 0:
        text += f" (copies on other ranks differ by {copy.spread:.3g})"
    error = max(error, apart)
    return _Finding(kind, error if math.isfinite(error) else math.inf, text, name)


def _rms(tensors: list[Tensor]) -> float:
    """Return the root mean square over all elements of `tensors`."""
    count = sum(tensor.numel() for tensor in tensors)
    squares = sum(float(tensor.double().square().sum()) for tensor in tensors)
    return math.sqrt(squares / max(count, 1))


def _divergence(step: int, over: list[_Finding], steps: int) -> Divergence:
    """Return the first divergence of a step from what is over the tolerance."""
    told = [finding for finding in over if not finding.is_missing] or over
    quantity = next(q for q in ORDER if any(finding.quantity == q for finding in told))
    # sorted is stable: of equal errors the first parameter of the model comes first.
    found = sorted((f for f in over if f.quantity == quantity), key=lambda f: -f.error)
    first = found[0]
    when = "before the first step" if step == 0 else f"in step {step} of {steps}"
    size = f" (relative error {first.error:.2g})" if math.isfinite(first.error) else ""
    text = f"First difference {when}: {first.text}{size}."
    names = [finding.parameter for finding in found if finding.parameter is not None]
    if len(names) == 1:
        text += f" No other {SPOKEN[quantity]} differs."
    elif names:
        shown = ", ".join(names[1:4]) + (", ..." if len(names) > 4 else "")
        text += f" {len(names)} {SPOKEN[quantity]}s differ in that step; next {shown}."
    if quantity == NORM:
        text += " Every gradient agrees: it is the norm that is computed wrongly."
    elif quantity == VALIDATION:
        text += " Every weight agrees: it is the evaluation that differs."
    elif quantity == WEIGHT and step:
        text += " Loss, gradients and their norm agree: it is the optimizer's step that differs."
    elif quantity == GRADIENT and not any(f.quantity == LOSS for f in over):
        text += " The loss of that step agrees: it is the backward or the reduction that differs."
    return Divergence(step, quantity, first.parameter, first.error, names, text)
