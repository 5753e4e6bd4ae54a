"""Runs with a server, as a user starts them: what they compute and what they say."""

import statistics
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import safe_open

from tests.support.runs import environment, metric_lines, validation_losses
from tests.support.served import (
    DEADLINE_S,
    EQUAL,
    EVERY,
    SAME_LAYOUT,
    STEPS,
    TWO,
    command,
    distance,
    pushes,
    saved,
    train,
)

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds workers through /proc"),
]


@pytest.mark.parametrize(
    ("optimizer", "servers"),
    [
        ("adamw", 2),
        pytest.param("momentum", 1, marks=pytest.mark.slow),
        pytest.param("sgd", 1, marks=pytest.mark.slow),
    ],
)
def test_ssp_of_bound_0_is_allreduce(optimizer: str, servers: int, tmp_path: Path) -> None:
    words = (*TWO, f"optimizer={optimizer}", "train.max_grad_norm=0")
    one = train(tmp_path / "one", *words, "sync=allreduce")
    served = ("sync=ssp", "sync.max_staleness=0", f"sync.servers={servers}")
    other = train(tmp_path / "other", *words, *served)
    assert distance(one, other) <= EQUAL
    losses = [[line["loss"] for line in metric_lines(run)] for run in (one, other)]
    assert losses[0] == pytest.approx(losses[1], rel=EQUAL)


@pytest.mark.parametrize(
    "words",
    ["sync=async_ps", pytest.param("sync=ssp sync.max_staleness=3", marks=pytest.mark.slow)],
)
def test_one_replica_is_plain_training_to_the_last_bit(words: str, tmp_path: Path) -> None:
    plain = train(tmp_path / "plain", "strategy=single", "train.precision=fp32")
    served = train(tmp_path / "served", "strategy=single", "train.precision=fp32", *words.split())
    assert distance(plain, served) == 0.0
    assert distance(plain, served, "optimizer.") == 0.0


@pytest.mark.slow
def test_a_quorum_of_all_is_diloco(tmp_path: Path) -> None:
    every = ("sync.sync_every_steps=4", "train.precision=fp32")
    one = train(tmp_path / "one", *TWO, "sync=diloco", *every)
    other = train(tmp_path / "other", *TWO, "sync=quorum_diloco", *every)
    assert distance(one, other) == 0.0


@pytest.mark.slow
@pytest.mark.parametrize(
    "layout",
    [
        "strategy=hybrid strategy.tp=2 model.n_layers=3",
        "strategy=hybrid strategy.pp=2 train.micro_batch_size=1 model.n_layers=3",
        "strategy=data strategy.zero=3 strategy.dp_shard=2 model.n_layers=3",
    ],
)
@pytest.mark.parametrize("sync", ["sync=ssp sync.max_staleness=0", "sync=quorum_diloco"])
def test_replicas_of_any_layout_compute_the_same(layout: str, sync: str, tmp_path: Path) -> None:
    words = [*sync.split(), *(["sync.sync_every_steps=4"] if "quorum" in sync else [])]
    plain = train(tmp_path / "plain", *TWO, *words, "model.n_layers=3")
    cut = train(tmp_path / "cut", *layout.split(), *words, "strategy.dp_replicate=2")
    assert distance(plain, cut) <= SAME_LAYOUT


@pytest.mark.slow
def test_two_servers_compute_what_one_does(tmp_path: Path) -> None:
    words = (*TWO, "sync=ssp", "sync.max_staleness=0", "train.precision=fp32",
             "train.eval_every_steps=16")  # fmt: skip
    one = train(tmp_path / "one", *words)
    both = train(tmp_path / "both", *words, "sync.servers=2")
    assert distance(one, both, "") == 0.0
    keys = ("step", "loss", "grad_norm", "tokens", "lr")
    lines = [[[line[k] for k in keys] for line in metric_lines(run)] for run in (one, both)]
    assert lines[0] == lines[1] and len(lines[0]) == STEPS
    assert validation_losses(one) == validation_losses(both) and len(validation_losses(one)) == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        "sync=quorum_diloco sync.sync_every_steps=4 strategy=hybrid strategy.tp=2",
        "sync=quorum_diloco sync.sync_every_steps=4 strategy=hybrid strategy.pp=2 "
        "train.micro_batch_size=1 model.n_layers=4",
        "sync=ssp sync.max_staleness=0 strategy=data strategy.zero=3 strategy.dp_shard=2",
    ],
)
def test_servers_hold_parts_of_replicas_of_any_layout(words: str, tmp_path: Path) -> None:
    exact = ("strategy.dp_replicate=2", "train.precision=fp32", "scheduler=constant")
    run_dir = tmp_path / "run"
    straight = train(tmp_path / "straight", *words.split(), *exact, "sync.servers=1")
    # As many servers as a start wishes: a checkpoint has whole tensors.
    train(run_dir, *words.split(), *exact, "sync.servers=2", steps=EVERY)
    train(run_dir, *words.split(), *exact, "sync.servers=1", steps=2 * EVERY)
    train(run_dir, *words.split(), *exact, "sync.servers=2")
    assert distance(straight, run_dir, "") == 0.0


