"""Gossip between real processes: the mean stays, what the papers write comes out, all can stop."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

from llmtrain.checkpoint.manager import load_tensors
from llmtrain.checkpoint.manifest import step_folders
from llmtrain.config import paths
from llmtrain.config.groups.gossip import GossipConfig
from llmtrain.sync.graphs import build_graph, push
from tests.support.apart import PushSum, Weights, train_apart
from tests.support.distributed import RankPool
from tests.support.runs import compose_run, metric_lines, tiny_run, train_frozen

pytestmark = pytest.mark.multiprocess

Pools = Callable[[int], RankPool]
State = tuple[list[float], np.ndarray]
"""y of all replicas, and this replica's x, all parameters end to end, (elements,)."""

EXACT = 1e-12
"""fp64: a few numbers of about 1 added up in another order, a few dozen times over."""

STEPS = 12
ROUNDS = 8
SLOW = pytest.mark.slow
SHAPES = ((7, 33), (1,), (0,), (257,), (3, 0), (5, 4))


def mix(run_dir: Path, start: list[float] | None, bucket_bytes: int) -> list[State]:
    """Let a replica mix weights of its own and never train; a rank's function.

    Args:
        run_dir: A run that is configured for gossip, of ROUNDS steps.
        start: Every replica's weights are its number here times the same; None: drawn by each.
        bucket_bytes: Of a message.

    Returns:
        Its state at first and after every step.
    """
    from llmtrain.config import store
    from llmtrain.config.plan import load_plan
    from llmtrain.distributed.mesh import build_mesh
    from llmtrain.sync.build import build_sync
    from llmtrain.sync.interface import Setting

    rank = dist.get_rank()
    draw = torch.Generator().manual_seed(0 if start else rank)
    module = nn.Module()
    for i, shape in enumerate(SHAPES):
        value = torch.randn(shape, generator=draw, dtype=torch.float64)
        value *= start[rank] if start else 1.0
        # Not all are contiguous.
        module.register_parameter(f"p{i}", nn.Parameter(value.t() if i == 0 else value))
    mesh = build_mesh(load_plan(run_dir), "cpu")
    setting = Setting(
        module=module, forward=module, optimizers=[], mesh=mesh, zero=0, micro_batches=1,
        total_steps=ROUNDS, sizes={n: p.numel() for n, p in module.named_parameters()},
        replicas=mesh.size("dp_replicate"), replica=mesh.rank("dp_replicate"),
    )  # fmt: skip
    sync: Any = build_sync(store.load_run_config(run_dir / paths.CONFIG).sync, setting)
    sync._mixer.bucket_bytes = bucket_bytes

    def state() -> State:
        y = sync.state_dict().get("push_sum.y", torch.ones(mesh.size("dp_replicate"))).tolist()
        flat = torch.cat([p.detach().reshape(-1) for p in module.parameters()])
        return y, (flat * y[rank]).numpy()

    states = [state()]
    for step in range(ROUNDS):
        sync.reduce_grads(step)
        sync.after_step(step)
        states.append(state())
    return states


def _mixed(
    folder: Path, pool: Pools, words: str, ranks: int, *, start: list[float] | None = None,
    bucket_bytes: int = 1000,
) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:  # fmt: skip
    """Return x (steps, replicas, elements), y (steps, replicas) and every round's matrix."""
    overrides = ("strategy=data", "sync=gossip", *words.split(), "train.global_batch_size=12")
    run_dir = tiny_run(folder, f"train.steps={ROUNDS}", *overrides, world_size=ranks)
    everyones: list[list[State]] = pool(ranks).run(mix, run_dir, start, bucket_bytes)
    x = np.array([[state[1] for state in states] for states in everyones]).swapaxes(0, 1)
    y = np.array([state[0] for state in everyones[0]])
    for states in everyones[1:]:
        assert [state[0] for state in states] == y.tolist()
    config = compose_run("sync=gossip", *words.split()).sync
    assert isinstance(config, GossipConfig)
    targets = build_graph(config, ranks)
    columns = [[push(unit, targets(r)) for unit in np.eye(ranks).tolist()] for r in range(ROUNDS)]
    return x, y, [np.array(each).T for each in columns]


