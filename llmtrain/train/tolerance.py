"""How far rounding alone may take two layouts of one computation apart.

Layouts differ in the order of their sums, and in nothing else. With

    u   unit roundoff of the precision (2^-53 in fp64)
    n   terms of the longest sum: tokens of a step, feed-forward width or vocabulary
    d   sums one after the other, forward and backward: 2 (8 layers + 3)
    N   parameters
    r   size of an update beside the weights: lr / RMS of the weights at the start

the bounds are

    P    = 8 u sqrt(n d)                                 one forward and backward
    G(k) = P + sqrt(d) (k - 1) r min(sqrt(N) P, 2 sqrt(P))   loss, norm and gradients of step k
    W(k) = P + k r min(N P, 2)                           weights after step k

P: rounding errors behave as a random walk (Higham and Mary 2019, theorem 2.4), and so do the
partial sums of terms of random sign: n terms give sqrt(n) roundings of the result's own size, d
sums one after the other sqrt(n d). 8 standard deviations leave a chance of 2 e^-32 a number.

W: Adam divides each element by its own size, so that it is the *element's* relative error that
counts: of N gradients the smallest is about 1/N of the typical one and its error N P. An update is
about lr at most whatever its gradient, so two differ by 2 at most: in fp32 the sign of the smallest
is rounding, and weights then prove little. Lion, Adafactor and Muon normalise without a floor (Adam
has eps), so that gradients that are rounding alone (of a key's bias) make whole updates: 2 there.

G: the mean square of such errors, min(2, P / x)^2 over x even in (1/N, 1), is N P^2 or 4 P; they
pass d sums in the next step. For Lion, Adafactor and Muon it is 4 P.

In bf16 products are rounded and sums are kept in fp32, so n is 1 there.
"""

import math
from dataclasses import dataclass

from llmtrain.config.plan import Plan
from llmtrain.config.schema import RunConfig

UNIT_ROUNDOFF = {"fp64": 2.0**-53, "fp32": 2.0**-24, "bf16": 2.0**-8}

CONFIDENCE = 8.0
"""Standard deviations of the random walk."""

FLOORED = ("sgd", "momentum", "adam", "adamw")
"""Optimizers in which a gradient that is rounding alone makes a small update."""


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """The numbers in the bounds above, and what they give."""

    unit_roundoff: float
    longest_sum: int
    depth: int
    parameters: int
    update_ratio: float
    weight_gain: float
    """Largest error of an update over lr."""
    mean_gain: float
    """Its root mean square."""
    one_pass: float
    """P."""

    def of(self, quantity: str, step: int) -> float:
        """Return the largest relative error that `quantity` may have in `step`.

        Args:
            quantity: loss | grad_norm | gradient | weight | val_loss.
            step: From 1; for weights 0 is before the first.
        """
        if quantity == "val_loss":
            step += 1  # its weights are those of the next step's forward
        if quantity == "weight":
            return self.one_pass + step * self.update_ratio * self.weight_gain
        walked = math.sqrt(self.depth) * (step - 1) * self.update_ratio * self.mean_gain
        return self.one_pass + max(walked, 0.0)


def make_tolerance(run: RunConfig, plan: Plan, weights_rms: float) -> Tolerance:
    """Return the bounds for `run`.

    Args:
        run: The reference's configuration.
        plan: Its plan, completed by the data.
        weights_rms: Root mean square of all weights before the first step.
    """
    assert plan.vocab_size is not None and plan.n_parameters is not None
    unit = UNIT_ROUNDOFF[run.train.precision]
    longest = max(plan.tokens_per_step, run.model.ffn_width, run.model.dim, plan.vocab_size)
    longest = 1 if run.train.precision == "bf16" else longest
    depth = 2 * (8 * run.model.n_layers + 3)
    one_pass = CONFIDENCE * unit * math.sqrt(longest * depth)
    n = plan.n_parameters
    floored = run.optimizer.name in FLOORED
    return Tolerance(
        unit_roundoff=unit,
        longest_sum=longest,
        depth=depth,
        parameters=n,
        update_ratio=run.optimizer.lr / max(weights_rms, 1e-300),
        weight_gain=min(2.0, n * one_pass) if floored else 2.0,
        mean_gain=min(math.sqrt(n) * one_pass if floored else 2.0, 2 * math.sqrt(one_pass)),
        one_pass=one_pass,
    )