@pytest.mark.slow
@pytest.mark.parametrize(
    "sync",
    ["sync=quorum_diloco sync.sync_every_steps=4", "sync=ssp sync.max_staleness=0 optimizer=adamw"],
)
def test_a_server_goes_on_with_replicas_of_another_layout(sync: str, tmp_path: Path) -> None:
    """Nothing that the server knows is lost: the outer momentum, where each reads, its time."""
    words = (*sync.split(), "scheduler=constant", "model.n_layers=4", "train.micro_batch_size=1")
    straight, run_dir = train(tmp_path / "straight", *TWO, *words), tmp_path / "run"
    layouts = (
        ("strategy=hybrid", "strategy.tp=2", "strategy.dp_replicate=2"),
        ("strategy=hybrid", "strategy.tp=1", "strategy.pp=2", "strategy.dp_replicate=2",
         "sync.servers=2"),
        TWO,
    )  # fmt: skip
    for number, layout in enumerate(layouts, start=1):
        train(run_dir, *layout, *words, steps=number * EVERY)
    assert distance(straight, run_dir) <= SAME_LAYOUT
    assert distance(straight, run_dir, "") <= SAME_LAYOUT
    log = pushes(run_dir)
    tickets = [line["ticket"] for line in log if line["kind"] == "push"]
    assert tickets == list(range(1, len(tickets) + 1)), "it is one run, with one log"


@pytest.mark.slow
def test_another_mode_and_layout_goes_on_from_a_server(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    chain = [
        ("sync=allreduce", "strategy=single"),
        ("sync=async_ps", *TWO),
        ("sync=quorum_diloco", "sync.sync_every_steps=4", "strategy=hybrid", "strategy.tp=2",
         "strategy.dp_replicate=2"),
        ("sync=easgd", "sync.sync_every_steps=4", "strategy=data", "launcher.nproc_per_node=3",
         "train.global_batch_size=12"),
        ("sync=allreduce", "strategy=model"),
    ]  # fmt: skip
    for number, words in enumerate(chain, start=1):
        train(run_dir, *words, "optimizer.lr=0.01", "scheduler=constant", steps=number * EVERY)
    losses = {line["step"]: line["loss"] for line in metric_lines(run_dir)}
    assert max(losses) == len(chain) * EVERY
    for number in range(1, len(chain)):
        # Replicas that push several steps at once pass over some.
        before = losses[max(step for step in losses if step <= number * EVERY)]
        after = losses[min(step for step in losses if step > number * EVERY)]
        assert after < losses[1] - 0.5 * (losses[1] - before), (number, before, after)


@pytest.mark.slow
def test_bytes_of_a_push_are_two_copies_of_the_weights(tmp_path: Path) -> None:
    run_dir = train(tmp_path / "run", *TWO, "sync=async_ps", "train.precision=fp32", steps=EVERY)
    sizes = saved(run_dir)
    weights = 4 * sum(tensor.numel() for tensor in sizes.values())
    # There and back, with names, shapes and a header. The opening and rests come beside it.
    usual = statistics.median(line["comm_bytes"] for line in metric_lines(run_dir))
    assert 2 * weights <= usual <= 2 * weights + 20_000


def test_a_refusal_leaves_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        command(tmp_path / "run", *TWO, "sync=async_ps", "sync.servers=3"), env=environment(),
        capture_output=True, text=True, timeout=DEADLINE_S, check=False,
    )  # fmt: skip
    assert done.returncode == 2 and "sync.servers=2" in done.stderr, done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_checkpoint_is_of_plain_tensors(tmp_path: Path) -> None:
    words = ("sync=quorum_diloco", "sync.sync_every_steps=4")
    run_dir = train(tmp_path / "run", *TWO, *words, steps=EVERY)
    newest = sorted((run_dir / "checkpoints").glob("step_*"))[-1]
    names: set[str] = set()
    for file in newest.glob("*.safetensors"):
        with safe_open(str(file), "pt") as opened:
            names |= set(opened.keys())
    for wanted in ("model.embed.weight", "replica0.optimizer.state.embed.weight.exp_avg",
                   "replica1.optimizer.state.embed.weight.exp_avg",
                   "sync.server|rule|optimizer|embed.weight|momentum_buffer"):  # fmt: skip
        assert wanted in names
