"""Runs with a server, as a user starts them: what they compute, and what deaths do to them."""

import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from tests.support.runs import SYNTHETIC, TINY, environment, metric_lines, validation_losses

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds workers through /proc"),
]

STEPS, EVERY = 48, 16
BASE = (*TINY, *SYNTHETIC, "model.dropout=0.1", f"checkpoint.every_steps={EVERY}")
DEADLINE_S = 150.0
EQUAL = 1e-12
"""fp64: a mean in another order of adding, through 48 steps."""
SAME_LAYOUT = 1e-9
"""fp64: sums inside a replica in another order, as for every layout."""
TWO = ("strategy=data", "launcher.nproc_per_node=2")


def command(run_dir: Path, *words: str, steps: int = STEPS) -> list[str]:
    given = {word.partition("=")[0] for word in words}
    base = [word for word in BASE if word.partition("=")[0] not in given]
    return [sys.executable, "-m", "llmtrain", "train", *base, *words,
            f"train.steps={steps}", f"run_dir={run_dir}"]  # fmt: skip


def train(run_dir: Path, *words: str, steps: int = STEPS) -> Path:
    done = subprocess.run(
        command(run_dir, *words, steps=steps), env=environment(), capture_output=True, text=True,
        timeout=DEADLINE_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert result(run_dir)["status"] == "completed"
    return run_dir


def result(run_dir: Path) -> dict[str, Any]:
    return dict(json.loads((run_dir / "result.json").read_text()))


def saved(run_dir: Path, prefix: str = "model.") -> dict[str, torch.Tensor]:
    """Return the tensors of the newest checkpoint, whole."""
    from torch.distributed.checkpoint import HuggingFaceStorageReader

    from llmtrain.checkpoint.manager import load_tensors

    folder = sorted((run_dir / "checkpoints").glob("step_*"))[-1]
    reader = HuggingFaceStorageReader(str(folder))
    tensors = {
        name: torch.empty(meta.size, dtype=meta.properties.dtype)
        for name, meta in reader.read_metadata().state_dict_metadata.items()
        if name.startswith(prefix)
    }
    load_tensors(folder, tensors, alone=True)
    return tensors


def distance(a: Path, b: Path, prefix: str = "model.") -> float:
    """Return the largest difference between the tensors of two runs' newest checkpoints."""
    first, second = saved(a, prefix), saved(b, prefix)
    assert first.keys() == second.keys() and first
    return max(float((first[n] - second[n]).abs().max()) for n in first)


def newest_step(run_dir: Path) -> int:
    """Return the step of the newest checkpoint; 0 where there is none."""
    return max((int(p.name[5:]) for p in run_dir.glob("checkpoints/step_????????")), default=0)


def pushes(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "pushes.jsonl").read_text().splitlines()]


def process(run_dir: Path, replica: int | None, server: int = 0) -> int | None:
    """Return the process id of a replica's worker, or of a server."""
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
            env = (entry / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"llmtrain.worker" not in words or str(run_dir).encode() not in words:
            continue
        wanted = f"LLMTRAIN_REPLICA={replica}".encode()
        is_server = words[-3:-1] == [b"--server", str(server).encode()]
        if is_server if replica is None else wanted in env:
            return int(entry.name)
    return None


def wait_until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.01)


def start(run_dir: Path, *words: str, steps: int = STEPS) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        command(run_dir, *words, steps=steps), env=environment(), stderr=subprocess.PIPE, text=True
    )


def end(launcher: "subprocess.Popen[str]") -> str:
    _, words = launcher.communicate(timeout=DEADLINE_S)
    return words


# -- what is computed ------------------------------------------------------------------------------


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


# -- stopping and dying ----------------------------------------------------------------------------

EXACT = {
    "ssp": ("sync=ssp", "sync.max_staleness=0"),
    "quorum_diloco": ("sync=quorum_diloco", "sync.sync_every_steps=5", "sync.quorum=2"),
}
"""Modes of two replicas whose numbers do not depend on who comes first."""
ALONE = {
    "async_local_sgd": ("sync=async_local_sgd", "sync.sync_every_steps=5",
                        "sync.outer_momentum=0.5", "sync.adapt_local_steps=false",
                        "sync.servers=2"),
    "easgd": ("sync=easgd", "sync.sync_every_steps=5", "sync.beta=0.5", "sync.servers=2"),
    "dc_asgd": ("sync=async_ps", "sync.compensation=dc_asgd_adaptive", "sync.servers=2"),
}  # fmt: skip
"""Modes whose numbers do, with one replica."""
CASES = {**{n: (*TWO, *w) for n, w in EXACT.items()},
         **{n: ("strategy=single", *w) for n, w in ALONE.items()}}  # fmt: skip
LONG = 96


