"""The gradient norm and the clipping in one process."""

import pytest
import torch
from torch import nn

from llmtrain.distributed.shards import BLOCK
from llmtrain.optim.clip import clip_grads, grad_norm


def with_grads(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float64) -> list[nn.Parameter]:
    """Return parameters of `shapes` with random gradients."""
    generator = torch.Generator().manual_seed(8)
    parameters = [nn.Parameter(torch.zeros(shape, dtype=dtype)) for shape in shapes]
    for p in parameters:
        p.grad = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(dtype)
    return parameters


def whole_norm(parameters: list[nn.Parameter]) -> torch.Tensor:
    """Return the norm of all gradients in one fp64 vector."""
    return torch.cat([p.grad.double().reshape(-1) for p in parameters if p.grad is not None]).norm()


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    # fp64 and fp32: blocks of 2^14 add a running sum's rounding, well under sqrt(2^14) units;
    # bf16 gradients are added up in fp32, by a kernel with one running sum instead of several
    [(torch.float64, 1e-14), (torch.float32, 1e-6), (torch.bfloat16, 1e-5)],
)
def test_norm_is_that_of_one_long_vector(dtype: torch.dtype, tolerance: float) -> None:
    parameters = with_grads((7, 5), (3,), (0, 4), (), (BLOCK + 1,), (300, 200), dtype=dtype)
    parameters.append(nn.Parameter(torch.zeros(4, dtype=dtype)))  # without a gradient
    norm = grad_norm(parameters)
    assert norm.dtype == torch.float64
    torch.testing.assert_close(norm, whole_norm(parameters), rtol=tolerance, atol=0)


def test_a_large_fp32_gradient_keeps_seven_digits() -> None:
    # torch's running sum is 3e-5 or more off here
    p = with_grads((1 << 22,), dtype=torch.float32)
    torch.testing.assert_close(grad_norm(p), whole_norm(p), rtol=2e-7, atol=0)


def test_mixed_dtypes_and_transposed_gradients() -> None:
    parameters = with_grads((4, 3)) + with_grads((5,), dtype=torch.float32)
    transposed = nn.Parameter(torch.zeros(3, 4, dtype=torch.float64))
    transposed.grad = parameters[0].grad.T
    parameters.append(transposed)
    torch.testing.assert_close(grad_norm(parameters), whole_norm(parameters), rtol=1e-7, atol=0)


def test_huge_fp32_gradients_do_not_overflow() -> None:
    p = nn.Parameter(torch.zeros(8))
    p.grad = torch.full((8,), 1e18)
    q = nn.Parameter(torch.zeros(8))
    q.grad = torch.full((8,), 1e18)
    assert grad_norm([p, q]).item() == pytest.approx(4e18)


def test_no_gradients_have_norm_zero() -> None:
    assert grad_norm([]) == 0
    assert clip_grads([nn.Parameter(torch.zeros(2))], 1.0) == 0


@pytest.mark.parametrize("max_norm", [0.5, 1e6])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_clipping_is_torchs(max_norm: float, dtype: torch.dtype) -> None:
    ours, theirs = (with_grads((7, 5), (3,), dtype=dtype) for _ in range(2))
    norm = clip_grads(ours, max_norm)
    wanted = torch.nn.utils.clip_grad_norm_(theirs, max_norm)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-6
    torch.testing.assert_close(norm.to(dtype), wanted, rtol=tolerance, atol=0)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=tolerance, atol=0)


def test_zero_only_measures_and_bf16_is_scaled_by_the_exact_factor() -> None:
    parameters = with_grads((9, 9), dtype=torch.bfloat16)
    before = parameters[0].grad.clone()
    norm = clip_grads(parameters, 0.0)
    assert torch.equal(parameters[0].grad, before)
    clip_grads(parameters, norm.item() / 3)
    wanted = (before.float() * (norm.item() / 3 / (norm.item() + 1e-6))).bfloat16()
    assert torch.equal(parameters[0].grad, wanted)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_norm_that_is_not_finite_comes_back_and_touches_nothing(bad: float) -> None:
    parameters = with_grads((3, 3), (2,))
    parameters[1].grad[0] = bad
    before = parameters[0].grad.clone()
    assert not clip_grads(parameters, 1.0).isfinite()
    assert torch.equal(parameters[0].grad, before)
