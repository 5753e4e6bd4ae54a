"""Means over real processes: none is lost, all ranks hold the same bits, every byte is counted."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist

from llmtrain.sync.codec import build_codec
from llmtrain.sync.reducer import Reducer
from tests.support.distributed import RankPool

pytestmark = pytest.mark.multiprocess

Tensors = dict[str, torch.Tensor]

WIRES = ("fp32", "bf16", "fp16", "int8", "int4")
LEVELS = {"int8": 127, "int4": 7}
BLOCK = 16
BUCKET_BYTES = 1024
SHAPES = ((4,), (4,), (2,), (), (0,), (1,), (7, 33), (3, 0), (2000,), (257,), (5,))
"""Scalars, empties, sizes that tile neither block nor bucket, one larger than a bucket."""
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

STEP_SLACK = 1.01
"""Steps are computed from the numbers before rounding; what is rounded is a little larger."""


def _draw(rank: int, dtypes: tuple[torch.dtype, ...] = (torch.float32,), seed: int = 0) -> Tensors:
    """Return what a rank contributes; dtypes alternate, so that buckets interleave."""
    generator = torch.Generator().manual_seed(1000 * seed + rank)
    return {
        f"{i} {shape}": torch.randn(shape, generator=generator, dtype=torch.float64).to(
            dtypes[i % len(dtypes)]
        )
        for i, shape in enumerate(SHAPES)
    }


def _reducer(wire_dtype: str, **settings: Any) -> Reducer:
    group = dist.group.WORLD
    assert group is not None
    settings = {"block_size": BLOCK, "bucket_bytes": BUCKET_BYTES, **settings}
    return Reducer(group, wire_dtype=wire_dtype, **settings)


def _equal(a: Tensors, b: Tensors) -> bool:
    """Return whether two dicts hold the same bits."""
    return a.keys() == b.keys() and all(
        a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]) for name in a
    )


def _means(wire_dtype: str, dtypes: tuple[torch.dtype, ...]) -> Tensors:
    tensors = _draw(dist.get_rank(), dtypes)
    _reducer(wire_dtype).mean_(tensors)
    return tensors


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("wire_dtype", WIRES)
def test_ranks_end_with_the_same_mean(
    wire_dtype: str, world_size: int, rank_pool: Callable[[int], RankPool]
) -> None:
    found = rank_pool(world_size).run(_means, wire_dtype, DTYPES)
    assert all(_equal(found[0], other) for other in found[1:])
    inputs = [_draw(rank, DTYPES) for rank in range(world_size)]
    for name, mean in found[0].items():
        parts = torch.stack([each[name].double() for each in inputs])
        expected = parts.mean(dim=0)
        if not mean.numel():
            continue
        largest = parts.abs().max()
        # One rounding of what is sent and one of the mean, and those of the tensor's own dtype,
        # in which fp32 adds up.
        own = world_size * torch.finfo(mean.dtype).eps * largest
        rounding = {"fp32": 0.0, "bf16": 2**-8, "fp16": 2**-11}.get(wire_dtype)
        if rounding is None:
            rounding = STEP_SLACK / 2 / LEVELS[wire_dtype]
        assert (mean.double() - expected).abs().max() <= 2 * rounding * largest * 1.1 + own, name


def _plain_means(dtypes: tuple[torch.dtype, ...]) -> tuple[Tensors, Tensors]:
    plain = _draw(dist.get_rank(), dtypes)
    for tensor in plain.values():
        dist.all_reduce(tensor)
        tensor.div_(dist.get_world_size())
    return _means("fp32", dtypes), plain


def test_fp32_is_the_plain_all_reduce_bitwise(rank_pool: Callable[[int], RankPool]) -> None:
    a, b = (_draw(rank, DTYPES) for rank in range(2))
    for found, plain in rank_pool(2).run(_plain_means, DTYPES):
        assert _equal(found, plain)
        assert _equal(found, {name: (a[name] + b[name]) / 2 for name in a})


def _sentinels(wire_dtype: str) -> Tensors:
    """Every tensor holds a number of its own, and other ones on other ranks."""
    rank = dist.get_rank()
    tensors = {
        f"{i} {dtype}": torch.full(shape, float(i + 10 * rank + 1), dtype=dtype)
        for dtype in DTYPES
        for i, shape in enumerate(SHAPES)
    }
    # Strides: a transposed matrix, and every second element of a row.
    tensors["transposed"] = torch.full((33, 7), 50.0 + 10 * rank).t()
    tensors["strided"] = torch.full((100,), 60.0 + 10 * rank)[::2]
    tensors["parameter"] = torch.nn.Parameter(torch.full((5,), 70.0 + 10 * rank))
    _reducer(wire_dtype).mean_(tensors)
    return {name: tensor.detach() for name, tensor in tensors.items()}


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("wire_dtype", WIRES)
def test_no_tensor_is_lost(
    wire_dtype: str, world_size: int, rank_pool: Callable[[int], RankPool]
) -> None:
    for found in rank_pool(world_size).run(_sentinels, wire_dtype):
        shift = 10 * (world_size - 1) / 2
        expected = {f"{i} {t}": i + 1 + shift for t in DTYPES for i in range(len(SHAPES))}
        expected |= {"transposed": 50 + shift, "strided": 60 + shift, "parameter": 70 + shift}
        assert found.keys() == expected.keys()
        for name, tensor in found.items():
            # A block of equal numbers is its own scale: 8 and 4 bits too are right to an ulp.
            assert torch.allclose(tensor.double(), torch.tensor(expected[name]).double(), 1e-6, 0)


def _rounds(wire_dtype: str, n: int, error_feedback: bool) -> list[tuple[Tensors, Tensors]]:
    """Return, for each round of the same inputs, the means and the residuals after it."""
    reducer = _reducer(wire_dtype, error_feedback=error_feedback)
    history = []
    for _ in range(n):
        tensors = _draw(dist.get_rank(), (torch.float64,))
        reducer.mean_(tensors)
        history.append((tensors, reducer.state_dict()))
    return history


def _withheld(largest: float, world_size: int, levels: int) -> float:
    """Return a bound on what error feedback withholds of the mean, after any number of rounds.

    With q = 1/(2 levels) the error of encoding v is at most q max|v|. A rank's residual r obeys
    r <= q (x + r). The owner's R has W times the error of the mean's encoding in it too, and that
    mean is at most (1 + q) ((W-1) (x + r) + x + R) / W.
    """
    q = 0.5 / levels
    other = q * largest / (1 - q)
    known = q * largest + q * (1 + q) * ((world_size - 1) * (largest + other) + largest)
    owner = known / (1 - q - q * (1 + q))
    return ((world_size - 1) * other + owner) / world_size


@pytest.mark.parametrize("world_size", [2, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("wire_dtype", sorted(LEVELS))
def test_error_feedback_applies_in_the_end_what_is_true(
    wire_dtype: str, world_size: int, rank_pool: Callable[[int], RankPool]
) -> None:
    n = 60
    inputs = [_draw(rank, (torch.float64,)) for rank in range(world_size)]
    true = {name: sum(each[name] for each in inputs) / world_size for name in inputs[0]}
    largest = max(float(t.abs().max()) for each in inputs for t in each.values() if t.numel())
    bound = _withheld(largest, world_size, LEVELS[wire_dtype])

    def off(history: list[tuple[Tensors, Tensors]]) -> float:
        """Return how far what was applied is from what should have been, at the worst element."""
        sums = {name: sum(means[name] for means, _ in history) for name in true}
        return max(float((sums[k] - n * true[k]).abs().max()) for k in true if true[k].numel())

    with_feedback = rank_pool(world_size).run(_rounds, wire_dtype, n, True)
    without = rank_pool(world_size).run(_rounds, wire_dtype, n, False)
    assert off(with_feedback[0]) <= bound
    assert off(without[0]) > 2 * bound

    # To the last bit of fp64: applied = mean(true) + mean(residuals before) - mean(after).
    before = {name: torch.zeros(()) for name, mean in true.items() if mean.numel()}
    for t in range(n):
        for name in before:
            residuals = torch.stack([history[t][1][name] for history in with_feedback])
            after = residuals.mean(dim=0)
            applied = with_feedback[0][t][0][name]
            assert torch.allclose(applied, true[name] + before[name] - after, 0, 1e-12)
            before[name] = after


def _state(rounds: int, saved_after: int, drop: bool) -> tuple[Tensors, Tensors]:
    """Return the last means of `rounds` rounds in one go, and with a restart in between."""
    last = []
    for restarts in (False, True):
        reducer = _reducer("int4")
        for t in range(rounds):
            tensors = _draw(dist.get_rank(), DTYPES, seed=t)
            reducer.mean_(tensors)
            if restarts and t == saved_after:
                state = {name: tensor.clone() for name, tensor in reducer.state_dict().items()}
                reducer = _reducer("int4")
                reducer.load_state_dict({} if drop else state)
        last.append(tensors)
    return last[0], last[1]


def test_residuals_saved_and_loaded_go_on_bitwise(rank_pool: Callable[[int], RankPool]) -> None:
    for through, restarted in rank_pool(2).run(_state, 4, 1, False):
        assert _equal(through, restarted)
    for through, restarted in rank_pool(2).run(_state, 4, 1, True):
        assert not _equal(through, restarted)


def _count() -> dict[str, tuple[int, int, int]]:
    """Return for each wire dtype: bytes counted, bytes given to torch for others, collectives."""
    rank, size = dist.get_rank(), dist.get_world_size()
    given: list[int] = []
    to_all, gather, reduce = dist.all_to_all_single, dist.all_gather_into_tensor, dist.all_reduce

    def counted_to_all(output: Any, sent: Any, received: Any, split: Any, **rest: Any) -> Any:
        assert sum(split) == sent.nbytes
        given.append(sent.nbytes - split[rank])
        return to_all(output, sent, received, split, **rest)

    def counted_gather(output: Any, sent: Any, **rest: Any) -> Any:
        given.append((size - 1) * sent.nbytes)
        return gather(output, sent, **rest)

    def counted_reduce(flat: Any, **rest: Any) -> Any:
        given.append(2 * (size - 1) * flat.nbytes // size)
        return reduce(flat, **rest)

    dist.all_to_all_single, dist.all_gather_into_tensor = counted_to_all, counted_gather
    dist.all_reduce = counted_reduce
    found = {}
    try:
        for wire_dtype in WIRES:
            given.clear()
            reducer = _reducer(wire_dtype, block_size=256, bucket_bytes=2**16)
            reducer.mean_({str(n): torch.ones(n) for n in (64 * 300, 1000, 0, 257, 10, 5000)})
            found[wire_dtype] = (reducer.sent_bytes, sum(given), reducer.collectives)
            assert reducer.collectives == len(given)
            reducer.mean_({"nothing": torch.ones(0)})
            assert reducer.collectives == len(given)
    finally:
        dist.all_to_all_single, dist.all_gather_into_tensor = to_all, gather
        dist.all_reduce = reduce
    return found


@pytest.mark.parametrize("world_size", [2, 3])
def test_bytes_are_counted(world_size: int, rank_pool: Callable[[int], RankPool]) -> None:
    ranks = rank_pool(world_size).run(_count)
    numel = 64 * 300 + 1000 + 257 + 10 + 5000
    fp32 = sum(rank["fp32"][0] for rank in ranks)
    assert fp32 == pytest.approx(2 * (world_size - 1) * numel * 4, abs=2 * world_size)
    # In each of two buckets every rank sends the largest chunk's bytes to the others: at most a
    # block (512 bytes in 16 bits) more than the average. Four blocks are short.
    padding = 2 * world_size * (world_size - 1) * 512
    short = 2 * (world_size - 1) * 4 * 5
    for wire_dtype, ratio in {"bf16": 1 / 2, "fp16": 1 / 2, "int8": 1 / 4, "int4": 1 / 8}.items():
        sent = sum(rank[wire_dtype][0] for rank in ranks)
        scales = 1 / 256 if wire_dtype in LEVELS else 0.0
        assert ratio * fp32 <= sent <= (ratio + scales) * fp32 + short + padding
    for rank in ranks:
        for wire_dtype, (counted, given, collectives) in rank.items():
            assert counted == given
            assert collectives == (2 if wire_dtype == "fp32" else 4)


def _overlap(wire_dtype: str) -> tuple[Tensors, Tensors]:
    """Rank 1 starts only when rank 0 says that it has: were `start` to wait, nobody would end."""
    rank, word = dist.get_rank(), torch.zeros(1)
    expected, other = _draw(rank, DTYPES), _draw(rank, DTYPES, seed=1)
    plain = _reducer(wire_dtype)
    plain.mean_(expected)
    plain.mean_(other)
    reducer = _reducer(wire_dtype)
    first, second = _draw(rank, DTYPES), _draw(rank, DTYPES, seed=1)
    talk = dist.new_group(backend="gloo")
    if rank == 1:
        dist.recv(word, src=0, group=talk)
    one = reducer.start(first)
    two = reducer.start(second)
    if rank == 0:
        dist.send(word, dst=1, group=talk)
    # What a step does meanwhile; the means are of what was there at the start.
    for tensor in (*first.values(), *second.values()):
        tensor.fill_(7.0)
    dist.all_reduce(word)
    if reducer.feeds_back:
        with pytest.raises(RuntimeError, match="under way"):
            reducer.state_dict()
    one.wait()
    two.wait()
    one.wait()
    reducer.state_dict()
    assert _equal(first, expected)
    # With error feedback the second start knew less of the first's errors than a later one would.
    return (second, other) if not reducer.feeds_back else (second, second)


@pytest.mark.parametrize("wire_dtype", WIRES)
def test_start_and_wait_are_mean_bitwise(
    wire_dtype: str, rank_pool: Callable[[int], RankPool]
) -> None:
    found = rank_pool(2).run(_overlap, wire_dtype)
    for second, other in found:
        assert _equal(second, other)
    assert _equal(found[0][0], found[1][0])


def _poisoned(wire_dtype: str, bad: float) -> tuple[Tensors, Tensors, Tensors]:
    rank = dist.get_rank()
    reducer = _reducer(wire_dtype)
    tensors = {"a": torch.ones(40), "b": torch.ones(40)}
    if rank == 0:
        tensors["a"][17] = bad
    reducer.mean_(tensors)
    after = {"a": torch.full((40,), 3.0), "b": torch.full((40,), 3.0)}
    reducer.mean_(after)
    return tensors, after, reducer.state_dict()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("wire_dtype", WIRES)
def test_what_is_not_finite_is_seen_by_all_and_does_not_stay(
    wire_dtype: str, bad: float, rank_pool: Callable[[int], RankPool]
) -> None:
    for tensors, after, residuals in rank_pool(2).run(_poisoned, wire_dtype, bad):
        assert not tensors["a"][17].isfinite()
        assert tensors["a"][:BLOCK].isfinite().all()
        assert tensors["b"].isfinite().all()
        assert all(torch.allclose(t, torch.tensor(3.0)) for t in after.values())
        assert all(t.isfinite().all() for t in residuals.values())


def _sharded(wire_dtype: str) -> tuple[int, torch.Tensor, torch.Tensor, torch.Size]:
    """Shards of a (5, 3) tensor over two ranks, averaged over two replicas of them."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp_replicate", "dp_shard"))
    replica = mesh.get_local_rank("dp_replicate")
    whole = torch.arange(15.0).view(5, 3) + 100 * replica
    sharded = distribute_tensor(whole, mesh["dp_shard"], [Shard(0)])
    replicas = mesh.get_group("dp_replicate")
    reducer = Reducer(replicas, wire_dtype=wire_dtype)
    reducer.mean_({"weight": sharded})
    local = sharded.to_local()
    residual = reducer.state_dict().get("weight", local)
    return replica, local.clone(), sharded.full_tensor(), residual.shape


