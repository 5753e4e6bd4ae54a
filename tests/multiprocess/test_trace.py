"""`metrics.trace`: what a real pipeline leaves behind, and that looking changes nothing."""

import json
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

from llmtrain.train.timeline import Action, read_trace
from tests.support.distributed import RankPool
from tests.support.runs import metric_lines, tiny_run, train_frozen

STEPS = ("train.steps=4", "train.global_batch_size=4", "train.micro_batch_size=1")
TRACED = ("metrics.trace=true", "metrics.trace_after_steps=1", "metrics.trace_steps=2")


@pytest.mark.multiprocess
@pytest.mark.parametrize(
    ("schedule", "kinds", "ideal"),
    [("1F1B", "FB", 0.2), ("InterleavedZeroBubble", "FIW", 0.04)],
)
def test_a_pipelines_trace_has_every_computation_in_an_order_that_can_be(
    schedule: str,
    kinds: str,
    ideal: float,
    tmp_path: Path,
    rank_pool: Callable[[int], RankPool],
) -> None:
    words = ("strategy=pipeline", f"strategy.schedule={schedule}", "model.n_layers=4", *STEPS)
    plain = tiny_run(tmp_path / "plain", *words, world_size=2)
    run = tiny_run(tmp_path / "traced", *words, *TRACED, world_size=2)
    for run_dir in (plain, run):
        rank_pool(2).run(train_frozen, run_dir)
    assert [x["loss"] for x in metric_lines(run)] == [x["loss"] for x in metric_lines(plain)]
    assert not (plain / "profile").exists()

    ranks = [read_trace(run / "profile" / f"rank_{rank}.json.gz") for rank in range(2)]
    assert [[step.step for step in steps] for steps in ranks] == [[2, 3], [2, 3]]
    stages = 2 if schedule == "1F1B" else 4
    for number in range(2):
        actions = [a for steps in ranks for a in steps[number].actions]
        by_name: dict[tuple[str, int, int], Action] = {
            (a.kind, a.stage, a.micro_batch): a for a in actions if a.kind != "L"
        }
        expected = {(k, s, m) for k in kinds for s in range(stages) for m in range(4)}
        assert set(by_name) == expected
        assert sum(a.kind == "L" for a in actions) == 4
        # A stage cannot begin before the one ahead of it is done.
        for m in range(4):
            for s in range(1, stages):
                assert by_name["F", s, m].at[0] >= by_name["F", s - 1, m].at[1]
                assert by_name[kinds[1], s - 1, m].at[0] >= by_name[kinds[1], s, m].at[1]

    summary = json.loads((run / "profile" / "timeline.json").read_text())
    assert summary["ideal_bubble"] == pytest.approx(ideal)
    assert summary["schedule"] == schedule
    assert 0.0 < summary["bubble"] < 1.0
    assert 0.0 <= summary["imbalance"] < 1.0 - summary["bubble"]
    for row in summary["ranks"]:
        parts = (row["compute_s"], row["communication_s"], row["idle_s"])
        assert all(part >= 0.0 for part in parts)
        assert sum(parts) == pytest.approx(row["wall_s"])
    ElementTree.parse(run / "profile" / "timeline.svg")


@pytest.mark.multiprocess
def test_a_sharded_runs_trace_tells_collectives_from_computing(
    tmp_path: Path, rank_pool: Callable[[int], RankPool]
) -> None:
    run = tiny_run(
        tmp_path / "run", "strategy=data", "strategy.zero=3", *STEPS[:2], *TRACED, world_size=2
    )
    rank_pool(2).run(train_frozen, run)
    summary = json.loads((run / "profile" / "timeline.json").read_text())
    assert (summary["schedule"], summary["bubble"]) == (None, None)
    assert len(summary["ranks"]) == 4
    for row in summary["ranks"]:
        assert row["compute_s"] > 0.0
        assert row["communication_s"] > 0.0
