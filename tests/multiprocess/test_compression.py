"""Compressed gradients over two processes: near the plain ones, and resumed to the bit."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from llmtrain.sync.compression import CompressionSettings, GradientCompression, compress_gradients
from tests.support.distributed import RankPool

pytestmark = pytest.mark.multiprocess

Tensors = dict[str, torch.Tensor]

START = 4
"""The step from which PowerSGD compresses."""
STEPS = 12
BUCKET_MB = 0.02
"""A few buckets, which DDP makes anew after the first step."""

PLAIN = CompressionSettings()
FP16 = CompressionSettings("fp16")
POWERSGD = CompressionSettings("powersgd", powersgd_rank=2, powersgd_start_step=START)


class _Model(nn.Module):
    """Layers that are used in another order than they are declared in."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(48, 1)
        self.third = nn.Linear(48, 48)
        self.first = nn.Linear(24, 48)
        self.second = nn.Linear(48, 48)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in (self.first, self.second, self.third):
            x = torch.tanh(layer(x))
        out: torch.Tensor = self.last(x)
        return out


class _Run:
    """A model in training over all ranks."""

    def __init__(
        self,
        settings: CompressionSettings,
        dtype: torch.dtype,
        momentum: float = 0.9,
        batch: int = 16,
    ) -> None:
        self.batch = batch
        torch.manual_seed(0)
        self.model = _Model().to(dtype)
        self.ddp = DistributedDataParallel(
            self.model, bucket_cap_mb=BUCKET_MB, gradient_as_bucket_view=True
        )
        self.compression: GradientCompression = compress_gradients(self.ddp, settings)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.05, momentum=momentum)

    def loss(self, module: nn.Module, step: int) -> torch.Tensor:
        """Return the loss of this rank's batch of `step`: a fixed function to learn."""
        generator = torch.Generator().manual_seed(step * 100 + dist.get_rank())
        dtype = self.model.last.weight.dtype
        x = torch.randn(self.batch, 24, generator=generator).to(dtype)
        y = torch.sin(x[:, :3].sum(dim=1, keepdim=True))
        return (module(x) - y).square().mean()

    def local_grads(self, step: int) -> Tensors:
        """Return this rank's own gradients."""
        names = [name for name, _ in self.model.named_parameters()]
        grads = torch.autograd.grad(self.loss(self.model, step), list(self.model.parameters()))
        return dict(zip(names, grads, strict=True))

    def step(self, step: int, factor: float = 1.0) -> float:
        """Train; return the loss."""
        self.optimizer.zero_grad()
        loss = self.loss(self.ddp, step)
        (factor * loss).backward()
        self.optimizer.step()
        return float(loss)

    def grads(self) -> Tensors:
        return {n: p.grad.clone() for n, p in self.model.named_parameters() if p.grad is not None}

    def weights(self) -> Tensors:
        return {name: p.detach().clone() for name, p in self.model.named_parameters()}

    def restarted(self, settings: CompressionSettings, drop: str) -> "_Run":
        """Return a run that goes on from what this one saves, without keys that begin so."""
        other = _Run(settings, self.model.last.weight.dtype)
        other.model.load_state_dict(self.model.state_dict())
        other.optimizer.load_state_dict(self.optimizer.state_dict())
        state = self.compression.state_dict()
        assert all(isinstance(tensor, torch.Tensor) for tensor in state.values())
        other.compression.load_state_dict(
            {k: t.clone() for k, t in state.items() if not (drop and k.startswith(drop))}
        )
        return other


def _equal(a: Tensors, b: Tensors) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def _trained(settings: CompressionSettings, restart_at: int = -1, drop: str = "") -> Tensors:
    run = _Run(settings, torch.float32)
    for step in range(STEPS):
        if step == restart_at:
            run = run.restarted(settings, drop)
        run.step(step)
    return run.weights()


def test_before_its_first_step_powersgd_is_plain(rank_pool: Callable[[int], RankPool]) -> None:
    later = CompressionSettings("powersgd", powersgd_rank=2, powersgd_start_step=STEPS)
    plain = rank_pool(2).run(_trained, PLAIN)
    assert all(_equal(plain[0], found) for found in rank_pool(2).run(_trained, later))
    assert not any(_equal(plain[0], found) for found in rank_pool(2).run(_trained, POWERSGD))


def _first_grads(settings: CompressionSettings) -> tuple[Tensors, Tensors]:
    run = _Run(settings, torch.float32)
    local = run.local_grads(0)
    run.step(0)
    return local, run.grads()


