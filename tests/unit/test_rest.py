"""Rests: who does what in which order, and who takes over when one dies meanwhile."""

from typing import Any

import torch

from llmtrain.sync.transport.hub import Answers
from llmtrain.train.rest import Rest
from llmtrain.train.token_clock import TokenClock


def rest(*, evaluates: bool, saves: bool, best: bool = False, present: int = 3) -> Rest:
    return Rest(
        step=8, evaluates=evaluates, saves=saves, weights=lambda: ({"0/a": torch.ones(1)}, {}),
        state=lambda: ({"rule|weights|0/a": torch.ones(1)}, {"server": {"core": 1}}),
        evaluated=lambda report: best, description=lambda: {"val_loss": None},
        present=set(range(present)),
    )  # fmt: skip


def orders(answers: Answers) -> dict[int, str]:
    return {worker: frame.fields["what"] for worker, frame in answers}


def done(one: Rest, worker: int, answers: Answers) -> Answers:
    given: dict[int, Any] = {w: f.fields["number"] for w, f in answers}
    return one.done(worker, {"number": given[worker]})


def test_all_write_then_the_lead_commits() -> None:
    one = rest(evaluates=False, saves=True)
    first = one.begin()
    assert orders(first) == {0: "write", 1: "write", 2: "write"}
    assert [frame.fields["lead"] for _, frame in first] == [True, False, False]
    assert [bool(frame.tensors) for _, frame in first] == [True, False, False]
    assert orders(done(one, 1, first)) == {}
    assert orders(done(one, 0, first)) == {}
    commit = done(one, 2, first)
    assert orders(commit) == {0: "commit"}
    assert commit[0][1].fields["parts"] == [0, 1, 2]
    assert orders(done(one, 0, commit)) == {} and one.phase == ""


def test_a_best_evaluation_is_saved_and_another_is_not() -> None:
    for best in (True, False):
        one = rest(evaluates=True, saves=False, best=best)
        first = one.begin()
        assert orders(first) == {0: "evaluate"}
        after = orders(done(one, 0, first))
        assert after == ({0: "write", 1: "write", 2: "write"} if best else {})
        assert one.phase == ("write" if best else "")


def test_another_leads_when_the_lead_dies() -> None:
    one = rest(evaluates=True, saves=True)
    one.begin()
    assert orders(one.lost(0)) == {1: "evaluate"}
    # It dies while all write; what is reported of the first order to write is out of date.
    again = one.done(1, {"number": one._number})
    assert orders(again) == {1: "write", 2: "write"}
    taken = one.lost(1)
    assert orders(taken) == {}  # 2 is still at the first order
    renewed = done(one, 2, again)
    assert orders(renewed) == {2: "write"} and renewed[0][1].fields["lead"]
    commit = done(one, 2, renewed)
    assert orders(commit) == {2: "commit"} and commit[0][1].fields["parts"] == [2]
    assert orders(one.lost(2)) == {} and one.phase == ""


def test_a_follower_that_dies_is_not_waited_for() -> None:
    one = rest(evaluates=False, saves=True)
    first = one.begin()
    done(one, 0, first)
    done(one, 1, first)
    assert orders(one.lost(2)) == {0: "commit"}


def test_steps_are_tokens() -> None:
    clock = TokenClock(tokens_per_step=10, total_steps=20, eval_every_steps=6, save_every_steps=4)
    assert [clock.step(t) for t in (0, 9, 10, 199, 200, 999)] == [0, 0, 1, 19, 20, 20]
    assert [clock.next_rest(t) for t in (0, 39, 40, 59, 60, 185, 195)] == [
        40, 40, 60, 60, 80, 200, 200,
    ]  # fmt: skip
    assert clock.evaluates(0, 7) and not clock.evaluates(6, 7) and clock.evaluates(18, 20)
    assert not clock.evaluates(20, 20)
    assert clock.saves(0, 4) and clock.saves(3, 9) and not clock.saves(8, 9)
    never = TokenClock(
        tokens_per_step=10, total_steps=20, eval_every_steps=None, save_every_steps=None
    )
    assert never.next_rest(0) == 200 and not never.evaluates(0, 19) and never.evaluates(0, 20)
