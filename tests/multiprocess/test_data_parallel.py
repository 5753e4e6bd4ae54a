"""Data parallelism computes what one process computes."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.distributed import RankPool
from tests.support.runs import metric_lines, tiny_run, train_frozen, write_documents

SLOW = pytest.mark.slow

FP64_RTOL = 1e-10
"""Twenty steps of fp64 sums in another order; measured 2e-15, and 1e-10 is what we promise."""

STEPS = 20

CASES = {
    "plain": (),
    "accumulation": ("train.micro_batch_size=1",),
    "dropout": ("model.dropout=0.1", "train.micro_batch_size=2"),
    "untied": ("model.tie_embeddings=false",),
    "llama": ("model=llama_tiny", "model.n_layers=3", "model.dim=32", "model.seq_len=16"),
    "llama tied": ("model=llama_tiny", "model.dim=32", "model.seq_len=16",
                   "model.tie_embeddings=true"),
    "label smoothing": ("train.label_smoothing=0.1",),
    "no clipping": ("train.max_grad_norm=0", "optimizer=momentum"),
}  # fmt: skip


Reference = tuple[Path, dict[str, torch.Tensor]]
"""A run directory of one process, and its weights after training."""


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Reference]:
    """Return a function that trains overrides in one process, once for the whole module."""
    done: dict[tuple[str, ...], Reference] = {}

    def train(*overrides: str) -> Reference:
        if overrides not in done:
            run_dir = tiny_run(tmp_path_factory.mktemp("one") / "run", *overrides)
            done[overrides] = (run_dir, train_frozen(run_dir))
        return done[overrides]

    return train


def _losses(run_dir: Path) -> list[tuple[float, float]]:
    lines = metric_lines(run_dir)
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    return [(line["loss"], line["grad_norm"]) for line in lines]


def _assert_equal_runs(
    one: Path, many: Path, weights: dict[str, torch.Tensor], others: list[dict[str, torch.Tensor]]
) -> None:
    for step, (a, b) in enumerate(zip(_losses(one), _losses(many), strict=True), start=1):
        assert b == pytest.approx(a, rel=FP64_RTOL), f"loss or gradient norm of step {step}"
    for name, expected in weights.items():
        for rank, other in enumerate(others):
            difference = (other[name] - expected).abs().max() / expected.abs().max()
            assert difference < FP64_RTOL, f"{name} on rank {rank}"


QUICK = {"accumulation": 2, "untied": 3, "llama": 0, "dropout": 3, "label smoothing": 0}
"""What alone is left to `make test` of some cases; of the others all is."""


@pytest.mark.multiprocess
@pytest.mark.parametrize(
    ("case", "zero"),
    [
        pytest.param(case, zero, marks=[] if QUICK.get(case, zero) == zero else [pytest.mark.slow])
        for case, zero in (
            *itertools.product(("plain", "accumulation", "untied", "llama tied"), (0, 1, 2, 3)),
            *itertools.product(("dropout", "llama", "label smoothing", "no clipping"), (0, 3)),
        )
    ],
)
def test_two_processes_equal_one(
    case: str,
    zero: int,
    tmp_path: Path,
    rank_pool: Callable[[int], RankPool],
    reference: Callable[..., Reference],
) -> None:
    overrides = (f"train.steps={STEPS}", *CASES[case])
    one, weights = reference(*overrides, "train.micro_batch_size=8")
    many = tiny_run(
        tmp_path / "many", *overrides, "strategy=data", f"strategy.zero={zero}", world_size=2
    )
    _assert_equal_runs(one, many, weights, rank_pool(2).run(train_frozen, many))


@pytest.mark.multiprocess
@pytest.mark.parametrize(
    "layout",
    [
        ("strategy.zero=0",),
        ("strategy.zero=1", "train.micro_batch_size=1"),
        ("strategy.zero=2", "train.micro_batch_size=1"),
        ("strategy.zero=3",),
        ("strategy.zero=3", "strategy.dp_replicate=2", "strategy.dp_shard=2"),
        ("strategy.zero=2", "strategy.dp_replicate=2", "strategy.dp_shard=2",
         "train.micro_batch_size=1"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_four_processes_equal_one(
    layout: tuple[str, ...],
    tmp_path: Path,
    rank_pool: Callable[[int], RankPool],
    reference: Callable[..., Reference],
) -> None:
    overrides = (f"train.steps={STEPS}", "model.dropout=0.1")
    one, weights = reference(*overrides)
    many = tiny_run(tmp_path / "many", *overrides, "strategy=data", *layout, world_size=4)
    _assert_equal_runs(one, many, weights, rank_pool(4).run(train_frozen, many))


@pytest.mark.multiprocess
@pytest.mark.parametrize("zero", [0, pytest.param(1, marks=SLOW), pytest.param(2, marks=SLOW), 3])
def test_padding_may_fall_unevenly_on_ranks(
    zero: int, tmp_path: Path, rank_pool: Callable[[int], RankPool]
) -> None:
    """One rank's documents may be all short: the loss is one mean over counted tokens."""
    corpus = write_documents(tmp_path / "documents.jsonl", [1, 2, 40, 3, 1, 30, 2, 7, 1, 1, 25] * 6)
    overrides = (
        f"train.steps={STEPS}", "data=jsonl", f"data.path={corpus}", "data.samples=documents",
        "train.micro_batch_size=2",
    )  # fmt: skip
    one = tiny_run(tmp_path / "one", *overrides)
    weights = train_frozen(one)
    many = tiny_run(
        tmp_path / "many", *overrides, "strategy=data", f"strategy.zero={zero}", world_size=2
    )
    _assert_equal_runs(one, many, weights, rank_pool(2).run(train_frozen, many))