@pytest.mark.parametrize(
    ("words", "ranks"),
    [
        ("sync.algorithm=dpsgd sync.graph=ring", 4),
        pytest.param("sync.algorithm=dpsgd sync.graph=exponential", 3, marks=SLOW),
        pytest.param("sync.algorithm=dpsgd sync.graph=random_pair", 3, marks=SLOW),
        ("sync.algorithm=dpsgd sync.graph=random_pair sync.seed=5", 4),
        pytest.param("sync.algorithm=dpsgd sync.graph=complete", 3, marks=SLOW),
        ("sync.graph=exponential", 2),
        ("sync.graph=exponential", 3),
        ("sync.graph=random_peer", 3),
        pytest.param("sync.graph=random_peer sync.seed=1", 4, marks=SLOW),
    ],
)
def test_rounds_are_the_matrix_and_keep_the_mean(
    words: str, ranks: int, tmp_path: Path, rank_pool: Pools
) -> None:
    x, y, matrices = _mixed(tmp_path, rank_pool, words, ranks)
    assert np.abs(x[0] - x[0].mean(axis=0)).max() > 1
    for step in range(ROUNDS):
        assert np.abs(x[step + 1].mean(axis=0) - x[step].mean(axis=0)).max() <= EXACT
        assert abs(y[step + 1].sum() - ranks) <= EXACT
    for step in range(ROUNDS - 1):  # the last is the average of all
        assert np.abs(x[step + 1] - matrices[step] @ x[step]).max() <= EXACT
        assert np.abs(y[step + 1] - matrices[step] @ y[step]).max() <= EXACT
    assert np.abs(x[-1] - x[0].mean(axis=0)).max() <= EXACT
    assert (x[-1] == x[-1][0]).all()
    assert (y[-1] == 1).all()
    if "random_peer" in words:
        assert np.abs(y - 1).max() >= 0.25  # not for nothing


def test_a_round_of_all_is_the_mean_on_all_to_the_bit(tmp_path: Path, rank_pool: Pools) -> None:
    x, _, _ = _mixed(tmp_path, rank_pool, "sync.algorithm=dpsgd sync.graph=complete", 4)
    assert np.abs(x[1] - x[0].mean(axis=0)).max() <= EXACT
    assert (x[1] == x[1][0]).all()


def test_what_replicas_differ_by_shrinks_as_the_matrix_says(
    tmp_path: Path, rank_pool: Pools
) -> None:
    words = "sync.algorithm=dpsgd sync.graph=ring"
    x, _, matrices = _mixed(tmp_path / "drawn", rank_pool, words, 4)
    values, vectors = np.linalg.eigh(matrices[0])
    second = np.argsort(np.abs(values))[-2]
    bound = abs(values[second])
    assert 0.1 < bound < 0.9
    ratios = _distances(x)[1:-1] / _distances(x)[:-2]
    assert (ratios <= bound * (1 + EXACT)).all()
    # The bound is met by replicas that differ as its eigenvector does.
    start = [1.0 + value for value in vectors[:, second].tolist()]
    worst, _, _ = _mixed(tmp_path / "worst", rank_pool, words, 4, start=start, bucket_bytes=10**6)
    assert _distances(worst)[1] / _distances(worst)[0] == pytest.approx(bound, rel=1e-10)


def _distances(x: np.ndarray) -> np.ndarray:
    """Return how far replicas are from their mean at every step, (steps,)."""
    return np.linalg.norm(x - x.mean(axis=1, keepdims=True), axis=(1, 2))


def _run(folder: Path, pool: Pools, words: str, ranks: int) -> tuple[list[Weights], Path]:
    overrides = ("strategy=data", "train.global_batch_size=12", "sync=gossip", *words.split())
    run_dir = tiny_run(folder, f"train.steps={STEPS}", *overrides, world_size=ranks)
    return pool(ranks).run(train_frozen, run_dir), run_dir


