"""A run that was cut short computes what an undisturbed one computes."""

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from llmtrain.checkpoint.manifest import step_folders, verify
from llmtrain.config import paths
from llmtrain.errors import CheckpointError
from tests.support.distributed import RankPool
from tests.support.runs import metric_lines, tiny_run, train_frozen

STEPS, CUT = 20, 10

RESUMED_RTOL = 1e-10
"""fp64 over another number of processes; on the same layout the bound is zero."""

OPTIMIZERS = ("sgd", "momentum", "adam", "adamw", "adafactor", "lion", "muon")

LONG = {"momentum", "adam", "lion"}
"""Their state is a part of others', so `make test` leaves them to `make test-chaos`."""


def _marks(optimizer: str) -> list[pytest.MarkDecorator]:
    return [pytest.mark.slow] if optimizer in LONG else []


DATA2 = ("strategy=data", "train.micro_batch_size=2")


def _lines(run_dir: Path) -> list[tuple[int, float, float, float, int]]:
    """Return what of metrics.jsonl is a result and not a measurement."""
    return [
        (line["step"], line["loss"], line["grad_norm"], line["lr"], line["tokens"])
        for line in metric_lines(run_dir)
    ]


def _evaluations(run_dir: Path) -> list[tuple[int, float]]:
    lines = map(json.loads, (run_dir / paths.METRICS).read_text().splitlines())
    return [(line["step"], line["val_loss"]) for line in lines if "val_loss" in line]


def _kept(run_dir: Path) -> dict[int, float | None]:
    """Return step -> validation loss of every checkpoint that is whole."""
    manifests = [verify(folder) for folder in step_folders(run_dir / paths.CHECKPOINTS)]
    return {manifest.step: manifest.val_loss for manifest in manifests}


def _best(run_dir: Path) -> tuple[float, int]:
    """Return the lowest validation loss that a checkpoint has, and its step."""
    return min((loss, step) for step, loss in _kept(run_dir).items() if loss is not None)


@pytest.mark.parametrize(
    ("optimizer", "precision"),
    [
        *(pytest.param(name, "fp32", marks=_marks(name)) for name in OPTIMIZERS),
        *itertools.product(("adamw", "muon"), ("bf16", "fp64")),
    ],
)
def test_stopped_and_resumed_is_bitwise_the_same(
    optimizer: str, precision: str, tmp_path: Path
) -> None:
    overrides = (
        f"train.steps={STEPS}", f"optimizer={optimizer}", f"train.precision={precision}",
        "model.dropout=0.1", "train.eval_every_steps=5",
    )  # fmt: skip
    straight = tiny_run(tmp_path / "straight", *overrides)
    expected = train_frozen(straight)
    cut = tiny_run(tmp_path / "cut", *overrides)
    train_frozen(cut, stop_after=CUT)
    assert _lines(cut)[-1][0] == CUT
    weights = train_frozen(cut, start=CUT)
    assert _lines(cut) == _lines(straight)
    assert _evaluations(cut) == _evaluations(straight)
    assert _best(cut) == _best(straight)
    for name, value in expected.items():
        assert torch.equal(weights[name], value), name


@pytest.mark.multiprocess
@pytest.mark.parametrize(
    "zero", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow), 3]
)
def test_resume_on_two_processes_is_bitwise_the_same(
    zero: int, tmp_path: Path, rank_pool: Callable[[int], RankPool]
) -> None:
    overrides = (f"train.steps={STEPS}", *DATA2, f"strategy.zero={zero}", "train.precision=fp32")
    straight = tiny_run(tmp_path / "straight", *overrides, world_size=2)
    expected = rank_pool(2).run(train_frozen, straight)[0]
    cut = tiny_run(tmp_path / "cut", *overrides, world_size=2)
    rank_pool(2).run(train_frozen, cut, CUT)
    weights = rank_pool(2).run(train_frozen, cut, None, CUT)[1]
    assert _lines(cut) == _lines(straight)
    for name, value in expected.items():
        assert torch.equal(weights[name], value), name


@pytest.mark.multiprocess
@pytest.mark.parametrize(
    ("optimizer", "zeros"),
    [
        pytest.param(name, zeros, marks=[] if name in ("adamw", "muon") else [pytest.mark.slow])
        for name, zeros in zip(OPTIMIZERS, itertools.cycle([(0, 3), (3, 1), (2, 0)]), strict=False)
    ],
)
def test_from_two_processes_to_one_and_back(
    optimizer: str, zeros: tuple[int, int], tmp_path: Path, rank_pool: Callable[[int], RankPool]
) -> None:
    """Seven steps on two processes, seven on one, six on two under another kind of sharding."""
    common = (f"train.steps={STEPS}", "model.dropout=0.1", f"optimizer={optimizer}")
    straight = tiny_run(tmp_path / "straight", *common)
    expected = train_frozen(straight)
    moved = tmp_path / "moved"
    first, last = (f"strategy.zero={zero}" for zero in zeros)
    tiny_run(moved, *common, *DATA2, first, world_size=2)
    rank_pool(2).run(train_frozen, moved, 7)
    tiny_run(moved, *common)
    train_frozen(moved, stop_after=14, start=7)
    tiny_run(moved, *common, *DATA2, last, world_size=2)
    weights = rank_pool(2).run(train_frozen, moved, None, 14)[0]
    for ours, theirs in zip(_lines(moved), _lines(straight), strict=True):
        assert ours == pytest.approx(theirs, rel=RESUMED_RTOL)
    for name, value in expected.items():
        difference = (weights[name] - value).abs().max() / value.abs().max()
        assert difference < RESUMED_RTOL, name


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """A run with the checkpoints of steps 4 and 8."""
    run_dir = tiny_run(
        tmp_path / "run", "train.steps=8", "checkpoint.every_steps=4", "checkpoint.save_best=false"
    )
    train_frozen(run_dir)
    return run_dir


