"""Replicas that train apart, cut short anywhere, go on to the last bit; and in another mode."""

import contextlib
import itertools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from llmtrain.checkpoint.manager import load_tensors
from llmtrain.checkpoint.manifest import step_folders
from llmtrain.config import paths
from tests.support.distributed import RankPool
from tests.support.runs import metric_lines, tiny_run, train_frozen, validation_losses

pytestmark = pytest.mark.multiprocess

Pools = Callable[[int], RankPool]
Weights = dict[str, torch.Tensor]

STEPS = 14

MODES = {
    "powersgd": "sync.compression=powersgd sync.powersgd_rank=2 sync.powersgd_start_step=3",
    "local_sgd": "sync=local_sgd sync.sync_every_steps=5 sync.warmup_sync_steps=2",
    "diloco": "sync=diloco sync.sync_every_steps=5 sync.warmup_sync_steps=2",
    "int8": "sync=diloco sync.sync_every_steps=5 sync.wire_dtype=int8",
    "streaming": "sync=diloco sync.sync_every_steps=6 sync.fragments=2 sync.overlap_steps=2 "
    "sync.mix_alpha=0.5",
    "gossip": "sync=gossip sync.sync_every_steps=3 sync.warmup_sync_steps=2",
    "random_peer": "sync=gossip sync.graph=random_peer train.global_batch_size=12",
}

RANKS = {"random_peer": 3}
"""Two replicas are each other's only peers: y would stay 1."""

CUTS = {
    "powersgd": {"before the first": 2, "after it": 8},
    "local_sgd": {"in the start": 1, "in a round": 9, "at an average": 7},
    "diloco": {"in the start": 1, "at its end": 2, "in a round": 9, "at an outer step": 7},
    "int8": {"in a round": 8},
    "streaming": {"in a round": 5, "a fragment under way": 7, "where one arrives": 8},
    "gossip": {"in the start": 1, "in a round": 7, "at a round's end": 8},
    "random_peer": {"at a round's end": 7},
}


def _start(folder: Path, words: str, *overrides: str, ranks: int = 2) -> Path:
    common = ("model.dropout=0.1", "train.precision=fp32", "strategy=data", f"train.steps={STEPS}")
    return tiny_run(folder, *common, *words.split(), *overrides, world_size=ranks)


def _lines(run_dir: Path) -> list[tuple[int, float, float, int]]:
    return [(x["step"], x["loss"], x["grad_norm"], x["tokens"]) for x in metric_lines(run_dir)]


class Runs:
    """Runs of every mode that go straight to their end, and such as were cut; each trained once."""

    def __init__(self, folder: Path, pools: Pools) -> None:
        self._folder, self._pools = folder, pools
        self._done: dict[tuple[str, int | None], tuple[Path, list[Weights]]] = {}

    def straight(self, mode: str) -> tuple[Path, list[Weights]]:
        """Return the folder of a run that nothing cut, and its weights by rank."""
        return self._run(mode, None)

    def cut(self, mode: str, cut: int, to: Path) -> Path:
        """Copy a run that was stopped at step `cut` to `to`."""
        stopped, _ = self._run(mode, cut)
        assert _lines(stopped)[-1][0] == cut
        return Path(shutil.copytree(stopped, to, symlinks=True))

    def _run(self, mode: str, cut: int | None) -> tuple[Path, list[Weights]]:
        if (mode, cut) not in self._done:
            pool = self._pools(RANKS.get(mode, 2))
            words = (MODES[mode], "train.eval_every_steps=4")
            run_dir = _start(self._folder / f"{mode}_{cut}", *words, ranks=pool.world_size)
            self._done[mode, cut] = run_dir, pool.run(train_frozen, run_dir, cut)
        return self._done[mode, cut]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, rank_pool: Pools) -> Runs:
    return Runs(tmp_path_factory.mktemp("runs"), rank_pool)


QUICK = {
    ("powersgd", 8),
    ("local_sgd", 9),
    ("diloco", 9),
    ("int8", 8),
    ("streaming", 7),
    ("gossip", 7),
}


@pytest.mark.parametrize(
    ("mode", "cut"),
    [
        pytest.param(mode, cut, marks=[] if (mode, cut) in QUICK else [pytest.mark.slow])
        for mode, cuts in CUTS.items()
        for cut in cuts.values()
    ],
)
def test_stopped_and_resumed_is_bitwise_the_same(
    mode: str, cut: int, tmp_path: Path, rank_pool: Pools, runs: Runs
) -> None:
    straight, expected = runs.straight(mode)
    resumed = runs.cut(mode, cut, tmp_path / "cut")
    weights = rank_pool(RANKS.get(mode, 2)).run(train_frozen, resumed, None, cut)
    assert _lines(resumed) == _lines(straight)
    assert validation_losses(resumed) == validation_losses(straight)
    for found, wanted in zip(weights, expected, strict=True):
        for name, value in wanted.items():
            assert torch.equal(found[name], value), name


@contextlib.contextmanager
def _forgetting(part: str) -> Iterator[None]:
    """Let what a checkpoint has of `part` be lost at the resume."""
    from llmtrain.sync.diloco import DiLoCo
    from llmtrain.sync.gossip import Gossip
    from llmtrain.train import resume

    blanks, load = {mode: mode.blank for mode in (DiLoCo, Gossip)}, resume.load_tensors

    def without(self: Any, saved: dict[str, Any]) -> Weights:
        state = blanks[type(self)](self, saved)
        return {key: value for key, value in state.items() if f"{part}." not in key}

    def load_but(folder: Path, tensors: Weights) -> None:
        load(folder, {key: v for key, v in tensors.items() if f"{part}." not in key})

    for mode in blanks:
        mode.blank = without
    resume.load_tensors = load_but
    try:
        yield
    finally:
        for mode, blank in blanks.items():
            mode.blank = blank
        resume.load_tensors = load


