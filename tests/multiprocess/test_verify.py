"""`llmtrain verify` finds planted faults, each in the right place, and nothing where there is none.

Runs are recorded in the tests' pool of ranks, where a fault is a patch that is undone afterwards;
what compares them is what the command uses.
"""

import contextlib
import dataclasses
import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from llmtrain.commands.compose import composer
from llmtrain.commands.freeze import freeze
from llmtrain.commands.verify import plan_runs
from llmtrain.config.paths import make_run_dir
from llmtrain.config.verify import PRESETS
from llmtrain.tasks.verify import tolerance_of
from llmtrain.train.compare import (
    GRADIENT,
    LOSS,
    NORM,
    VALIDATION,
    WEIGHT,
    Comparison,
    Recording,
    compare,
)
from tests.support.distributed import RankPool
from tests.support.runs import train_frozen

SLOW = pytest.mark.slow

pytestmark = pytest.mark.multiprocess

STEPS = 3


def local_loss_normalisation() -> Iterator[None]:
    """Each rank divides by the tokens of its own batch instead of the global one's."""
    from llmtrain.train import step

    def agree(batches: Any, mesh: Any, team: Any, *, stop: bool) -> step.Counts:
        return step.Counts(sum(b.counted_tokens for b in batches) * mesh.dp_size, stop)

    yield from _patched(step, "agree", agree)


def one_gradient_not_reduced() -> Iterator[None]:
    """DDP leaves out one matrix."""
    from torch.nn.parallel import DistributedDataParallel

    from llmtrain.parallel import apply

    right = apply.apply_ddp

    def apply_ddp(model: Any, group: Any) -> Any:
        leave_out = DistributedDataParallel._set_params_and_buffers_to_ignore_for_model
        leave_out(model, [LEFT_OUT])
        return right(model, group)

    yield from _patched(apply, "apply_ddp", apply_ddp)


LEFT_OUT = "blocks.2.ffn.w1.weight"


def norm_of_the_local_shard() -> Iterator[None]:
    """The squares of the local shards are not summed over the ranks that hold the rest."""
    from llmtrain.optim import clip

    yield from _patched(clip, "sum_over_axes", lambda squares, axes: squares)


def tied_copies_not_exchanged() -> Iterator[None]:
    """First and last stage each keep their own part of the tied embedding's gradient."""
    from llmtrain.parallel import apply

    yield from _patched(apply, "exchange_tied_gradient", lambda *args, **keywords: None)


def last_layer_dropped() -> Iterator[None]:
    """The last stage lacks its last block."""
    from llmtrain.parallel import apply

    right = apply.cut_stages

    def cut(*args: Any) -> Any:
        places = right(*args)
        last = places[-1]
        short = range(last.blocks.start, last.blocks.stop - 1)
        return [*places[:-1], dataclasses.replace(last, blocks=short)]

    yield from _patched(apply, "cut_stages", cut)


def last_layer_skipped() -> Iterator[None]:
    """The last block's weights are there, and its output is not used."""
    from llmtrain.models import transformer
    from llmtrain.parallel import apply

    forward_right, seed_right = transformer.Block.forward, apply.seed_dropout

    def forward(self: Any, x_BTD: torch.Tensor, *args: Any, **keywords: Any) -> torch.Tensor:
        y_BTD = forward_right(self, x_BTD, *args, **keywords)
        return x_BTD + 0.0 * y_BTD if getattr(self, "skipped", False) else y_BTD

    def seed_dropout(model: Any, seed: int) -> None:
        list(model.blocks.values())[-1].skipped = True
        seed_right(model, seed)

    with _planted(apply, "seed_dropout", seed_dropout):
        yield from _patched(transformer.Block, "forward", forward)


def evaluation_of_the_own_part() -> Iterator[None]:
    """The validation loss is that of this rank's part of the split."""
    import llmtrain.train.evaluate as module

    yield from _patched(module, "all_sum", lambda totals, group: totals)


