"""Numbers that go bad in a real run of two processes: each policy does what it says, on both."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from llmtrain.checkpoint.manifest import NAME, read_manifest
from llmtrain.config import paths
from tests.support.distributed import RankPool
from tests.support.faults import ROWS, BadGradient, Both, Crash, CrashError, NoUpdate, Spike
from tests.support.runs import metric_lines, tiny_run, train_frozen

pytestmark = pytest.mark.multiprocess

STEPS, BAD, SAVED = 16, 7, 4
"""Steps of a run, the bad one among them, and how often it saves."""

LAYER = "blocks.1.ffn.w2"

TWO = (
    f"train.steps={STEPS}", f"checkpoint.every_steps={SAVED}", "checkpoint.save_best=false",
    "strategy=data", "train.precision=fp32", "model.dropout=0.1",
)  # fmt: skip


def slow(*words: str) -> Any:
    return pytest.param(words, marks=pytest.mark.slow)


Pool = Callable[[int], RankPool]


def run_two(folder: Path, *words: str) -> Path:
    given = {word.partition("=")[0] for word in words}
    base = [word for word in TWO if word.partition("=")[0] not in given]
    return tiny_run(folder, *base, *words, world_size=2)


def attempt(run_dir: Path, plant: Any, stop_after: int | None = None) -> Any:
    """Train on this rank; return the whole weights, or the words with which it stopped."""
    try:
        return train_frozen(run_dir, stop_after=stop_after, plant=plant)
    except FloatingPointError as error:
        return str(error)
    except CrashError:
        return "crashed"


def events(run_dir: Path) -> list[dict[str, Any]]:
    path = run_dir / paths.BAD_STEPS
    lines = path.read_text().splitlines() if path.exists() else []
    return [
        {key: value for key, value in json.loads(line).items() if key != "time"} for line in lines
    ]


def numbers(run_dir: Path) -> list[tuple[Any, ...]]:
    """Return what of metrics.jsonl is a result and not a measurement."""
    keys = ("step", "loss", "grad_norm", "lr", "tokens", "bad_step")
    return [tuple(line.get(key) for key in keys) for line in metric_lines(run_dir)]


def assert_equal(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    for name, value in theirs.items():
        assert torch.equal(ours[name], value), name


def train_state(run_dir: Path, step: int) -> dict[str, Any]:
    manifest = run_dir / paths.CHECKPOINTS / f"step_{step:08d}" / NAME
    return dict(json.loads(manifest.read_text())["train_state"])


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("strategy.zero=3",),
        slow("strategy.zero=1", "train.micro_batch_size=2"),
        ("strategy=model", "strategy.tp=2"),
        ("strategy=pipeline", "strategy.pp=2", "train.micro_batch_size=2"),
        slow("train.activation_checkpointing=full"),
        slow("train.activation_checkpointing=selective"),
        slow("strategy=pipeline", "strategy.pp=2", "strategy.schedule=ZBVZeroBubble",
             "strategy.cut=uniform", "model.n_layers=4", "train.micro_batch_size=2"),
        slow("strategy=hybrid", "strategy.cp=2", "strategy.tp=1"),
    ],
    ids=lambda words: " ".join(words[:2]) or "ddp",
)  # fmt: skip
def test_stop_names_layer_and_rank(words: tuple[str, ...], tmp_path: Path, rank_pool: Pool) -> None:
    run_dir = run_two(tmp_path / "run", *words)
    said = rank_pool(2).run(attempt, run_dir, BadGradient((BAD,), rank=1))
    assert said[0] == said[1], "all ranks stop, with the same words"
    assert f"the gradient norm of step {BAD} is nan" in said[0]
    assert f"first layer that is not is {LAYER}: the gradient of its output, on rank 1" in said[0]
    (event,) = events(run_dir)
    assert (event["step"], event["what"], event["action"]) == (BAD, "nan", "stopped")
    assert (event["layer"], event["rank"], event["where"]) == (LAYER, 1, "output gradient")
    assert event["samples"] == [(BAD - 1) * ROWS, BAD * ROWS]
    assert [line["step"] for line in metric_lines(run_dir)] == list(range(1, BAD))


def test_a_number_that_is_bad_once_is_a_fault_of_the_machine(
    tmp_path: Path, rank_pool: Pool
) -> None:
    run_dir = run_two(tmp_path / "run")
    fluke = BadGradient((BAD,), rank=1, value=math.inf, times=1)
    said = rank_pool(2).run(attempt, run_dir, fluke)
    assert said[0] == said[1]
    assert "everything is finite: a fault of the machine, such as a flipped bit" in said[0]
    assert events(run_dir)[0]["where"] == "nothing"


@pytest.mark.parametrize(
    ("policy", "zero"),
    [("skip", 0), ("lower_lr", 3), pytest.param("skip", 2, marks=pytest.mark.slow)],
)
def test_a_skipped_step_was_never_applied(
    policy: str, zero: int, tmp_path: Path, rank_pool: Pool
) -> None:
    """Weights, and every later line, are those of a run whose optimizer slept in that step."""
    ratio = 0.5 if policy == "lower_lr" else 1.0
    words = (f"train.on_bad_step={policy}", f"strategy.zero={zero}")
    run_dir = run_two(tmp_path / "run", *words)
    ours = rank_pool(2).run(attempt, run_dir, BadGradient((BAD,), rank=1))
    reference = run_two(tmp_path / "reference", f"strategy.zero={zero}")
    theirs = rank_pool(2).run(attempt, reference, NoUpdate((BAD,), lr_ratio=ratio))
    for rank in range(2):
        assert_equal(ours[rank], theirs[rank])
    mine = numbers(run_dir)
    assert [line[0] for line in mine] == list(range(1, STEPS + 1))
    bad = mine.pop(BAD - 1)
    assert bad[2] is None and bad[5] == "nan", "JSON has no NaN"
    good = numbers(reference)
    # What is done to the loss is nothing: only the gradient was bad.
    assert bad[:2] == good.pop(BAD - 1)[:2]
    assert mine == good
    (event,) = events(run_dir)
    assert event["action"] == ("skipped" if policy == "skip" else "lowered the rate")
    assert (event["layer"], event["rank"], event["lr_ratio"]) == (LAYER, 1, ratio)


@pytest.mark.parametrize("policy", ["skip", pytest.param("lower_lr", marks=pytest.mark.slow)])
def test_what_was_skipped_is_remembered_across_a_restart(
    policy: str, tmp_path: Path, rank_pool: Pool
) -> None:
    """Stopped after the bad step, and killed after it: goes on as the undisturbed run does."""
    words = (f"train.on_bad_step={policy}", "train.max_bad_steps=2",
             "train.max_bad_steps_in_row=1", "train.spike_factor=50")  # fmt: skip
    faults = BadGradient((BAD, BAD + 7), rank=1)
    straight = run_two(tmp_path / "straight", *words)
    theirs = rank_pool(2).run(attempt, straight, faults)
    cut = run_two(tmp_path / "cut", *words)
    rank_pool(2).run(attempt, cut, faults, BAD + 1)
    crash = rank_pool(2).run(attempt, cut, Both(faults, Crash(STEPS - 1)))
    assert crash == ["crashed"] * 2
    ours = rank_pool(2).run(attempt, cut, faults)
    for rank in range(2):
        assert_equal(ours[rank], theirs[rank])
    assert numbers(cut) == numbers(straight)
    assert events(cut) == events(straight)
    assert [event["step"] for event in events(cut)] == [BAD, BAD + 7]
    assert train_state(cut, STEPS) == train_state(straight, STEPS)


def window_skipped(run_dir: Path, *words: str, pool: RankPool) -> Any:
    """Train a run that by hand leaves out the samples of steps SAVED+1 to BAD; return weights."""
    run_two(run_dir, *words)
    pool.run(attempt, run_dir, None, SAVED)
    folder = run_dir / paths.CHECKPOINTS / f"step_{SAVED:08d}"
    manifest = read_manifest(folder)
    manifest.train_state["samples"] = BAD * ROWS
    (folder / NAME).write_text(manifest.to_json())
    return pool.run(attempt, run_dir, None)


@pytest.mark.parametrize("zero", [0, pytest.param(3, marks=pytest.mark.slow)])
def test_rollback_goes_on_behind_the_window(zero: int, tmp_path: Path, rank_pool: Pool) -> None:
    words = ("train.on_bad_step=rollback", f"strategy.zero={zero}", "metrics.tensorboard=true",
             "train.eval_every_steps=3")  # fmt: skip
    theirs = window_skipped(tmp_path / "reference", *words, pool=rank_pool(2))
    run_dir = run_two(tmp_path / "run", *words)
    ours = rank_pool(2).run(attempt, run_dir, BadGradient((BAD,), rank=1))
    for rank in range(2):
        assert_equal(ours[rank], theirs[rank])
    assert numbers(run_dir) == numbers(tmp_path / "reference")
    texts = [(d / paths.METRICS).read_text() for d in (run_dir, tmp_path / "reference")]
    evaluated = [
        [(x["step"], x["val_loss"]) for x in map(json.loads, t.splitlines()) if "val_loss" in x]
        for t in texts
    ]
    assert evaluated[0] == evaluated[1] and [step for step, _ in evaluated[0]][:2] == [3, 6]
    (event,) = events(run_dir)
    assert (event["action"], event["step"], event["to_step"]) == ("rolled back", BAD, SAVED)
    assert event["samples"][1] == BAD * ROWS
    state, good = (train_state(d, STEPS) for d in (run_dir, tmp_path / "reference"))
    assert state["bad"].pop("rollbacks") == state["bad"].pop("count") == 1
    assert state["bad"].items() <= good["bad"].items() and state["samples"] == good["samples"]


@pytest.mark.slow
def test_rollback_restores_what_powersgd_remembers(tmp_path: Path, rank_pool: Pool) -> None:
    """The bad gradient has passed through its memory of errors before anybody saw it."""
    words = ("train.on_bad_step=rollback", "sync.compression=powersgd", "sync.powersgd_rank=2",
             "sync.powersgd_start_step=2")  # fmt: skip
    theirs = window_skipped(tmp_path / "reference", *words, pool=rank_pool(2))
    run_dir = run_two(tmp_path / "run", *words)
    ours = rank_pool(2).run(attempt, run_dir, BadGradient((BAD,), rank=1))
    assert_equal(ours[0], theirs[0])
    assert numbers(run_dir) == numbers(tmp_path / "reference")


def test_replicas_that_train_apart_stop_each_with_its_own_words(
    tmp_path: Path, rank_pool: Pool
) -> None:
    run_dir = run_two(tmp_path / "run", "sync=local_sgd", "sync.sync_every_steps=4")
    both = Both(BadGradient((BAD,), rank=0), BadGradient((BAD,), rank=1, layer="blocks.0.ffn.w1"))
    said = rank_pool(2).run(attempt, run_dir, both)
    for rank, layer in enumerate((LAYER, "blocks.0.ffn.w1")):
        assert f"is {layer}: the gradient of its output, on rank {rank}" in said[rank]
    assert sorted(event["rank"] for event in events(run_dir)) == [0, 1]


def test_a_rollback_outlives_a_crash(tmp_path: Path, rank_pool: Pool) -> None:
    """Killed after it and before the next checkpoint: the samples left out stay out."""
    words = ("train.on_bad_step=rollback",)
    faults = BadGradient((BAD,), rank=1)
    straight, cut = (run_two(tmp_path / name, *words) for name in ("straight", "cut"))
    theirs = rank_pool(2).run(attempt, straight, faults)
    crash = rank_pool(2).run(attempt, cut, Both(faults, Crash(SAVED + 2, BAD * ROWS)))
    assert crash == ["crashed"] * 2
    # Nothing is planted any more: who forgot the rollback would train on its samples now.
    ours = rank_pool(2).run(attempt, cut, None)
    assert_equal(ours[0], theirs[0])
    assert numbers(cut) == numbers(straight)
    assert events(cut) == events(straight)


@pytest.mark.parametrize(
    ("words", "bad", "said", "actions"),
    [
        (("skip", "train.max_bad_steps_in_row=2"), (5, 6, 7), "train.max_bad_steps_in_row=2", 2),
        (("skip", "train.max_bad_steps=2"), (3, 5, 9), "train.max_bad_steps=2", 2),
        (("skip",), (1,), "No step of this run has been good yet", 0),
        (("rollback", "train.max_rollbacks=1"), (5, 7), "train.max_rollbacks=1", 1),
        (("rollback",), (2,), "there is no checkpoint to go back to yet", 0),
    ],
    ids=["in a row", "in all", "first", "rollbacks", "no checkpoint"],
)  # fmt: skip
def test_bounds_end_the_run_loudly(
    words: tuple[str, ...], bad: tuple[int, ...], said: str, actions: int,
    tmp_path: Path, rank_pool: Pool,
) -> None:  # fmt: skip
    run_dir = run_two(tmp_path / "run", *(f"train.on_bad_step={words[0]}", *words[1:]))
    ends = rank_pool(2).run(attempt, run_dir, BadGradient(bad, rank=1))
    assert isinstance(ends[0], str) and ends[0] == ends[1]
    assert said in ends[0]
    assert [event["action"] == "stopped" for event in events(run_dir)] == [False] * actions + [True]


@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_a_spike_is_one_decision_of_all(policy: str, tmp_path: Path, rank_pool: Pool) -> None:
    """The loss of one rank alone is three times what it was: that of the step, twice."""
    at = 25
    words = ("train.steps=28", f"train.on_bad_step={policy}", "train.spike_factor=1.7",
             "checkpoint.every_steps=10")  # fmt: skip
    run_dir = run_two(tmp_path / "run", *words)
    ours = rank_pool(2).run(attempt, run_dir, Spike(at, 3.0, rank=1))
    (event,) = events(run_dir)
    assert (event["step"], event["what"], event.get("layer")) == (at, "spike", None)
    assert 1.7 < event["loss"] / event["loss_mean"] < 2.3
    if policy == "stop":
        assert ours[0] == ours[1] and "more than train.spike_factor=1.7 times" in ours[0]
        return
    reference = run_two(tmp_path / "reference", "train.steps=28", "checkpoint.every_steps=10")
    theirs = rank_pool(2).run(attempt, reference, NoUpdate((at,)))
    assert_equal(ours[1], theirs[1])
