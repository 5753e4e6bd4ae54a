"""What a run's server decides when replicas die, stand still and come back, at any moment."""

import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from llmtrain.config.plan import make_plan
from llmtrain.sync.transport.frame import Frame
from llmtrain.tasks.serve import open_stage
from llmtrain.train.conductor import Conductor
from llmtrain.train.state import TrainState
from tests.support.runs import SYNTHETIC, TINY, compose_run

STEPS, EVERY = 8, 2


class Desk(Conductor):
    """A real conductor of two replicas, with a clock that the test turns."""

    def __init__(self, run_dir: Path, *words: str) -> None:
        common = (*TINY, *SYNTHETIC, "strategy=data", f"train.steps={STEPS}", "sync=async_ps",
                  f"checkpoint.every_steps={EVERY}", "sync.dead_after_s=5")  # fmt: skip
        run = compose_run(*common, *words)
        plan = make_plan(run, gpus=0, world_size=2)
        known = {"vocab_size": 257, "n_parameters": 1, "flops_per_token": 1.0}
        self.whole_plan = dataclasses.replace(plan, **known)
        self.time_s = 0.0
        opening = partial(open_stage, run, run_dir, Console(quiet=True))
        super().__init__(run, 2, opening, run_dir, lambda: self.time_s)
        self.seq = [0, 0]
        self.version = [0, 0]

    def begin(self) -> None:
        """Let both join, the first with weights."""
        assert told(self.hello(0)) == [(0, "open")]
        said = {"plan": dataclasses.asdict(self.whole_plan), "first_sample": 0, "server": None,
                "rule": None, "train_state": TrainState().to_dict()}  # fmt: skip
        weights = {"rule|weights|0/w": torch.zeros(2)}
        assert self.handle(0, Frame("opening", said, weights)) == []
        assert told(self.hello(1)) == [(0, "weights"), (1, "weights")]

    def hello(self, worker: int, incarnation: int = 0) -> Sequence[tuple[int, Frame]]:
        self.seq[worker] = 0
        return self.handle(worker, Frame("hello", {"incarnation": incarnation}))

    def push(self, worker: int, incarnation: int = 0) -> list[tuple[int, str]]:
        self.seq[worker] += 1
        tokens = self.whole_plan.tokens_per_step // 2
        report = {"loss_sum": 1.0, "grad_norm": 1.0, "tokens": tokens, "steps": 1,
                  "comm_bytes": 0, "data_s": 0.0, "wait_s": 0.0, "memory_bytes": 0}  # fmt: skip
        assert self._stage is not None
        said = {"incarnation": incarnation, "seq": self.seq[worker], "local_steps": 1,
                "base_version": self._stage.core.version, "tokens": tokens, "stop": None,
                "report": report}  # fmt: skip
        return told(self.handle(worker, Frame("push", said, {"0/w": torch.ones(2)})))

    def done(self, worker: int, number: int, **more: Any) -> list[tuple[int, str]]:
        return told(self.handle(worker, Frame("done", {"number": number, **more})))

    def until_all_die_saving(self) -> None:
        """Push until an evaluation is due, which finds a best, and lose both while they save it."""
        assert self.push(0) == [(0, "weights")]
        assert self.push(1) == []
        assert self.push(0) == [(0, "evaluate")]
        best = {"val_loss": 1.0, "val_tokens": 3}
        assert self.done(0, 1, **best) == [(0, "write"), (1, "write")]
        self.lost(0)
        self.lost(1)

    def until_rest(self) -> None:
        """Push in turns until both rest at a checkpoint and were told to write their parts."""
        for _ in range(EVERY - 1):
            assert self.push(0) == [(0, "weights")]
            assert self.push(1) == [(1, "weights")]
        assert self.push(0) == [(0, "weights")]
        assert self.push(1) == []
        assert self.push(0) == [(0, "write"), (1, "write")]


def told(answers: Sequence[tuple[int, Frame]]) -> list[tuple[int, str]]:
    """Return who is told what: an order's name, else the frame's kind."""
    return [(worker, frame.fields.get("what", frame.kind)) for worker, frame in answers]


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    desk = Desk(tmp_path)
    desk.begin()
    return desk


def test_a_rest_goes_its_way(desk: Desk) -> None:
    desk.until_rest()
    assert desk.done(1, 1) == []
    assert desk.done(0, 1) == [(0, "commit")]
    assert desk.done(0, 2) == [(0, "weights"), (1, "weights")]


def test_a_checkpoint_that_nobody_lives_to_write_is_written_by_who_comes_next(desk: Desk) -> None:
    desk.until_rest()
    desk.lost(0)
    desk.lost(1)
    assert not desk.finished
    assert told(desk.hello(1, 1)) == [(1, "write")], "the checkpoint is still owed"
    assert desk.done(1, 1) == [(1, "commit")]
    assert desk.done(1, 2) == [(1, "weights")]


def test_a_run_whose_last_checkpoint_is_not_written_is_not_completed(tmp_path: Path) -> None:
    desk = Desk(tmp_path, "train.steps=1", "scheduler.warmup_steps=0")
    desk.begin()
    desk.until_all_die_saving()
    assert not desk.finished
    assert told(desk.hello(0, 1)) == [(0, "write")], "what was evaluated is still to be saved"
    assert desk.done(0, 1) == [(0, "commit")]
    assert not desk.finished
    assert desk.done(0, 2) == [(0, "stop")] and desk.finished


def test_a_best_that_nobody_lives_to_save_is_saved_by_who_comes_next(tmp_path: Path) -> None:
    desk = Desk(tmp_path, "checkpoint.every_steps=null", "train.eval_every_steps=1")
    desk.begin()
    desk.until_all_die_saving()
    assert told(desk.hello(1, 1)) == [(1, "write")]


def test_a_stop_that_nobody_lives_to_hear_is_obeyed_by_who_comes_next(desk: Desk) -> None:
    desk.push(0)
    desk.lost(0)
    desk.lost(1)
    assert told(desk.stop("preempted")) == []
    for now in (1.0, 2.0):
        desk.time_s = now
        assert told(desk.tick([])) == []
    assert told(desk.hello(0, 1)) == [(0, "write")]
    assert desk.done(0, 1) == [(0, "commit")]
    assert desk.done(0, 2) == [(0, "stop")]
    assert desk.finished and desk.status == "preempted"


def test_one_that_stood_still_in_a_rest_joins_again(desk: Desk) -> None:
    desk.until_rest()
    desk.time_s = 10.0
    assert told(desk.tick([0])) == []  # 1 is dead: the lead's own part is still to come
    assert desk.done(0, 1) == [(0, "commit")]
    assert desk.done(0, 2) == [(0, "weights")]
    assert desk.done(1, 1) == [(1, "rejected")]
    assert told(desk.hello(1, 1)) == [(1, "weights")]


def test_where_the_lead_stood_still_another_leads(desk: Desk) -> None:
    desk.until_rest()
    assert desk.done(1, 1) == []
    desk.time_s = 10.0
    assert told(desk.tick([1])) == [(1, "write")]
    assert desk.done(0, 1) == [(0, "rejected")]
    assert desk.done(1, 2) == [(1, "commit")]
    assert told(desk.hello(0, 1)) == []  # it comes too late for this rest
    assert desk.done(1, 3) == [(0, "weights"), (1, "weights")]