def positions_without_offset() -> Iterator[None]:
    """Every rank of cp believes to have the first part of the sequence."""
    from llmtrain.models.transformer import SequencePart

    def positions(self: Any, start: int, length: int, device: torch.device) -> torch.Tensor:
        return torch.arange(start, start + length, device=device)

    yield from _patched(SequencePart, "positions", positions)


def dropout_by_rank() -> Iterator[None]:
    """Dropout masks are drawn from a seed of the rank."""
    from llmtrain.parallel import apply

    right = apply.seed_dropout

    yield from _patched(apply, "seed_dropout", lambda m, seed: right(m, seed + dist.get_rank()))


def micro_batch_repeated() -> Iterator[None]:
    """The pipeline is fed its first micro-batch in place of the second."""
    from llmtrain.parallel.pipeline import Pipeline

    right = Pipeline.train

    def train(self: Any, ids: Any, labels: Any, to_all: Any, **keywords: Any) -> Any:
        rows = self._shape[0]

        def repeated(t: torch.Tensor) -> torch.Tensor:
            return torch.cat([t[:rows], t[:rows], t[2 * rows :]])

        others = {name: repeated(tensor) for name, tensor in to_all.items()}
        return right(self, repeated(ids), repeated(labels), others, **keywords)

    yield from _patched(Pipeline, "train", train)


def replicas_drift() -> Iterator[None]:
    """After the optimizer one parameter of rank 1 is a millionth off: rank 0 is right."""
    from llmtrain.sync.allreduce import AllReduce

    built, right = AllReduce.__init__, AllReduce.after_step

    def init(self: Any, config: Any, setting: Any) -> None:
        built(self, config, setting)
        self.drifting = setting.module.norm.weight

    def after_step(self: Any, step: int) -> Any:
        if dist.get_rank() == 1:
            self.drifting.data.mul_(1.0 + 1e-6)
        return right(self, step)

    with _planted(AllReduce, "__init__", init):
        yield from _patched(AllReduce, "after_step", after_step)


def another_seed() -> Iterator[None]:
    """The strategy draws other initial weights."""
    from llmtrain.parallel import apply

    right = apply.init_weights

    def init(module: Any, config: Any, *, prefix: str, residual: Any, seed: int) -> None:
        right(module, config, prefix=prefix, residual=residual, seed=seed + 1)

    yield from _patched(apply, "init_weights", init)


def exploding_gradient() -> Iterator[None]:
    """A gradient is infinite."""
    from llmtrain.parallel import apply

    right = apply.settle_grads

    def settle(parameters: Any) -> None:
        parameters = list(parameters)
        right(parameters)
        parameters[-1].grad.fill_(torch.inf)

    yield from _patched(apply, "settle_grads", settle)