def _neighbours(number: int) -> list[list[int]]:
    return [[1, 2], [0, 2], [0, 1]]


def _next_or_next_but_one(number: int) -> list[list[int]]:
    return [[1], [2], [0]] if number % 2 == 0 else [[2], [0], [1]]


_random_peers = build_graph(GossipConfig(graph="random_peer"), 3)


@pytest.mark.parametrize(
    ("words", "targets", "every", "warmup"),
    [
        ("sync.algorithm=dpsgd sync.graph=ring", _neighbours, 1, 0),
        ("sync.graph=exponential", _next_or_next_but_one, 2, 3),
        ("sync.graph=random_peer", _random_peers, 1, 2),
        ("sync.graph=random_peer optimizer=momentum optimizer.lr=0.05", _random_peers, 2, 0),
    ],
)
def test_gossip_is_the_plain_loop(
    words: str, targets: Callable[[int], list[list[int]]], every: int, warmup: int,
    tmp_path: Path, rank_pool: Pools,
) -> None:  # fmt: skip
    chosen = [w for w in words.split() if w.startswith("optimizer")]
    common = ("model.dropout=0.1", "train.global_batch_size=12", *chosen)
    plain = PushSum(every, warmup, STEPS, targets)
    expected = train_apart(
        tmp_path, common, replicas=3, steps=STEPS, warmup=warmup, after_step=plain,
        before_update=plain.before_update,
    )  # fmt: skip
    rhythm = f"sync.sync_every_steps={every} sync.warmup_sync_steps={warmup}"
    everyones, _ = _run(tmp_path / "run", rank_pool, f"model.dropout=0.1 {rhythm} {words}", 3)
    for found in everyones:
        for name, value in expected.items():
            limit = 1e-11 * value.abs().max()  # AdamW divides by small numbers
            assert (found[name] - value).abs().max() <= limit, name
            assert torch.equal(found[name], everyones[0][name]), name