@pytest.mark.parametrize("wire_dtype", ["fp32", "bf16", "int8"])
def test_shards_are_averaged_between_replicas(
    wire_dtype: str, rank_pool: Callable[[int], RankPool]
) -> None:
    expected = torch.arange(15.0).view(5, 3) + 50
    for _, local, whole, residual in rank_pool(4).run(_sharded, wire_dtype):
        # 114 is the largest number sent; int8 rounds it and the mean to a step of 114/127.
        rtol, atol = {"fp32": (0.0, 0.0), "bf16": (2**-7, 0.0), "int8": (0.0, 1.0)}[wire_dtype]
        assert torch.allclose(whole, expected, rtol, atol)
        assert residual == local.shape


def _alone() -> list[bool]:
    groups = [dist.new_group([rank]) for rank in range(dist.get_world_size())]
    own = groups[dist.get_rank()]
    same = []
    for wire_dtype in WIRES:
        reducer = Reducer(own, wire_dtype=wire_dtype)
        tensors, expected = _draw(0, DTYPES), _draw(0, DTYPES)
        reducer.mean_(tensors)
        same.append(_equal(tensors, expected))
        same.append((reducer.sent_bytes, reducer.collectives, reducer.state_dict()) == (0, 0, {}))
    return same


def test_one_rank_alone_keeps_its_numbers(rank_pool: Callable[[int], RankPool]) -> None:
    assert all(all(same) for same in rank_pool(2).run(_alone))


def _refusals() -> list[str]:
    reducer = _reducer("int8")
    with pytest.raises(TypeError) as integers:
        reducer.mean_({"ids": torch.ones(3, dtype=torch.int64)})
    reducer.load_state_dict({"a": torch.zeros(3)})
    with pytest.raises(ValueError) as other_shape:
        reducer.mean_({"a": torch.zeros(4)})
    return [str(integers.value), str(other_shape.value)]


def test_what_has_no_mean_is_refused(rank_pool: Callable[[int], RankPool]) -> None:
    for integers, other_shape in rank_pool(2).run(_refusals):
        assert "ids is torch.int64" in integers
        assert "residual of a has shape" in other_shape


def test_16_bits_keep_no_residuals() -> None:
    assert build_codec("bf16", BLOCK).bits > 8 >= build_codec("int8", BLOCK).bits