def test_fp16_gradients_are_rounded_to_fp16(rank_pool: Callable[[int], RankPool]) -> None:
    plain = rank_pool(2).run(_first_grads, PLAIN)
    found = rank_pool(2).run(_first_grads, FP16)
    assert _equal(found[0][1], found[1][1])
    assert not _equal(found[0][1], plain[0][1])
    for name, grad in plain[0][1].items():
        halves = [local[name].abs() / 2 for local, _ in plain]
        # Both halves are rounded, and their sum; below 2^-14 by half of 2^-24 each.
        bound = 2**-11 * (halves[0] + halves[1]) * 2 * (1 + 2**-10) + 3 * 2**-25
        assert ((found[0][1][name] - grad).abs() <= bound).all(), name


def _losses(settings: CompressionSettings) -> list[float]:
    run = _Run(settings, torch.float32)
    return [run.step(step) for step in range(300)]


def test_powersgd_learns_nearly_as_plain(rank_pool: Callable[[int], RankPool]) -> None:
    def end(settings: CompressionSettings) -> float:
        ranks = rank_pool(2).run(_losses, settings)
        return sum(sum(losses[-50:]) for losses in ranks) / 100

    plain, compressed = end(PLAIN), end(POWERSGD)
    start = sum(losses[0] for losses in rank_pool(2).run(_losses, PLAIN)) / 2
    assert plain < 0.5 * start, "the problem is learnt at all"
    assert compressed < plain + 0.1 * (start - plain)


def _rounds(settings: CompressionSettings, batch: int) -> list[tuple[Tensors, Tensors, Tensors]]:
    """Return for each step: own gradients, the applied ones, and the errors after it."""
    run = _Run(settings, torch.float64, momentum=0.0, batch=batch)
    found = []
    for step in range(STEPS):
        local = run.local_grads(step)
        run.step(step)
        state = run.compression.state_dict()
        errors = {k.removeprefix("error."): t for k, t in state.items() if k.startswith("error.")}
        found.append((local, run.grads(), errors))
    return found


def test_error_feedback_loses_nothing(rank_pool: Callable[[int], RankPool]) -> None:
    """Applied = mean of own gradients + mean of errors before - mean of errors after."""
    ranks = rank_pool(2).run(_rounds, POWERSGD, 16)
    before: Tensors = {}
    for step in range(STEPS):
        (own0, applied, errors0), (own1, other, errors1) = ranks[0][step], ranks[1][step]
        assert _equal(applied, other)
        assert errors0.keys() == {"first.weight", "second.weight", "third.weight"}
        for name, grad in applied.items():
            expected = (own0[name] + own1[name]) / 2
            if name in errors0:
                after = (errors0[name] + errors1[name]) / 2
                withheld = float(after.norm() / expected.norm())
                assert withheld > 1e-3 if step >= START else withheld == 0
                expected = expected + before.get(name, 0.0) - after
                before[name] = after
            assert torch.allclose(grad, expected, 0, 1e-14), (step, name)


def test_gradients_of_low_rank_arrive_whole(rank_pool: Callable[[int], RankPool]) -> None:
    """Of one sample a rank, the mean gradient of a layer over two ranks has rank two."""
    at_once = CompressionSettings("powersgd", powersgd_rank=2, powersgd_start_step=0)
    too_low = CompressionSettings("powersgd", powersgd_rank=1, powersgd_start_step=0)

    def off(settings: CompressionSettings) -> float:
        (own0, applied, _), (own1, _, _) = (
            ranks[0] for ranks in rank_pool(2).run(_rounds, settings, 1)
        )
        means = {name: (own0[name] + own1[name]) / 2 for name in own0}
        return max(float((applied[n] - mean).norm() / mean.norm()) for n, mean in means.items())

    assert off(at_once) < 1e-10
    assert off(too_low) > 1e-2


# Before compressing, at its first step, in its midst.
@pytest.mark.parametrize("restart_at", [1, START, START + 1, STEPS - 3])
def test_a_resumed_run_is_the_same_bitwise(
    restart_at: int, rank_pool: Callable[[int], RankPool]
) -> None:
    through = rank_pool(2).run(_trained, POWERSGD)
    resumed = rank_pool(2).run(_trained, POWERSGD, restart_at)
    assert _equal(through[0], through[1])
    assert all(_equal(through[0], found) for found in resumed)


@pytest.mark.parametrize("drop", ["error.", "q.", "steps"])
def test_a_resumed_run_needs_all_of_its_state(
    drop: str, rank_pool: Callable[[int], RankPool]
) -> None:
    through = rank_pool(2).run(_trained, POWERSGD)
    resumed = rank_pool(2).run(_trained, POWERSGD, START + 3, drop)
    assert not _equal(through[0], resumed[0])