@pytest.mark.parametrize(
    ("words", "ranks", "copies"),
    [
        ("sync.algorithm=dpsgd sync.graph=ring", 4, 2),
        pytest.param("sync.algorithm=dpsgd sync.graph=complete", 4, 3, marks=SLOW),
        ("sync.graph=exponential", 4, 1),
        pytest.param("sync.graph=random_peer sync.sync_every_steps=3", 3, 1, marks=SLOW),
    ],
)
def test_bytes_are_copies_of_the_weights(
    words: str, ranks: int, copies: int, tmp_path: Path, rank_pool: Pools
) -> None:
    everyones, run_dir = _run(tmp_path / "run", rank_pool, words, ranks)
    weights_bytes = sum(value.nbytes for value in everyones[0].values())
    every = 3 if "every_steps=3" in words else 1
    sent = [line["comm_bytes"] for line in metric_lines(run_dir)]
    rounds = [copies * weights_bytes * (step % every == 0) for step in range(1, STEPS)]
    # The last step is an all-reduce.
    assert sent == [*rounds, 2 * (ranks - 1) * weights_bytes // ranks]


def test_a_checkpoint_between_rounds_has_the_mean_of_x(tmp_path: Path, rank_pool: Pools) -> None:
    words = ("strategy=data", "train.global_batch_size=12", "sync=gossip", "sync.graph=random_peer")
    run_dir = tiny_run(tmp_path / "run", f"train.steps={STEPS}", *words,
                       "train.eval_every_steps=5", world_size=3)  # fmt: skip
    replicas = rank_pool(3).run(train_frozen, run_dir, 5)
    y = [1.0] * 3
    for number in range(5):
        y = push(y, _random_peers(number))
    assert max(y) - min(y) > 0.25
    saved = {f"model.{name}": torch.zeros_like(value) for name, value in replicas[0].items()}
    load_tensors(step_folders(run_dir / paths.CHECKPOINTS)[-1], saved, alone=True)
    for name in replicas[0]:
        mean = sum(size * each[name] for size, each in zip(y, replicas, strict=True)) / 3
        assert (saved[f"model.{name}"] - mean).abs().max() <= EXACT, name
    differ = max(float((replicas[0][n] - replicas[1][n]).abs().max()) for n in replicas[0])
    assert differ > 1e-6
    # Another mode of another number of replicas goes on from it (its steps are of no size).
    tiny_run(run_dir, f"train.steps={STEPS}", "strategy=data", "train.global_batch_size=12",
             "optimizer.lr=1e-30", world_size=2)  # fmt: skip
    for name, value in rank_pool(2).run(train_frozen, run_dir, None, 5)[0].items():
        assert (saved[f"model.{name}"] - value).abs().max() <= EXACT, name


def test_one_replica_is_plain_training(tmp_path: Path) -> None:
    plain = train_frozen(tiny_run(tmp_path / "plain", f"train.steps={STEPS}"))
    for words in ("sync.graph=random_peer", "sync.algorithm=dpsgd sync.graph=ring"):
        run = tiny_run(tmp_path / words[-4:], f"train.steps={STEPS}", "sync=gossip", *words.split())
        alone = train_frozen(run)
        for name, value in plain.items():
            assert torch.equal(alone[name], value), name


def train_asked(run_dir: Path, asked: int, at: int, slow: int) -> int:
    """Train until all agree to stop, rank `asked` being asked in step `at`; a rank's function.

    Rank `slow` takes its time, so that others run ahead as far as the graph lets them.

    Returns:
        The steps done.
    """
    from llmtrain.train.trainer import Trainer

    right, done = Trainer.one_step, [0]

    def one_step(self: Any, interval: Any) -> Any:
        if dist.get_rank() == slow:
            time.sleep(0.1)
        result = right(self, interval)
        done[0] += 1
        return result

    Trainer.one_step = one_step  # type: ignore[method-assign]
    try:
        train_frozen(run_dir, at if dist.get_rank() == asked else None)
    finally:
        Trainer.one_step = right  # type: ignore[method-assign]
    return done[0]


@pytest.mark.parametrize("at", [3, pytest.param(4, marks=SLOW)])
@pytest.mark.parametrize(
    ("words", "ranks", "asked", "slow"),
    [
        ("sync=gossip sync.graph=exponential", 2, 1, 0),
        pytest.param(
            "sync=gossip sync.graph=exponential sync.sync_every_steps=3", 2, 0, 1, marks=SLOW
        ),
        ("sync=local_sgd sync.sync_every_steps=3", 2, 0, 1),  # asked in the step of a meeting
        ("sync=gossip train.eval_every_steps=4 checkpoint.every_steps=4", 2, 0, 1),
        pytest.param("sync=gossip sync.algorithm=dpsgd sync.graph=ring", 4, 0, 2, marks=SLOW),
        ("sync=gossip sync.algorithm=dpsgd sync.graph=ring", 4, 2, 2),
        pytest.param(
            "sync=gossip sync.algorithm=dpsgd sync.graph=random_pair", 4, 1, 0, marks=SLOW
        ),
        pytest.param(
            "sync=gossip sync.graph=exponential sync.sync_every_steps=2", 4, 3, 1, marks=SLOW
        ),
        pytest.param("sync=gossip sync.graph=random_peer", 4, 0, 3, marks=SLOW),
    ],
)
def test_one_replica_that_is_asked_has_all_stop_at_one_step(
    words: str, ranks: int, asked: int, slow: int, at: int, tmp_path: Path, rank_pool: Pools
) -> None:
    overrides = ("strategy=data", "train.steps=60", *words.split())
    run_dir = tiny_run(tmp_path / "run", *overrides, world_size=ranks)
    stopped = rank_pool(ranks).run(train_asked, run_dir, asked, at, slow)
    assert len(set(stopped)) == 1
    assert at <= stopped[0] <= 20
    # And what they saved can be gone on from.
    rank_pool(ranks).run(train_frozen, run_dir, None, stopped[0])
    assert len(metric_lines(run_dir)) == 60
