"""`llmtrain replay`: the step is the run's own again, and nothing of the run changes."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtrain.config import paths
from llmtrain.config.groups.replay import ReplayConfig
from llmtrain.durable import hash_file
from llmtrain.errors import ConfigError
from llmtrain.tasks.replay import run_replay
from llmtrain.train.audit import LOWERED, ROLLED_BACK, SKIPPED, STOPPED, read_events
from llmtrain.train.replay import Course
from tests.support.distributed import RankPool
from tests.support.faults import ROWS, BadGradient
from tests.support.runs import metric_lines, tiny_run, train_frozen

RUN = ("train.steps=12", "checkpoint.every_steps=4", "checkpoint.keep_last=3", "model.dropout=0.1",
       "checkpoint.save_best=false")  # fmt: skip

SAME_LAYOUT = 1e-12
"""fp64: sums over two processes' halves of a batch come in another order."""


def replayed(
    capsys: pytest.CaptureFixture[str], run_dir: Path, **settings: Any
) -> list[dict[str, Any]]:
    assert run_replay(ReplayConfig(run=str(run_dir), json=True, device="cpu", **settings)) == 0
    return list(json.loads(capsys.readouterr().out)["steps"])


def contents(folder: Path) -> dict[str, tuple[str, int]]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path): (hash_file(path), path.stat().st_mtime_ns) for path in files}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_replayed_step_is_the_runs_own_bitwise(
    precision: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tiny_run(
        tmp_path / "run", *RUN, f"train.precision={precision}", "train.micro_batch_size=4"
    )
    train_frozen(run_dir)
    before = contents(run_dir)
    steps = replayed(capsys, run_dir, step="7..9")
    assert contents(run_dir) == before
    assert [step["step"] for step in steps] == [7, 8, 9]
    for step, line in zip(steps, metric_lines(run_dir)[6:9], strict=True):
        assert step["equal"] is True
        for key in ("loss", "grad_norm", "lr"):
            assert step[key] == line[key]
        assert step["positions"] == [(step["step"] - 1) * ROWS, step["step"] * ROWS]
        assert step["text"] is None
        layers = {layer["layer"]: layer for layer in step["layers"]}
        # The embedding is the head's too: its gradient is counted in both, and once in the norm.
        parts = ("embed", "positions", "blocks.0", "blocks.1", "norm")
        squares = [layers[name]["parameter_gradient_norm"] ** 2 for name in parts]
        assert math.sqrt(sum(squares)) == pytest.approx(step["grad_norm"], rel=1e-6)
        assert all(layer["output_norm"] > 0 for layer in step["layers"])


def test_a_replay_follows_what_the_run_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A step skipped at a lower rate, or a stretch gone back over, before the replayed one."""
    for policy, bad in (("lower_lr", 6), ("rollback", 7)):
        run_dir = tiny_run(tmp_path / policy, *RUN, f"train.on_bad_step={policy}")
        train_frozen(run_dir, plant=BadGradient((bad,)))
        (event,) = read_events(run_dir / paths.BAD_STEPS)
        step, *others = replayed(capsys, run_dir, step=f"{bad}..{bad + 1}")
        assert [other["equal"] for other in others] == [True]
        assert step["loss"] == metric_lines(run_dir)[bad - 1]["loss"]
        assert step["applied"] is (policy == "rollback")
        again = replayed(capsys, run_dir, event=1)[0]
        assert again["loss"] == event["loss"]
        assert again["positions"] == event["samples"] == [(bad - 1) * ROWS, bad * ROWS]
        assert (again["loss"] == step["loss"]) is (policy == "lower_lr")


def test_a_step_that_stopped_the_run_is_shown_layer_by_layer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tiny_run(
        tmp_path / "run", "train.steps=9", "optimizer=sgd", "optimizer.lr=1e12",
        "train.max_grad_norm=0", "train.precision=fp32", "scheduler=constant",
        "scheduler.warmup_steps=0",
    )  # fmt: skip
    with pytest.raises(FloatingPointError) as stopped:
        train_frozen(run_dir)
    (event,) = read_events(run_dir / paths.BAD_STEPS)
    (step,) = replayed(capsys, run_dir, event=1, from_start=True)
    assert step["text"] == event["text"] and step["text"] in str(stopped.value)
    assert step["first_not_finite"]["layer"] == event["layer"]
    names = [layer["layer"] for layer in step["layers"]]
    bad = [layer["output_not_finite"] > 0 for layer in step["layers"]]
    assert bad.index(True) == names.index(event["layer"])
    run_replay(ReplayConfig(run=str(run_dir), event=1, from_start=True, device="cpu"))
    assert "The first layer that is not finite is" in capsys.readouterr().out


@pytest.mark.multiprocess
def test_a_run_of_two_processes_is_replayed_in_one(
    tmp_path: Path, rank_pool: Callable[[int], RankPool], capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tiny_run(tmp_path / "run", *RUN, "strategy=data", "strategy.zero=3", world_size=2)
    rank_pool(2).run(train_frozen, run_dir)
    (step,) = replayed(capsys, run_dir, step="11")
    line = metric_lines(run_dir)[10]
    assert step["loss"] == pytest.approx(line["loss"], rel=SAME_LAYOUT)
    assert step["grad_norm"] == pytest.approx(line["grad_norm"], rel=SAME_LAYOUT)


def test_what_cannot_be_replayed_is_refused(tmp_path: Path) -> None:
    run_dir = tiny_run(tmp_path / "run", *RUN, "checkpoint.keep_last=1")
    train_frozen(run_dir)
    for settings, said in (
        ({"step": "3"}, "no checkpoint before this step; its oldest is of step 12"),
        ({"step": "13"}, "step=13: run=.* has 12 steps"),
        ({"event": 1}, "has 0 lines in logs/bad_steps.jsonl"),
    ):
        with pytest.raises(ConfigError, match=said):
            run_replay(ReplayConfig(run=str(run_dir), device="cpu", **settings))
    for settings, said in (
        ({"step": "x"}, "step=x is not a step"),
        ({}, "step is missing"),
        ({"step": "3", "event": 1}, "step is missing"),
        ({"event": 0}, "lines count from 1"),
    ):
        with pytest.raises(ConfigError, match=said):
            ReplayConfig(run=str(run_dir), **settings)
    apart = tiny_run(
        tmp_path / "apart", "train.steps=4", "sync=local_sgd", "sync.sync_every_steps=2"
    )
    with pytest.raises(ConfigError, match="under sync=local_sgd replicas step apart"):
        run_replay(ReplayConfig(run=str(apart), step="2", device="cpu"))


def test_another_batch_size_since_is_refused(tmp_path: Path) -> None:
    run_dir = tiny_run(tmp_path / "run", *RUN, "checkpoint.keep_last=9")
    train_frozen(run_dir, stop_after=6)
    tiny_run(run_dir, *RUN, "checkpoint.keep_last=9", "train.global_batch_size=4")
    train_frozen(run_dir)
    with pytest.raises(ConfigError, match=r"another train\.global_batch_size than the 4"):
        run_replay(ReplayConfig(run=str(run_dir), step="5", device="cpu"))


@given(st.lists(st.sampled_from([None, None, None, SKIPPED, LOWERED, ROLLED_BACK, STOPPED]),
                max_size=60), st.integers(1, 6))  # fmt: skip
def test_a_course_tells_of_the_steps_that_last(happenings: list[str | None], every: int) -> None:
    """A run that skips, goes back and stops at random, beside what its audit log tells."""
    step, samples, saved, events = 0, 0, 0, []
    seen: dict[int, int] = {}
    left_out: set[int] = set()
    for what in happenings:
        event = {"step": step + 1, "action": what, "samples": [samples, samples + ROWS],
                 "lr_ratio": 1.0}  # fmt: skip
        if what is not None:
            events.append(event)
        if what == STOPPED:  # nothing of it lasts
            continue
        seen[step + 1] = samples
        left_out.discard(step + 1)
        samples += ROWS
        if what == ROLLED_BACK:
            event["to_step"] = step = saved
            left_out = {s for s in left_out if s <= step}
            continue
        step += 1
        if what is not None:
            left_out.add(step)
        if step % every == 0:
            saved = step
    course = Course.of(events)
    assert course.skipped == left_out
    for done in range(step):
        assert course.samples_at(done, 0, 0, ROWS) == seen[done + 1]
    assert course.samples_at(step, 0, 0, ROWS) == samples