def _damage(folder: Path, how: str) -> None:
    shard = next(folder.glob("*.safetensors"))
    data = shard.read_bytes()
    if how == "truncated":
        shard.write_bytes(data[:-7])
    elif how == "flipped":
        middle = len(data) // 2
        shard.write_bytes(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])
    elif how == "deleted":
        shard.unlink()
    elif how == "empty":
        shard.write_bytes(b"")
    elif how == "no manifest":
        (folder / "manifest.json").unlink()
    elif how == "torn manifest":
        manifest = folder / "manifest.json"
        manifest.write_text(manifest.read_text()[:100])
    elif how == "stranger":
        (folder / "shard-00002-of-another.safetensors").write_bytes(b"x")


DAMAGES = ("truncated", "flipped", "deleted", "empty", "no manifest", "torn manifest", "stranger")


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_checkpoint_is_never_loaded(
    how: str, trained: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = _lines(trained)
    _damage(trained / "checkpoints/step_00000008", how)
    train_frozen(trained)
    assert "step_00000008" in caplog.text
    assert "falling back" in caplog.text
    assert _lines(trained) == expected
    assert set(_kept(trained)) == {4, 8}, "the damaged one is replaced by a whole one"


def test_when_no_checkpoint_is_whole_training_does_not_start_over(trained: Path) -> None:
    for folder in step_folders(trained / "checkpoints"):
        _damage(folder, "flipped")
    with pytest.raises(CheckpointError, match="none of the 2 checkpoints"):
        train_frozen(trained)


def test_a_save_that_was_cut_short_is_cleared_away(trained: Path) -> None:
    checkpoints = trained / "checkpoints"
    torn = checkpoints / "step_00000006.tmp"
    shutil.copytree(checkpoints / "step_00000004", torn)
    tiny_run(trained, "train.steps=10", "checkpoint.every_steps=4", "checkpoint.save_best=false")
    train_frozen(trained)
    left = sorted(p.name for p in checkpoints.iterdir())
    assert left == ["best", "latest", "step_00000008", "step_00000010"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "model.dim=64",
            "is of another model: it has model.dim=32, this run asks for model.dim=64",
        ),
        ("model.n_heads=2", "is of another model: it has model.n_heads=4"),
        ("tokenizer=char", "is of another model: it has model.vocab_size=257"),
        ("optimizer=lion", "optimizer=adamw, this run has optimizer=lion"),
        ("data.words_per_document=61", None),
    ],
)
def test_a_checkpoint_of_something_else_is_refused(
    override: str, message: str | None, trained: Path
) -> None:
    tiny_run(trained, "train.steps=10", override)
    if message is None:
        train_frozen(trained)
        assert _lines(trained)[-1][0] == 10
    else:
        with pytest.raises(CheckpointError, match=message):
            train_frozen(trained)


def test_the_best_survives_a_stop_at_its_evaluation(tmp_path: Path) -> None:
    """Stopped after the best step and before its evaluation."""
    overrides = (
        "train.steps=12", "train.eval_every_steps=2", "checkpoint.keep_last=1", "optimizer=sgd",
        "optimizer.lr=3.0", "train.max_grad_norm=0",
    )  # fmt: skip
    straight, cut = tiny_run(tmp_path / "a", *overrides), tiny_run(tmp_path / "b", *overrides)
    train_frozen(straight)
    _, best = _best(straight)
    assert best < 12, "the case is void where the last step is the best"
    train_frozen(cut, stop_after=best)
    assert best not in dict(_evaluations(cut))
    train_frozen(cut)
    assert _kept(cut) == _kept(straight)


def test_another_batch_size_goes_on_with_the_next_samples(tmp_path: Path) -> None:
    """No sample is repeated or skipped when the batch size changes at a checkpoint."""
    run_dir = tiny_run(tmp_path / "run", "train.steps=6")
    train_frozen(run_dir)
    tiny_run(run_dir, "train.steps=9", "train.global_batch_size=4")
    train_frozen(run_dir)
    manifest = verify(run_dir / "checkpoints" / "step_00000009")
    assert manifest.train_state["samples"] == 6 * 8 + 3 * 4


def test_a_strangers_file_beside_the_shards_does_no_harm(trained: Path) -> None:
    (trained / "checkpoints/step_00000008/.DS_Store").write_bytes(b"x")
    assert set(_kept(trained)) == {4, 8}


def test_the_best_and_the_newest_are_kept(tmp_path: Path) -> None:
    run_dir = tiny_run(
        tmp_path / "run", "train.steps=12", "checkpoint.every_steps=2", "checkpoint.keep_last=2",
        "train.eval_every_steps=2", "optimizer.lr=3.0", "optimizer=sgd", "train.max_grad_norm=0",
    )  # fmt: skip
    train_frozen(run_dir)
    losses = dict(_evaluations(run_dir))
    best = min(losses, key=lambda step: (losses[step], step))
    kept = {int(p.name.split("_")[1]) for p in step_folders(run_dir / "checkpoints")}
    assert kept == {best, 10, 12}


def test_starting_a_finished_run_again_forgets_nothing(tmp_path: Path) -> None:
    run_dir = tiny_run(tmp_path / "run", "train.steps=6", "train.eval_every_steps=3")
    train_frozen(run_dir)
    before = _kept(run_dir)
    assert before[6] is not None
    train_frozen(run_dir)
    assert _kept(run_dir) == before
