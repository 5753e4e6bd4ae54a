"""Every optimizer against its paper, written here again from the equations, in fp64."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from llmtrain.config.groups.optimizer import (
    AdafactorConfig,
    AdamConfig,
    AdamWConfig,
    LionConfig,
    MomentumConfig,
    MuonConfig,
    OptimizerConfig,
    SGDConfig,
)
from llmtrain.optim.adafactor import Adafactor
from llmtrain.optim.muon import newton_schulz, update_scale
from llmtrain.optim.optimizer import build_optimizers

STEPS = 6
RTOL = 1e-12
"""fp64: 6 steps of some 20 operations, each 1.1e-16, with the division by a small root of the
second moment losing another factor 100 or so."""

State = dict[str, Tensor | float]
Rule = Callable[[OptimizerConfig, State, Tensor, Tensor, int], Tensor]
"""(config, the parameter's state, parameter, gradient, step from 1) -> new parameter."""


class Holder(nn.Module):
    """A matrix, a vector, and a bias that takes no decay."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        for name, shape in (("matrix", (5, 3)), ("vector", (4,)), ("bias", (3,))):
            start = torch.randn(shape, generator=generator, dtype=torch.float64)
            self.register_parameter(name, nn.Parameter(start))


def sgd(c: SGDConfig, s: State, x: Tensor, g: Tensor, t: int) -> Tensor:
    return x - c.lr * (g + c.weight_decay * x)


def momentum(c: MomentumConfig, s: State, x: Tensor, g: Tensor, t: int) -> Tensor:
    g = g + c.weight_decay * x
    s["b"] = c.momentum * s.get("b", 0.0) + g
    return x - c.lr * (g + c.momentum * s["b"] if c.nesterov else s["b"])


def adam_direction(c: AdamConfig, s: State, g: Tensor, t: int) -> Tensor:
    s["m"] = c.beta1 * s.get("m", 0.0) + (1 - c.beta1) * g
    s["v"] = c.beta2 * s.get("v", 0.0) + (1 - c.beta2) * g**2
    return (s["m"] / (1 - c.beta1**t)) / ((s["v"] / (1 - c.beta2**t)).sqrt() + c.eps)


def adam(c: AdamConfig, s: State, x: Tensor, g: Tensor, t: int) -> Tensor:
    return x - c.lr * adam_direction(c, s, g + c.weight_decay * x, t)


def adamw(c: AdamConfig, s: State, x: Tensor, g: Tensor, t: int) -> Tensor:
    return x - c.lr * (adam_direction(c, s, g, t) + c.weight_decay * x)


def lion(c: LionConfig, s: State, x: Tensor, g: Tensor, t: int) -> Tensor:
    m = s.get("m", torch.zeros_like(g))
    s["m"] = c.beta2 * m + (1 - c.beta2) * g
    return x - c.lr * ((c.beta1 * m + (1 - c.beta1) * g).sign() + c.weight_decay * x)


def adafactor(c: AdafactorConfig, s: State, x: Tensor, g: Tensor, t: int) -> Tensor:
    """Algorithms 4 and 5 of arXiv:1804.04235, with sums where ours has means."""

    def rms(a: Tensor) -> float:
        return float((a**2).mean() ** 0.5)

    beta2 = 1 - t**c.beta2_decay
    alpha = max(1e-3, rms(x)) * min(c.lr, t**-0.5)
    square = g**2 + 1e-30
    if g.ndim == 2:
        s["R"] = beta2 * s.get("R", 0.0) + (1 - beta2) * square.sum(1)
        s["C"] = beta2 * s.get("C", 0.0) + (1 - beta2) * square.sum(0)
        v = torch.outer(s["R"], s["C"]) / s["R"].sum()
    else:
        s["V"] = v = beta2 * s.get("V", 0.0) + (1 - beta2) * square
    u = g / v.sqrt()
    return x - c.lr * c.weight_decay * x - alpha * u / max(1.0, rms(u) / c.clip_threshold)


def muon(c: MuonConfig, s: State, x: Tensor, g: Tensor, t: int) -> Tensor:
    """Jordan et al. 2024 through the singular values: the quintic acts on each by itself."""
    if x.ndim != 2:
        return adamw(c, s, x, g, t)
    s["b"] = c.momentum * s.get("b", 0.0) + g
    U, S, V = torch.linalg.svd(g + c.momentum * s["b"], full_matrices=False)
    S = S / (S**2).sum().sqrt()
    for _ in range(c.ns_steps):
        S = 3.4445 * S - 4.7750 * S**3 + 2.0315 * S**5
    update = 0.2 * max(x.shape) ** 0.5 * (U * S) @ V
    return x - c.lr * (update + c.weight_decay * x)


CASES: list[tuple[OptimizerConfig, Rule]] = [
    (SGDConfig(lr=0.1, weight_decay=0.05), sgd),
    (MomentumConfig(lr=0.05, weight_decay=0.05), momentum),
    (MomentumConfig(lr=0.05, nesterov=False), momentum),
    (AdamConfig(lr=0.01, weight_decay=0.1), adam),
    (AdamWConfig(lr=0.01), adamw),
    (AdafactorConfig(lr=0.02, weight_decay=0.1), adafactor),
    (AdafactorConfig(lr=1.0, clip_threshold=2.0), adafactor),
    (LionConfig(lr=0.01), lion),
    (MuonConfig(lr=0.02), muon),
]


@pytest.mark.parametrize(("config", "rule"), CASES, ids=lambda v: getattr(v, "name", ""))
def test_optimizer_is_the_papers(config: OptimizerConfig, rule: Rule) -> None:
    model = Holder()
    optimizers = build_optimizers(config, model, no_decay=["*bias"], hidden=["matrix"])
    wanted = {name: p.detach().clone() for name, p in model.named_parameters()}
    states: dict[str, State] = {name: {} for name in wanted}
    plain = type(config)(**{**vars(config), "weight_decay": 0.0})
    generator = torch.Generator().manual_seed(4)
    for t in range(1, STEPS + 1):
        for name, p in model.named_parameters():
            scale = 10.0 ** (t % 3 - 2)
            p.grad = scale * torch.randn(p.shape, generator=generator, dtype=p.dtype)
            own = plain if name == "bias" else config
            wanted[name] = rule(own, states[name], wanted[name], p.grad.clone(), t)
        for optimizer in optimizers:
            optimizer.step()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), wanted[name], rtol=RTOL, atol=RTOL)


def test_adafactor_with_tiny_fp32_gradients_is_still_the_papers() -> None:
    # torch.optim.Adafactor floors the mean of the second moment at 1.2e-7: it fails this.
    config = AdafactorConfig(lr=0.01, clip_threshold=100.0)
    x = torch.randn(6, 4)
    g = 1e-6 * torch.randn(6, 4)
    wanted = adafactor(config, {}, x.double(), g.double(), 1)
    p = nn.Parameter(x.clone())
    p.grad = g
    Adafactor([p], lr=config.lr, clip_threshold=config.clip_threshold).step()
    # fp32: the update is about 1e-2 of the parameter, a few roundings of 6e-8 each
    torch.testing.assert_close(p.detach().double(), wanted, rtol=1e-6, atol=1e-7)


def test_adafactor_agrees_with_torch_where_torch_is_the_papers() -> None:
    ours, theirs = Holder(), Holder()
    mine = Adafactor(ours.parameters(), lr=0.02, weight_decay=0.1)
    other = torch.optim.Adafactor(theirs.parameters(), lr=0.02, eps=(1e-30, 1e-3), weight_decay=0.1)
    generator = torch.Generator().manual_seed(5)
    for _ in range(STEPS):
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            a.grad = torch.randn(a.shape, generator=generator, dtype=a.dtype)
            b.grad = a.grad.clone()
        mine.step()
        other.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=RTOL, atol=RTOL)


@pytest.mark.parametrize("shape", [(3, 6, 4), (2, 2, 5, 5)])
def test_batches_of_matrices_step_as_matrices(shape: tuple[int, ...]) -> None:
    batch = torch.randn(shape, dtype=torch.float64)
    whole = newton_schulz(batch, 5)
    for index in torch.cartesian_prod(*[torch.arange(n) for n in shape[:-2]]).reshape(
        -1, len(shape) - 2
    ):
        place = tuple(index.tolist())
        torch.testing.assert_close(whole[place], newton_schulz(batch[place], 5))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(24, 24), (17, 40), (40, 17)])
def test_newton_schulz_brings_singular_values_near_one(
    shape: tuple[int, int], dtype: torch.dtype
) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(6)).to(dtype)
    result = newton_schulz(matrix, 5)
    assert result.dtype == dtype
    values = torch.linalg.svdvals(result.double())
    # The quintic's fixed band is about 0.68 to 1.13; a square random matrix has one singular
    # value near 0 that 5 steps (a growth of 3.44 each) do not bring all the way.
    assert values.max() < 1.3
    assert values[:-1].min() > 0.5
    if shape[0] != shape[1]:
        assert values.min() > 0.5


def test_newton_schulz_of_zero_is_zero_and_of_any_scale_the_same() -> None:
    assert newton_schulz(torch.zeros(3, 4), 5).abs().max() == 0
    matrix = torch.randn(5, 4, dtype=torch.float64)
    torch.testing.assert_close(newton_schulz(1e-9 * matrix, 5), newton_schulz(matrix, 5))


def test_muon_update_has_the_rms_of_adamws() -> None:
    p = nn.Parameter(torch.zeros(64, 200, dtype=torch.float64))
    p.grad = torch.randn(64, 200, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    model = nn.ParameterDict({"w": p})
    config = MuonConfig(lr=1.0, weight_decay=0.0)
    build_optimizers(config, model, no_decay=[], hidden=["w"])[0].step()
    # 0.2 of an exactly orthogonal matrix, times the band of the quintic (0.68 to 1.13)
    assert 0.2 * 0.68 < p.square().mean().sqrt() < 0.2 * 1.13
    assert update_scale(torch.Size((64, 200))) == pytest.approx(0.2 * 200**0.5)
