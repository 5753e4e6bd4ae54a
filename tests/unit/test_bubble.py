"""The bubble that a schedule's own order leaves, against the formula of the papers."""

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining.schedules import get_schedule_class
from torch.testing._internal.distributed.fake_pg import FakeStore

from llmtrain.parallel.bubble import replayed_bubble, textbook_bubble


@pytest.fixture(params=[2, 4])
def pp(request: pytest.FixtureRequest) -> Iterator[int]:
    """A pipeline of that many processes, of which only this one is real."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=request.param)
    yield request.param
    dist.destroy_process_group()


def replay(schedule: str, stages: list[int], pp: int, micro_batches: int) -> float:
    n_stages = len(stages) * pp
    built = [
        PipelineStage(torch.nn.Linear(1, 1), stage, n_stages, torch.device("cpu"))
        for stage in stages
    ]
    made = get_schedule_class(schedule)(built, micro_batches, loss_fn=lambda *_: torch.zeros(()))
    return replayed_bubble(made.pipeline_order, n_stages)


@pytest.mark.parametrize("stages_per_rank", [2, 3])
@pytest.mark.parametrize("rounds", [2, 4])
def test_interleaved_1f1b_leaves_what_the_formula_says(
    pp: int, stages_per_rank: int, rounds: int
) -> None:
    stages = [pp * i for i in range(stages_per_rank)]
    measured = replay("Interleaved1F1B", stages, pp, rounds * pp)
    assert measured == pytest.approx(textbook_bubble(pp, stages_per_rank, rounds * pp), abs=1e-12)


@pytest.mark.parametrize("schedule", ["InterleavedZeroBubble", "ZBVZeroBubble", "DualPipeV"])
def test_zero_bubble_schedules_leave_less(pp: int, schedule: str) -> None:
    stages = [0, pp if schedule.startswith("Interleaved") else 2 * pp - 1]
    assert 0.0 < replay(schedule, stages, pp, 2 * pp) < 0.5 * textbook_bubble(pp, 2, 2 * pp)


def test_an_order_that_cannot_run_is_refused_and_not_waited_for(pp: int) -> None:
    stages = [PipelineStage(torch.nn.Linear(1, 1), 0, pp, torch.device("cpu"))]
    order = get_schedule_class("GPipe")(stages[0], 4, loss_fn=lambda *_: torch.zeros(()))
    with pytest.raises(ValueError, match="can ever run"):
        replayed_bubble({0: order.pipeline_order[1]}, pp)