@pytest.mark.slow
@pytest.mark.parametrize("mode", CASES)
def test_a_run_that_is_stopped_and_killed_goes_on_exactly(mode: str, tmp_path: Path) -> None:
    words = (*CASES[mode], "train.precision=fp32", "checkpoint.keep_last=100")
    straight = train(tmp_path / "straight", *words, steps=LONG)
    cut = tmp_path / "cut"
    launcher = start(cut, *words, steps=LONG)
    wait_until(lambda: newest_step(cut) >= EVERY, "the first checkpoint")
    launcher.send_signal(signal.SIGTERM)
    end(launcher)
    assert launcher.returncode == 143
    told = result(cut)
    assert told["status"] == "preempted" and EVERY <= told["step"] < LONG
    launcher = start(cut, *words, steps=LONG)
    wait_until(lambda: newest_step(cut) > told["step"] + EVERY, "a later checkpoint")
    launcher.kill()
    end(launcher)
    wait_until(lambda: process(cut, None) is None, "the server to die with its launcher")
    train(cut, *words, steps=LONG)
    assert distance(straight, cut) == 0.0
    assert distance(straight, cut, "") == 0.0
    keys = ("step", "loss", "grad_norm", "tokens")
    lines = [[[line[k] for k in keys] for line in metric_lines(run)] for run in (straight, cut)]
    # A line tells of the pushes since the line before; a stop's own line cuts one in two.
    kept = [[line for line in run if line[0] > told["step"] + 2 * EVERY] for run in lines]
    assert kept[0] == kept[1] and kept[0]


@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.parametrize("servers", [1, 2])
def test_kill_minus_nine_of_one_of_three_replicas(servers: int, tmp_path: Path) -> None:
    run_dir, steps = tmp_path / "run", 400
    words = ("strategy=data", "launcher.nproc_per_node=3", "train.global_batch_size=12",
             "sync=async_ps", "checkpoint.every_steps=100", f"sync.servers={servers}")  # fmt: skip
    launcher = start(run_dir, *words, steps=steps)
    wait_until(lambda: newest_step(run_dir) >= 100, "the first checkpoint")
    victim = process(run_dir, 1)
    assert victim is not None
    others = [process(run_dir, replica) for replica in (0, 2)]
    os.kill(victim, signal.SIGKILL)
    said = end(launcher)
    assert launcher.returncode == 0, said
    assert "replica 1 ended (killed by SIGKILL): started again" in said
    assert result(run_dir)["status"] == "completed" and result(run_dir)["step"] == steps
    log = pushes(run_dir)
    left = [i for i, line in enumerate(log) if line["kind"] == "leave" and line["worker"] == 1]
    back = [i for i, line in enumerate(log) if line["kind"] == "join" and line["worker"] == 1][1]
    meanwhile = [line["worker"] for line in log[left[0] : back] if line["kind"] == "push"]
    assert {0, 2} <= set(meanwhile) and 1 not in meanwhile, "the others did not go on"
    assert any(line["worker"] == 1 for line in log[back + 1 :] if line["kind"] == "push")
    assert all(other is not None for other in others)
    # Every update is there once: tickets without a gap, and as many as the tokens say.
    tickets = [line["ticket"] for line in log if line["kind"] == "push"]
    assert tickets == list(range(1, len(tickets) + 1))
    push_tokens = 12 * 16 // 3
    assert steps * 3 <= len(tickets) <= steps * 3 + 2  # those under way at the end do not count
    assert result(run_dir)["tokens"] == steps * 3 * push_tokens


