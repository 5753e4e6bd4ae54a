"""Whose fault a hang is, by what ranks say of themselves; how it is told."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtrain.distributed.pending import Collective, Traffic
from llmtrain.train.hang import Hang, Silence, Standing, _named
from llmtrain.train.watch import Limits
from llmtrain.train.whereabouts import WIDTH, Place, Whereabouts

ALL = "default_pg 0"
SLEEP = ("llmtrain/train/trainer.py:1 run\n  f()", "site/x.py:5 sleep\n  time.sleep(9)")
WAIT = ("llmtrain/train/step.py:2 agree\n  g()", "torch/distributed/c10d.py:3 all_reduce")


def collective(number: int, *ranks: int, group: str = ALL) -> Collective:
    return Collective("all_reduce", group, number, ranks, ("float[3]",))


def standing(step: int = 7, **more: Any) -> Standing:
    place = more.pop("place", Place("step", step))
    return Standing(node="n", pid=5, looks=9, place=place, idle_s=3.0, is_stuck=True, **more)


def waiting(*pending: Collective, step: int = 7, asked: dict[str, int] | None = None) -> Standing:
    traffic = Traffic(pending, {p.group: p.number for p in pending} | (asked or {}))
    return standing(step, stack=WAIT, waits_in=str(pending[0]), traffic=traffic)


def hang(*standing: Standing, silent: dict[int, Silence] | None = None) -> Hang:
    return Hang(dict(enumerate(standing)), silent or {}, "train.hang_timeout_s=2")


def test_the_one_that_is_not_in_the_collective_of_the_others() -> None:
    sleeper = standing(stack=SLEEP, traffic=Traffic((), {ALL: 8}))
    found = hang(waiting(collective(9, 0, 1, 2)), sleeper, waiting(collective(9, 0, 1, 2)))
    assert found.at_fault() == [1]
    assert found.cause() == (
        "rank 1 hangs in step 7, in site/x.py:5 sleep, called by llmtrain/train/trainer.py:1 run; "
        "ranks 0, 2 in all_reduce no. 9 of float[3] over all ranks"
    )


def test_waiting_is_followed_to_its_end() -> None:
    # Rank 0 waits for 1 in one group, which waits for 2 in another; 2 waits for nobody.
    inner = collective(4, 1, 2, group="mesh_tp 3")
    found = hang(
        waiting(collective(9, 0, 1)),
        waiting(inner, asked={ALL: 8}),
        standing(stack=SLEEP, traffic=Traffic((), {"mesh_tp 3": 3})),
    )
    assert found.at_fault() == [2]
    assert "over tp (ranks 1, 2)" in found.cause()


def test_of_two_that_wait_for_nobody_the_missed_one() -> None:
    done = standing(stack=SLEEP, traffic=Traffic((), {ALL: 9}))
    absent = standing(stack=SLEEP, traffic=Traffic((), {ALL: 8}))
    assert hang(waiting(collective(9, 0, 1, 2)), done, absent).at_fault() == [2]


def test_where_all_wait_the_one_behind() -> None:
    ahead = waiting(collective(9, 0, 1), step=8)
    behind = standing(7, stack=WAIT, waits_in="_wait_batch_p2p", traffic=Traffic())
    assert hang(ahead, behind).at_fault() == [1]


def test_nobody_where_all_wait_for_each_other() -> None:
    found = hang(waiting(collective(9, 0, 1)), waiting(collective(3, 0, 1, group="mesh_tp 3")))
    assert found.at_fault() == []
    assert found.cause().startswith("no rank goes on, each waits for another; rank 0 in ")
    assert "rank 0: step 7" in found.report(Path("run"))


def test_a_silent_rank_before_all_others() -> None:
    quiet = Silence(standing(3), "its process is stopped, as by SIGSTOP", "save after step 6")
    found = hang(waiting(collective(9, 0, 1)), silent={1: quiet})
    assert found.at_fault() == [1]
    assert found.cause().startswith(
        "rank 1 hangs, last seen in save after step 6 on n (its process"
    )
    unseen = hang(waiting(collective(9, 0, 1)), silent={1: Silence(None)})
    assert "rank 1: never seen" in unseen.report(Path("run"))


def test_a_thousand_ranks_at_one_place_are_one_paragraph() -> None:
    ranks = [waiting(collective(9, *range(1000))) for _ in range(1000)]
    ranks[500] = standing(stack=SLEEP, traffic=Traffic((), {ALL: 8}))
    report = hang(*ranks).report(Path("run"))
    assert len(report.splitlines()) < 30
    assert "ranks 0-499, 501-999: step 7, on n" in report


@given(st.sets(st.integers(0, 40), min_size=1))
def test_names_of_ranks_say_which(ranks: set[int]) -> None:
    named: set[int] = set()
    for span in _named(ranks).split(" ", 1)[1].split(", "):
        first, _, last = span.partition("-")
        named |= set(range(int(first), int(last or first) + 1))
    assert named == ranks


def test_what_a_rank_says_survives_the_way_through_the_store() -> None:
    said = waiting(collective(9, 0, 1))
    assert Standing.from_json(json.loads(json.dumps(said.to_json()))) == said


@pytest.mark.parametrize(
    ("takes_long", "longest_s", "limit_s", "named"),
    [
        (False, 0.0, 10.0, "train.hang_timeout_s=10"),
        (False, 3.0, 10.0, "train.hang_timeout_s=10"),
        (False, 9.0, 27.0, "3 times the longest step so far"),
        (True, 9.0, 60.0, "train.hang_timeout_slow_s=60"),
    ],
)
def test_limits(takes_long: bool, longest_s: float, limit_s: float, named: str) -> None:
    assert Limits(10.0, 60.0).of(takes_long, longest_s) == (limit_s, named)


def test_only_the_first_step_and_what_is_no_step_may_take_long(tmp_path: Path) -> None:
    where = Whereabouts(tmp_path / "place")
    seen = [where.now[2]]
    for phase, step in (("step", 5), ("step", 6), ("save", 6), ("step", 7)):
        where.enter(phase, step)
        seen.append(where.now[2])
    assert seen == [True, True, False, True, False]
    assert where.now[0] == 4
    assert (tmp_path / "place").read_text() == "step 7".ljust(WIDTH - 1) + "\n"


def test_a_place_that_cannot_be_written_costs_nothing(tmp_path: Path) -> None:
    where = Whereabouts(tmp_path / "no" / "folder")
    where.enter("step", 1)
    full = Whereabouts(Path("/dev/full"))
    full.enter("step", 2)
    full.enter("step", 3)
    assert full.now[1] == Place("step", 3)
