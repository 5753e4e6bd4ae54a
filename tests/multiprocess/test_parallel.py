"""Every strategy computes what one process computes: losses, norms, every gradient and weight."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from tests.support.distributed import RankPool
from tests.support.runs import (
    metric_lines,
    tiny_run,
    train_frozen,
    train_recorded,
    validation_losses,
)

RTOL = 1e-9
"""What we promise in fp64. Sums in another order: 3e-16 measured on losses, 6e-14 on weights."""

STEPS = 5

COMMON = (
    f"train.steps={STEPS}", "model.dropout=0.1", "train.max_grad_norm=0.5", "model.n_layers=5",
    "train.eval_tokens=300", "train.eval_every_steps=3", "data=synthetic_uneven",
)  # fmt: skip
"""Five layers no power of two divides; the byte vocabulary has 257 rows, which tp does not; short
documents are padded, so that every rank and micro-batch counts other tokens. Evaluations between
steps leave no trace."""

LLAMA = ("model=llama_tiny", "model.dim=32", "model.n_heads=4", "model.seq_len=16")

PACKED = ("data.samples=packed", "model.seq_len=40")
"""Rows of two to four whole documents; 9 % of their positions are padding."""

MODELS = {
    "gpt": ("model.bias=true", "model.tie_embeddings=true"),
    "gpt untied": ("model.tie_embeddings=false", "train.label_smoothing=0.1"),
    "llama": (*LLAMA, "model.n_kv_heads=2"),
    "llama tied": (*LLAMA, "model.n_kv_heads=2", "model.tie_embeddings=true"),
    "gpt packed": ("model.bias=true", "model.tie_embeddings=true", *PACKED),
    "llama packed": (*LLAMA, "model.n_kv_heads=2", *PACKED),
    "gpt masked": ("model.tie_embeddings=true", *PACKED, "data.samples=masked_windows"),
}


@dataclass(frozen=True)
class Trained:
    """What a run computed."""

    run_dir: Path
    weights: dict[str, torch.Tensor]
    gradients: list[dict[str, torch.Tensor]]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Trained]:
    """Return a function that trains a model in one process, once for the whole module."""
    done: dict[str, Trained] = {}

    def train(model: str) -> Trained:
        if model not in done:
            run_dir = tiny_run(tmp_path_factory.mktemp("one") / "run", *COMMON, *MODELS[model])
            done[model] = Trained(run_dir, *train_recorded(run_dir))
        return done[model]

    return train


def _assert_equal(
    what: str, ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]
) -> None:
    """Compare tensors by name, relative to the larger of a tensor's own largest and the RMS of all.

    The gradient of a key's bias is 0 but for rounding: it has no relative error of its own.
    """
    everything = torch.cat([value.flatten() for value in theirs.values()])
    rms = float(everything.square().mean().sqrt())
    for name, value in ours.items():
        scale = max(float(theirs[name].abs().max()), rms)
        assert float((value - theirs[name]).abs().max()) <= RTOL * scale, f"{what} {name}"


def _check(
    model: str,
    layout: str,
    world_size: int,
    folder: Path,
    reference: Callable[[str], Trained],
    pool: RankPool,
) -> None:
    one = reference(model)
    words = (*COMMON, *MODELS[model], *layout.split())
    many = tiny_run(folder / "many", *words, world_size=world_size)
    ranks = pool.run(train_recorded, many)
    for name in ("loss", "grad_norm"):
        for a, b in zip(metric_lines(one.run_dir), metric_lines(many), strict=True):
            assert b[name] == pytest.approx(a[name], rel=RTOL), f"{name} of step {a['step']}"
    for a, b in zip(validation_losses(one.run_dir), validation_losses(many), strict=True):
        assert b == (a[0], pytest.approx(a[1], rel=RTOL), a[2])
    for weights, gradients in ranks:
        _assert_equal("weight", weights, one.weights)
        for step, (ours, theirs) in enumerate(zip(gradients, one.gradients, strict=True), 1):
            _assert_equal(f"gradient of step {step}", ours, theirs)
    assert {name for weights, _ in ranks for name in weights} == set(one.weights)


HYBRID = "strategy=hybrid strategy.tp="
M1, M2 = " train.micro_batch_size=1", " train.micro_batch_size=2"

TWO = [
    "strategy=model",
    HYBRID + "1 strategy.cp=2" + M2,
    "strategy=pipeline strategy.schedule=GPipe strategy.cut=uniform" + M2,
    "strategy=pipeline strategy.schedule=1F1B" + M2,
    "strategy=pipeline strategy.schedule=Interleaved1F1B" + M2,
    "strategy=pipeline strategy.schedule=InterleavedZeroBubble" + M2,
    "strategy=pipeline strategy.schedule=ZBVZeroBubble" + M2,
    "strategy=pipeline strategy.schedule=DualPipeV" + M1,
]

GRAPH = "strategy=pipeline strategy.cut=graph strategy.schedule="

TRACED = [
    GRAPH + "1F1B" + M2,
    GRAPH + "GPipe" + M2,
    GRAPH + "Interleaved1F1B" + M2,
    GRAPH + "InterleavedZeroBubble" + M2,
    GRAPH + "ZBVZeroBubble" + M2,
    GRAPH + "DualPipeV" + M1,
]

TRACED_FOUR = [
    HYBRID + "1 strategy.dp_replicate=2 strategy.pp=2 strategy.cut=graph" + M1,
    GRAPH + "1F1B" + M2,
    GRAPH + "GPipe" + M2,
]

TWO_LONG = [
    "strategy=data" + M2,
    "strategy=data strategy.zero=2" + M2,
    "strategy=data strategy.zero=3" + M2,
    "strategy=model strategy.sequence_parallel=false" + M2,
]
"""What `test_data_parallel.py` and other cells show in `make test`."""

FOUR = [
    HYBRID + "2 strategy.pp=2" + M2,
    HYBRID + "1 strategy.dp_replicate=2 strategy.pp=2" + M1,
    HYBRID + "2 strategy.zero=3 strategy.dp_shard=2" + M2,
]

FOUR_LONG = [
    HYBRID + "2 strategy.dp_replicate=2" + M2,
    "strategy=data strategy.zero=3 strategy.dp_replicate=2 strategy.dp_shard=2" + M1,
    "strategy=model",
    HYBRID + "1 strategy.zero=3 strategy.dp_shard=2 strategy.pp=2" + M1,
    HYBRID + "1 strategy.zero=2 strategy.dp_shard=2 strategy.cp=2" + M1,
    HYBRID + "2 strategy.cp=2",
    "strategy=pipeline strategy.schedule=1F1B" + M2,
    "strategy=pipeline strategy.schedule=GPipe" + M2,
    HYBRID + "2 strategy.zero=1 strategy.dp_shard=2 strategy.sequence_parallel=false" + M2,
    HYBRID + "1 strategy.cp=2 strategy.pp=2 strategy.schedule=Interleaved1F1B" + M2,
    HYBRID + "1 strategy.zero=1 strategy.dp_shard=2 strategy.pp=2 strategy.cut=uniform" + M1,
]

SPLIT = [
    HYBRID + "2 strategy.pp=2 strategy.schedule=ZBVZeroBubble" + M2,
    HYBRID + "1 strategy.zero=2 strategy.dp_shard=2 strategy.pp=2"
    " strategy.schedule=InterleavedZeroBubble" + M1,
    HYBRID + "1 strategy.dp_replicate=2 strategy.pp=2 strategy.schedule=ZBVZeroBubble" + M1,
]

DEEP = [
    f"strategy=pipeline strategy.schedule={schedule} model.n_layers=9" + M1
    for schedule in ("Interleaved1F1B", "InterleavedZeroBubble", "ZBVZeroBubble", "DualPipeV")
] + [GRAPH + "Interleaved1F1B model.n_layers=9" + M1]

COMPILE = " train.compile=true"
SELECTIVE, FULL = (f" train.activation_checkpointing={kind}" for kind in ("selective", "full"))

RECOMPUTED = [
    "strategy=data" + M2 + COMPILE,
    "strategy=data strategy.zero=3" + M2 + COMPILE,
    "strategy=model" + COMPILE,
    HYBRID + "1 strategy.cp=2" + M2 + COMPILE,
    "strategy=pipeline" + M2 + COMPILE,
    "strategy=pipeline strategy.schedule=Interleaved1F1B" + M2 + COMPILE,
    "strategy=data strategy.zero=3" + M2 + FULL,
    "strategy=model strategy.sequence_parallel=false" + M2 + SELECTIVE,
    HYBRID + "1 strategy.zero=2 strategy.cp=2" + M2 + SELECTIVE,
    "strategy=pipeline" + M2 + SELECTIVE,
    "strategy=pipeline strategy.schedule=ZBVZeroBubble" + M2 + FULL,
]

EIGHT = [
    HYBRID + "2 strategy.dp_replicate=2 strategy.pp=2" + M1,
    HYBRID + "2 strategy.dp_replicate=2 strategy.cp=2" + M1,
]


PACKED_TWO = [
    "strategy=data" + M2,
    "strategy=model",
    HYBRID + "1 strategy.cp=2" + M2,
    "strategy=pipeline" + M2,
]

PACKED_LONG = [
    "strategy=data strategy.zero=3" + M2,
    GRAPH + "1F1B" + M2,
    "strategy=model strategy.sequence_parallel=false" + M2,
    "strategy=pipeline strategy.schedule=ZBVZeroBubble" + M2,
    "strategy=pipeline strategy.schedule=Interleaved1F1B" + M2 + COMPILE,
    "strategy=data strategy.zero=3" + M2 + FULL,
    "strategy=model" + COMPILE,
    HYBRID + "1 strategy.cp=2" + M2 + SELECTIVE,
]

PACKED_FOUR = [
    HYBRID + "2 strategy.cp=2",
    HYBRID + "1 strategy.cp=2 strategy.pp=2 strategy.schedule=Interleaved1F1B" + M2,
    HYBRID + "2 strategy.zero=3 strategy.dp_shard=2" + M2,
]


def _cells(world_size: int, layouts: list[str], *models: str, slow: bool = False) -> list[object]:
    """Each layout with its turn of `models`; with all the others it is slow."""
    cells = []
    for number, layout in enumerate(layouts):
        for place, model in enumerate(models):
            short = place == number % len(models) and not slow
            marks = [] if short else [pytest.mark.slow]
            name = f"{world_size} processes, {model}, {layout}"
            cells.append(pytest.param(model, layout, world_size, marks=marks, id=name))
    return cells


@pytest.mark.multiprocess
@pytest.mark.parametrize(
    ("model", "layout", "world_size"),
    [
        *_cells(2, TWO, "gpt", "llama"),
        *_cells(2, TWO, "gpt untied", slow=True),
        *_cells(2, TRACED[:1], "gpt"),
        *_cells(2, TRACED[:1], "llama", "gpt untied", "llama tied", slow=True),
        *_cells(2, TRACED[1:], "gpt", "llama", slow=True),
        *_cells(4, FOUR, "gpt", "llama"),
        *_cells(4, TRACED_FOUR, "gpt", "llama", slow=True),
        *_cells(4, FOUR_LONG, "gpt", "llama tied", slow=True),
        *_cells(2, TWO_LONG, "gpt", "llama", "gpt untied", slow=True),
        *_cells(4, SPLIT, "llama", "gpt untied", slow=True),
        *_cells(2, PACKED_TWO, "gpt packed", "llama packed"),
        *_cells(2, PACKED_LONG, "gpt packed", "llama packed", slow=True),
        *_cells(4, PACKED_FOUR, "gpt packed", "llama packed", slow=True),
        *_cells(2, TWO[:4], "gpt masked", slow=True),
        pytest.param(
            "llama tied", SPLIT[-1], 4, marks=pytest.mark.slow, id="4 processes, tied over a V"
        ),
        *_cells(2, RECOMPUTED, "gpt", "llama", slow=True),
        *_cells(8, EIGHT, "gpt", "llama", slow=True),
    ],
)
def test_many_processes_equal_one(
    model: str,
    layout: str,
    world_size: int,
    tmp_path: Path,
    reference: Callable[[str], Trained],
    rank_pool: Callable[[int], RankPool],
) -> None:
    _check(model, layout, world_size, tmp_path, reference, rank_pool(world_size))


BF16_RTOL = 2**-8
"""One rounding to 8 bits; measured 1.1e-5 on losses, 3.8e-4 on norms."""


@pytest.mark.slow
@pytest.mark.multiprocess
def test_bf16_is_cut_as_it_is_computed_whole(
    tmp_path: Path, rank_pool: Callable[[int], RankPool]
) -> None:
    words = (*COMMON, *MODELS["llama"], "train.precision=bf16")
    one = tiny_run(tmp_path / "one", *words)
    train_frozen(one)
    layout = HYBRID + "2 strategy.pp=2" + M2
    many = tiny_run(tmp_path / "many", *words, *layout.split(), world_size=4)
    rank_pool(4).run(train_frozen, many)
    for a, b in zip(metric_lines(one), metric_lines(many), strict=True):
        assert (b["loss"], b["grad_norm"]) == pytest.approx(
            (a["loss"], a["grad_norm"]), rel=BF16_RTOL
        )


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.parametrize("model", ["gpt untied", "llama"])
@pytest.mark.parametrize("layout", DEEP)
def test_four_ranks_of_several_stages(
    layout: str, model: str, tmp_path: Path, rank_pool: Callable[[int], RankPool]
) -> None:
    """Nine layers for eight stages; the reference is trained anew."""
    words = (*COMMON, *MODELS[model], *layout.split())
    one = tiny_run(tmp_path / "one", *COMMON, *MODELS[model], "model.n_layers=9")
    trained = Trained(one, *train_recorded(one))
    many = tiny_run(tmp_path / "many", *words, world_size=4)
    for weights, gradients in rank_pool(4).run(train_recorded, many):
        _assert_equal("weight", weights, trained.weights)
        for ours, theirs in zip(gradients, trained.gradients, strict=True):
            _assert_equal("gradient", ours, theirs)
    for a, b in zip(metric_lines(one), metric_lines(many), strict=True):
        assert (b["loss"], b["grad_norm"]) == pytest.approx((a["loss"], a["grad_norm"]), rel=RTOL)


@pytest.mark.multiprocess
def test_key_value_heads_may_be_fewer_than_ranks(
    tmp_path: Path, rank_pool: Callable[[int], RankPool]
) -> None:
    """One key/value head over tp=2, and over cp=2."""
    words = (*COMMON, *LLAMA, "model.n_kv_heads=1", "train.max_grad_norm=0")
    one = tiny_run(tmp_path / "one", *words)
    trained = Trained(one, *train_recorded(one))
    for number, layout in enumerate(("strategy=model", HYBRID + "1 strategy.cp=2")):
        many = tiny_run(tmp_path / str(number), *words, *layout.split(), world_size=2)
        for weights, gradients in rank_pool(2).run(train_recorded, many):
            _assert_equal("weight", weights, trained.weights)
            for ours, theirs in zip(gradients, trained.gradients, strict=True):
                _assert_equal("gradient", ours, theirs)


@pytest.mark.slow
@pytest.mark.multiprocess
def test_a_traced_graph_goes_on_from_whole_blocks_and_back(
    tmp_path: Path, rank_pool: Callable[[int], RankPool]
) -> None:
    """Checkpoints know no cut: two steps under one, two under the other, one under the first."""
    common = (*COMMON, *MODELS["gpt"], "scheduler=constant", "checkpoint.save_best=false")
    pool = rank_pool(2)

    def train(run_dir: Path, cut: str, stop: int | None) -> list[float]:
        layout = f"strategy=pipeline strategy.cut={cut}{M2}"
        tiny_run(run_dir, *common, *layout.split(), world_size=2)
        pool.run(train_frozen, run_dir, stop)
        return [line["loss"] for line in metric_lines(run_dir)]

    expected = train(tmp_path / "straight", "balanced", None)
    train(tmp_path / "mixed", "graph", 2)
    train(tmp_path / "mixed", "balanced", 4)
    assert train(tmp_path / "mixed", "graph", None) == pytest.approx(expected, rel=RTOL)


CROSS = {
    "single": (1, ""),
    "zero3": (2, "strategy=data strategy.zero=3"),
    "tp": (2, "strategy=model"),
    "pp": (2, "strategy=pipeline" + M2),
    "cp": (2, HYBRID + "1 strategy.cp=2"),
    "tp x pp": (4, HYBRID + "2 strategy.pp=2" + M2),
}


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.parametrize("saved", CROSS)
def test_every_strategy_loads_what_any_other_has_saved(
    saved: str, tmp_path: Path, rank_pool: Callable[[int], RankPool]
) -> None:
    """Three steps under one strategy, the checkpoint, two more under each of the six."""
    common = (*COMMON, "scheduler=constant", "checkpoint.save_best=false")

    def train(run_dir: Path, layout: str, start: int, stop: int | None) -> list[float]:
        world_size, words = CROSS[layout]
        tiny_run(run_dir, *common, *words.split(), world_size=world_size)
        if world_size == 1:
            train_frozen(run_dir, stop, start)
        else:
            rank_pool(world_size).run(train_frozen, run_dir, stop, start)
        return [line["loss"] for line in metric_lines(run_dir)]

    expected = train(tmp_path / "straight", "single", 0, None)
    for loaded in CROSS:
        run_dir = tmp_path / loaded
        train(run_dir, saved, 0, 3)
        losses = train(run_dir, loaded, 3, None)
        assert losses == pytest.approx(expected, rel=RTOL), loaded