@pytest.mark.slow
@pytest.mark.chaos
def test_a_replica_that_keeps_dying_is_done_without(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    words = (*TWO, "sync=async_local_sgd", "sync.sync_every_steps=2", "sync.max_restarts=0")
    launcher = start(run_dir, *words, steps=400)
    wait_until(lambda: newest_step(run_dir) >= EVERY, "the first checkpoint")
    os.kill(process(run_dir, 0) or 0, signal.SIGKILL)
    said = end(launcher)
    assert launcher.returncode == 0, said
    assert "the others go on without it" in said
    assert result(run_dir)["status"] == "completed"
    # Replica 1 has led since, and the checkpoint says whose optimizers it has.
    newest = sorted((run_dir / "checkpoints").glob("step_*"))[-1]
    manifest = json.loads((newest / "manifest.json").read_text())
    assert manifest["sync"]["saved_replicas"] == [1]
    train(run_dir, *words, steps=420)


@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.parametrize(
    "servers, victim, name",
    [
        (1, 0, "the server"),
        (2, 0, "server 0"),
        (2, 1, "server 1"),
    ],
)
def test_a_server_that_dies_is_told_and_its_checkpoint_goes_on(
    servers: int, victim: int, name: str, tmp_path: Path
) -> None:
    words = (*TWO, *EXACT["ssp"], "train.precision=fp32", f"sync.servers={servers}")
    straight = train(tmp_path / "straight", *words, steps=LONG)
    run_dir = tmp_path / "run"
    launcher = start(run_dir, *words, steps=LONG)
    wait_until(lambda: newest_step(run_dir) >= EVERY, "the first checkpoint")
    os.kill(process(run_dir, None, victim) or 0, signal.SIGKILL)
    said = end(launcher)
    assert launcher.returncode == 1
    assert f"{name} failed" in said and "SIGKILL" in said and "newest checkpoint" in said
    assert "Traceback" not in said
    told = result(run_dir)
    assert told["status"] == "failed" and "server" in told["error"]
    assert process(run_dir, 0) is None and process(run_dir, 1) is None
    assert all(process(run_dir, None, server) is None for server in range(servers))
    train(run_dir, *words, steps=LONG)
    assert distance(straight, run_dir, "") == 0.0


@pytest.mark.slow
def test_a_grace_ends_and_frees_those_who_wait(tmp_path: Path) -> None:
    """One stands still: the other's rounds close with their grace, long before it is dead."""
    run_dir = tmp_path / "run"
    words = (*TWO, "sync=quorum_diloco", "sync.sync_every_steps=2", "sync.quorum=1",
             "sync.grace_s=0.3", "sync.dead_after_s=60", "checkpoint.every_steps=null")  # fmt: skip
    launcher = start(run_dir, *words, steps=3000)
    wait_until(lambda: (run_dir / "pushes.jsonl").exists() and len(pushes(run_dir)) > 10, "pushes")
    victim = process(run_dir, 1) or 0
    os.kill(victim, signal.SIGSTOP)
    time.sleep(0.5)  # what it has sent is taken in
    size = len(pushes(run_dir))
    wait_until(lambda: len(pushes(run_dir)) >= size + 4, "rounds without it")
    assert {line["worker"] for line in pushes(run_dir)[size:]} == {0}
    os.kill(victim, signal.SIGCONT)
    launcher.send_signal(signal.SIGTERM)
    said = end(launcher)
    assert launcher.returncode == 143, said


@pytest.mark.slow
@pytest.mark.parametrize("servers", [1, 2])
def test_a_replica_that_stands_still_counts_as_dead_and_joins_again(
    servers: int, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    words = (*TWO, "sync=async_ps", "sync.dead_after_s=3", f"sync.servers={servers}")
    launcher = start(run_dir, *words, steps=3000)
    wait_until(lambda: newest_step(run_dir) >= EVERY, "the first checkpoint")
    victim = process(run_dir, 1) or 0
    os.kill(victim, signal.SIGSTOP)
    size = len(pushes(run_dir))
    # Rests wait for it until it is dead; then the other goes on alone.
    wait_until(lambda: len(pushes(run_dir)) > size + 3 * EVERY, "the other to go on")
    os.kill(victim, signal.SIGCONT)
    wait_until(
        lambda: [line["kind"] for line in pushes(run_dir) if line["worker"] == 1].count("join") > 1,
        "it to join again",
    )
    launcher.send_signal(signal.SIGTERM)
    said = end(launcher)
    assert launcher.returncode == 143, said
    assert result(run_dir)["status"] == "preempted"


@pytest.mark.slow
@pytest.mark.chaos
def test_one_that_cannot_be_started_ends_a_run_that_has_not_begun(tmp_path: Path) -> None:
    """All are waited for before training begins: without it that would be for ever."""
    run_dir = tmp_path / "run"
    launcher = start(run_dir, *TWO, "sync=async_ps", "sync.max_restarts=0")
    wait_until(lambda: process(run_dir, 1), "the replica's process")
    os.kill(process(run_dir, 1) or 0, signal.SIGKILL)
    said = end(launcher)
    assert launcher.returncode == 1, said
    assert "SIGKILL" in said and "go on without it" not in said
    assert result(run_dir)["status"] == "failed"


@pytest.mark.slow
@pytest.mark.chaos
def test_too_few_replicas_end_a_run(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    words = (*TWO, "sync=async_ps", "sync.max_restarts=0", "sync.min_replicas=2")
    launcher = start(run_dir, *words, steps=5000)
    wait_until(lambda: newest_step(run_dir) >= EVERY, "the first checkpoint")
    os.kill(process(run_dir, 1) or 0, signal.SIGKILL)
    said = end(launcher)
    assert launcher.returncode == 1, said
    assert result(run_dir)["status"] == "failed" and newest_step(run_dir) >= EVERY


def test_a_signal_to_one_replica_stops_the_run(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    launcher = start(run_dir, *TWO, "sync=async_ps", "sync.servers=2", steps=5000)
    wait_until(lambda: newest_step(run_dir) >= EVERY, "the first checkpoint")
    os.kill(process(run_dir, 1) or 0, signal.SIGTERM)
    said = end(launcher)
    assert launcher.returncode == 143, said
    told = result(run_dir)
    assert told["status"] == "preempted" and told["step"] >= EVERY
    newest = sorted((run_dir / "checkpoints").glob("step_*"))[-1]
    assert int(newest.name.split("_")[1]) == told["step"]


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