BF16_RTOL = 2**-8
"""Loss and gradient norm over 20 bf16 steps: one rounding to 8 bits. The sums of gradients differ
in order in fp32, and now and then that turns a rounding to bf16 the other way."""


@pytest.mark.multiprocess
@pytest.mark.parametrize("zero", [0, 3])
def test_bf16_computes_the_same_sharded_or_not(
    zero: int, tmp_path: Path, rank_pool: Callable[[int], RankPool]
) -> None:
    overrides = (
        f"train.steps={STEPS}", "train.precision=bf16", "model=llama_tiny", "model.n_layers=4",
        "model.dim=32", "model.seq_len=16",
    )  # fmt: skip
    one = tiny_run(tmp_path / "one", *overrides)
    train_frozen(one)
    many = tiny_run(
        tmp_path / "many", *overrides, "strategy=data", f"strategy.zero={zero}", world_size=2
    )
    rank_pool(2).run(train_frozen, many)
    # The first forward has equal weights, and of sums over ranks the loss's own alone.
    assert _losses(many)[0][0] == pytest.approx(_losses(one)[0][0], rel=1e-6)
    for a, b in zip(_losses(one), _losses(many), strict=True):
        assert b == pytest.approx(a, rel=BF16_RTOL)


@pytest.mark.multiprocess
@pytest.mark.parametrize(
    ("zero", "factor"),
    [
        # N bytes of weights on W = 2 ranks: (W-1)/W = 1/2; four micro-batches.
        (0, 2 * 1 / 2),
        (1, 1 / 2 + 1 / 2),
        (2, 1 / 2 + 4 * 1 / 2),
        (3, 2 * 4 * 1 / 2 + 4 * 1 / 2),
    ],
)
def test_comm_bytes_are_the_ring_formulas(
    zero: int, factor: float, tmp_path: Path, rank_pool: Callable[[int], RankPool]
) -> None:
    run_dir = tiny_run(
        tmp_path / "run", "train.steps=1", "train.micro_batch_size=1", "strategy=data",
        f"strategy.zero={zero}", "scheduler.warmup_steps=0", world_size=2,
    )  # fmt: skip
    weights = rank_pool(2).run(train_frozen, run_dir)[0]
    total = sum(w.numel() * 8 for w in weights.values())
    assert metric_lines(run_dir)[0]["comm_bytes"] == pytest.approx(factor * total)


def _bytes_of_fsdp(run_dir: Path) -> list[int]:
    """Train; return what FSDP was given to gather and to scatter: a rank sends half of it."""
    from torch.distributed.fsdp._fully_shard import _fsdp_param_group as fsdp

    given: list[int] = []
    gather, scatter = fsdp.foreach_all_gather, fsdp.foreach_reduce

    def counted_gather(params: Any, *args: Any, **kwargs: Any) -> Any:
        given.append(sum(p._orig_size.numel() * 8 for p in params))
        return gather(params, *args, **kwargs)

    def counted_scatter(params: Any, grads: Any, *args: Any, **kwargs: Any) -> Any:
        given.append(sum(grad.numel() * 8 for grad in grads))
        return scatter(params, grads, *args, **kwargs)

    fsdp.foreach_all_gather, fsdp.foreach_reduce = counted_gather, counted_scatter
    try:
        train_frozen(run_dir)
    finally:
        fsdp.foreach_all_gather, fsdp.foreach_reduce = gather, scatter
    return given


@pytest.mark.multiprocess
@pytest.mark.parametrize(
    ("zero", "pp"),
    [(3, 1), (2, 2), *(pytest.param(*each, marks=pytest.mark.slow)
                       for each in ((1, 1), (2, 1), (1, 2), (3, 2)))],
)  # fmt: skip
def test_comm_bytes_are_what_fsdp_sends(
    zero: int, pp: int, tmp_path: Path, rank_pool: Callable[[int], RankPool]
) -> None:
    """Two runs of other lengths: what the evaluation at the end gathers drops out."""
    given = []
    for steps in (2, 4):
        run_dir = tiny_run(
            tmp_path / str(steps), f"train.steps={steps}", "train.micro_batch_size=1",
            "strategy=hybrid", "strategy.tp=1", f"strategy.pp={pp}", "strategy.dp_shard=2",
            f"strategy.zero={zero}", "scheduler.warmup_steps=0", world_size=2 * pp,
        )  # fmt: skip
        given.append(sum(rank_pool(2 * pp).run(_bytes_of_fsdp, run_dir)[0]))
    sent = (given[1] - given[0]) / 2 / 2
    assert metric_lines(run_dir)[-1]["comm_bytes"] == pytest.approx(sent)