def _patched(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


_planted = contextlib.contextmanager(_patched)


def train_with(fault: str | None, run_dir: Path) -> str | None:
    """Train a frozen run with a fault in it; return what ended it, if anything."""
    planted = contextlib.nullcontext()
    if fault is not None:
        module = importlib.import_module(__name__)
        planted = contextlib.contextmanager(getattr(module, fault))()  # type: ignore[assignment]
    with planted:
        try:
            train_frozen(run_dir)
        except FloatingPointError as error:
            return str(error)
    return None


@pytest.fixture(scope="module")
def freeze_case(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[Path]]:
    """Return a function that freezes the reference and a strategy as `llmtrain verify` does."""

    def frozen(preset: str, *overrides: str) -> list[Path]:
        folder = tmp_path_factory.mktemp("verify")
        words = [*overrides, f"verify.steps={STEPS}", f"verify.strategies=[{preset}]"]
        with composer("verify") as hydra:
            planned = plan_runs(hydra, words, hydra.compose(words).config)
        for one in planned:
            freeze(one.run, one.plan, one.overrides, make_run_dir(folder / one.name))
        return [folder / one.name for one in planned]

    return frozen


@pytest.fixture(scope="module")
def verified(
    freeze_case: Callable[..., list[Path]], rank_pool: Callable[[int], RankPool]
) -> Callable[..., Comparison]:
    """Return a function that trains a preset with a fault in it and compares it."""
    references: dict[tuple[str, ...], Path] = {}

    def verify(preset: str, fault: str | None, *overrides: str) -> Comparison:
        one, many = freeze_case(preset, *overrides)
        if overrides not in references:
            train_frozen(one)
            references[overrides] = one
        pool = rank_pool(PRESETS[preset].processes)
        pool.run(train_with, fault, many)
        reference = references[overrides]
        return compare(Recording(reference), Recording(many), tolerance_of(reference))

    return verify


@pytest.mark.parametrize(
    ("fault", "preset", "step", "quantity", "parameter"),
    [
        ("local_loss_normalisation", "dp2", 1, LOSS, None),
        ("one_gradient_not_reduced", "dp2", 1, GRADIENT, LEFT_OUT),
        ("norm_of_the_local_shard", "zero3", 1, NORM, None),
        ("tied_copies_not_exchanged", "pp2_1f1b", 1, GRADIENT, "embed.weight"),
        ("last_layer_dropped", "pp2_1f1b", 0, WEIGHT, "blocks.4."),
        pytest.param("last_layer_skipped", "pp2_1f1b", 1, LOSS, None, marks=SLOW),
        ("positions_without_offset", "cp2", 1, LOSS, None),
        pytest.param("dropout_by_rank", "dp2", 1, LOSS, None, marks=SLOW),
        pytest.param("micro_batch_repeated", "pp2_1f1b", 1, LOSS, None, marks=SLOW),
        ("replicas_drift", "dp2", 1, WEIGHT, "norm.weight"),
        pytest.param("another_seed", "tp2", 0, WEIGHT, None, marks=SLOW),
        ("exploding_gradient", "tp2", 1, GRADIENT, None),
        ("evaluation_of_the_own_part", "dp2", STEPS, VALIDATION, None),
    ],
)
def test_a_planted_fault_is_found_where_it_is(
    fault: str,
    preset: str,
    step: int,
    quantity: str,
    parameter: str | None,
    verified: Callable[..., Comparison],
) -> None:
    found = verified(preset, fault).divergence
    assert found is not None
    assert (found.step, found.quantity) == (step, quantity), found.text
    if parameter is not None:
        assert all(name.startswith(parameter) for name in found.parameters), found.parameters
        assert found.parameters and parameter in found.text


@pytest.mark.parametrize(
    "preset",
    ["dp2", *(pytest.param(name, marks=SLOW) for name in ("zero3", "tp2", "cp2")), "pp2_1f1b"],
)
def test_nothing_is_found_where_there_is_nothing(
    preset: str, verified: Callable[..., Comparison]
) -> None:
    comparison = verified(preset, None)
    assert comparison.passed
    for worst in comparison.worst.values():
        assert worst.error < 1e-12 and worst.share < 0.5


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_passes(preset: str, verified: Callable[..., Comparison]) -> None:
    assert verified(preset, None).passed


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["sgd", "lion", "muon", "adafactor"])
@pytest.mark.parametrize("precision", ["fp64", "fp32"])
def test_rounding_alone_passes_under_other_optimizers(
    optimizer: str, precision: str, verified: Callable[..., Comparison]
) -> None:
    words = (f"optimizer={optimizer}", f"train.precision={precision}")
    for preset in ("dp2", "tp2", "pp2_1f1b"):
        comparison = verified(preset, None, *words)
        assert comparison.passed, comparison.divergence


def test_a_run_that_ends_early_is_no_pass(
    freeze_case: Callable[..., list[Path]], tmp_path: Path
) -> None:
    one, _ = freeze_case("dp2")
    train_frozen(one)
    short, _ = freeze_case("dp2")
    train_frozen(short, stop_after=2)
    found = compare(Recording(one), Recording(short), tolerance_of(one)).divergence
    assert found is not None and found.step == 3
    assert "its last record is of step 2" in found.text
    nothing = compare(Recording(one), Recording(tmp_path), tolerance_of(one)).divergence
    assert nothing is not None and "it recorded nothing" in nothing.text