def _sent(settings: CompressionSettings) -> list[tuple[float, float]]:
    """Return for each step: bytes by formula, and by what torch was given to sum."""
    given: list[int] = []
    plain = dist.all_reduce

    def counted(tensor: torch.Tensor, *args: Any, **rest: Any) -> Any:
        given.append(tensor.nbytes)
        return plain(tensor, *args, **rest)

    dist.all_reduce = counted
    try:
        run, found = _Run(settings, torch.float32), []
        for step in range(START + 2):
            given.clear()
            run.step(step)
            # On W = 2 ranks 2 (W-1)/W = 1.
            found.append((run.compression.comm_bytes(step), float(sum(given))))
    finally:
        dist.all_reduce = plain
    return found


@pytest.mark.parametrize("settings", [FP16, POWERSGD], ids=lambda s: s.compression)
def test_bytes_are_what_is_summed(
    settings: CompressionSettings, rank_pool: Callable[[int], RankPool]
) -> None:
    for found in rank_pool(2).run(_sent, settings):
        assert all(formula == given for formula, given in found)
        numel = sum(p.numel() for p in _Model().parameters())
        assert found[0][0] == (2 if settings.compression == "fp16" else 4) * numel
        if settings.compression == "powersgd":
            whole = 3 * 48 + 48 + 1
            assert found[-1][0] == 4 * (whole + 2 * (2 * (48 + 48) + (24 + 48)))


def _after_zeros() -> tuple[float, float, bool]:
    """Return the largest gradient amid zeros, the smallest norm of a matrix's behind them, and
    whether all are NaN behind a NaN."""
    run = _Run(POWERSGD, torch.float32)
    for step in range(START):
        run.step(step)
    for step in range(START, START + 4):
        run.step(step, factor=0.0)
    amid = max(float(grad.abs().max()) for grad in run.grads().values())
    for step in range(2):
        run.step(START + 4 + step)
    behind = min(float(grad.norm()) for grad in run.grads().values() if grad.ndim > 1)
    run.step(START + 6, factor=float("nan"))
    return amid, behind, all(bool(grad.isnan().any()) for grad in run.grads().values())


def test_gradients_of_zeros_do_not_end_learning(rank_pool: Callable[[int], RankPool]) -> None:
    """Four of them from the start, and then a NaN, which must be seen."""
    for amid, behind, all_nan in rank_pool(2).run(_after_zeros):
        assert amid == 0.0
        assert behind > 1e-4
        assert all_nan


def _accumulated() -> int:
    run = _Run(POWERSGD, torch.float32)
    for step in range(3):
        with run.ddp.no_sync():
            run.loss(run.ddp, step).backward()
        run.loss(run.ddp, step + 50).backward()
    return int(run.compression.state_dict()["steps"])


def test_micro_batches_of_a_step_count_once(rank_pool: Callable[[int], RankPool]) -> None:
    assert rank_pool(2).run(_accumulated) == [3, 3]


def _refusals() -> list[str]:
    """Return what is said of each thing that cannot be; "" where nothing is."""
    ddp = DistributedDataParallel(_Model())
    said = []
    for settings in (
        CompressionSettings("bf16"),
        CompressionSettings("powersgd", powersgd_start_step=-1),
        CompressionSettings("powersgd", powersgd_rank=0),
    ):
        said.append(_refusal(lambda settings=settings: compress_gradients(ddp, settings)))
    compression = compress_gradients(ddp, POWERSGD)
    for key, tensor in (
        ("q.first.weight", torch.zeros(24, 4)),
        ("error.first.weight", torch.zeros(24, 48)),
        ("q.first.bias", torch.zeros(1, 2)),
        ("q.fourth.weight", torch.zeros(1, 2)),
    ):
        state = {"steps": torch.tensor(9), key: tensor}
        said.append(_refusal(lambda state=state: compression.load_state_dict(state)))
    return said


def _refusal(action: Callable[[], object]) -> str:
    try:
        action()
    except ValueError as error:
        return str(error)
    return ""


def test_what_cannot_be_is_refused(rank_pool: Callable[[int], RankPool]) -> None:
    wanted = (
        "compression=bf16: choose one of none, fp16", "powersgd_start_step=-1 0 or more",
        "powersgd_rank=0 must be", "shape (24, 4), not (24, 2)", "not (48, 24)",
        "does not compress", "does not compress",
    )  # fmt: skip
    for said in rank_pool(2).run(_refusals):
        for refusal, words in zip(said, wanted, strict=True):
            assert words in refusal