def train_forgetting(run_dir: Path, part: str, start: int) -> Weights:
    """Resume without `part`; a rank's function."""
    with _forgetting(part):
        return train_frozen(run_dir, None, start)


@pytest.mark.parametrize(
    ("mode", "cut", "part"),
    [
        ("diloco", 9, "momentum"), ("diloco", 9, "weights"), ("diloco", 9, "optimizer"),
        ("diloco", 7, "optimizer"), ("int8", 8, "residual"), ("streaming", 7, "delta"),
        ("streaming", 7, "momentum"), ("gossip", 7, "weights"), ("random_peer", 7, "weights"),
        ("random_peer", 7, "push_sum"), ("random_peer", 7, "optimizer"),
    ],
)  # fmt: skip
def test_every_part_that_is_saved_is_needed(
    mode: str, cut: int, part: str, tmp_path: Path, rank_pool: Pools, runs: Runs
) -> None:
    _, expected = runs.straight(mode)
    resumed = runs.cut(mode, cut, tmp_path / "cut")
    weights = rank_pool(RANKS.get(mode, 2)).run(train_forgetting, resumed, part, cut)[0]
    assert any(not torch.equal(weights[name], value) for name, value in expected[0].items())


def test_what_is_saved_and_evaluated_in_a_round_is_the_mean(
    tmp_path: Path, rank_pool: Pools
) -> None:
    run_dir = _start(tmp_path / "run", MODES["local_sgd"], "train.eval_every_steps=9")
    replicas = rank_pool(2).run(train_frozen, run_dir, 9)
    saved = {f"model.{name}": torch.zeros_like(value) for name, value in replicas[0].items()}
    load_tensors(step_folders(run_dir / paths.CHECKPOINTS)[-1], saved, alone=True)
    differ = 0
    for name, mine in replicas[0].items():
        theirs = replicas[1][name]
        differ += not torch.equal(mine, theirs)
        assert torch.equal(saved[f"model.{name}"], (mine + theirs) / 2), name
    assert differ  # replicas were apart


OTHERS = {
    "allreduce": "sync=allreduce",
    "local_sgd": "sync=local_sgd sync.sync_every_steps=5",
    "diloco": "sync=diloco sync.sync_every_steps=5",
    "gossip": "sync=gossip",
}


ROUND = {
    ("allreduce", "local_sgd"), ("local_sgd", "diloco"), ("diloco", "gossip"),
    ("gossip", "allreduce"),
}  # fmt: skip
"""Each mode left once and gone over to once."""


@pytest.mark.parametrize(
    ("before", "after", "ranks"),
    [
        pytest.param(
            before,
            after,
            ranks,
            marks=[] if ranks == 2 and (before, after) in ROUND else [pytest.mark.slow],
        )
        for before, after, ranks in itertools.product(OTHERS, OTHERS, (1, 2, 4))
        if before != after or ranks != 2  # the same mode on as many replicas: the tests above
    ],
)
def test_another_mode_or_number_of_replicas_goes_on(
    before: str, after: str, ranks: int, tmp_path: Path, rank_pool: Pools
) -> None:
    run_dir = _start(tmp_path / "run", OTHERS[before])
    rank_pool(2).run(train_frozen, run_dir, 8)
    strategy = "strategy=single" if ranks == 1 else "strategy=data"
    tiny_run(
        run_dir, "model.dropout=0.1", "train.precision=fp32", f"train.steps={STEPS}",
        *OTHERS[after].split(), strategy, world_size=ranks,
    )  # fmt: skip
    everyones = rank_pool(ranks).run(train_frozen, run_dir, None, 8)
    losses = [line["loss"] for line in metric_lines(run_dir)]
    assert len(losses) == STEPS
    # It goes on where it was: nothing of the start's loss comes back.
    assert abs(losses[8] - losses[7]) < 0.25 * abs(losses[0] - losses[7])
    assert losses[-1] < losses[7]
    for weights in everyones[1:]:
        for name, value in weights.items():
            assert torch.equal(value, everyones[0][name]), name


def test_momentum_of_replicas_that_average_is_that_of_allreduce(
    tmp_path: Path, rank_pool: Pools
) -> None:
    # Averaged in every step, replicas' momenta have the momentum of allreduce as their mean: a
    # switch of the mode is then exact.
    common = ("optimizer=momentum", "train.max_grad_norm=0", "train.precision=fp64")
    straight = _start(tmp_path / "straight", "sync=allreduce", *common)
    expected = rank_pool(2).run(train_frozen, straight)[0]
    run_dir = _start(tmp_path / "run", "sync=local_sgd sync.sync_every_steps=1", *common)
    rank_pool(2).run(train_frozen, run_dir, 8)
    _start(run_dir, "sync=allreduce", *common)
    weights = rank_pool(2).run(train_frozen, run_dir, None, 8)[0]
    for name, value in expected.items():
        torch.testing.assert_close(weights[name], value, rtol=1e-12, atol=1e-14)
