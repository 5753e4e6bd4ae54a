"""Evaluation reads every token once and gives one mean, however many processes read."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.distributed import RankPool
from tests.support.runs import tiny_run, train_frozen
from tests.support.runs import validation_losses as losses

FP64_RTOL = 1e-10


@pytest.mark.multiprocess
@pytest.mark.parametrize("zero", [0, 3])
@pytest.mark.parametrize("micro", [1, 2])
def test_the_loss_does_not_depend_on_who_reads(
    micro: int, zero: int, tmp_path: Path, rank_pool: Callable[[int], RankPool]
) -> None:
    """The split's last window is padded and its windows do not divide over the ranks."""
    overrides = ("train.steps=6", "train.eval_every_steps=3", "train.eval_tokens=null")
    one = tiny_run(tmp_path / "one", *overrides)
    train_frozen(one)
    many = tiny_run(
        tmp_path / "many", *overrides, "strategy=data", f"strategy.zero={zero}",
        f"train.micro_batch_size={micro}", world_size=2,
    )  # fmt: skip
    rank_pool(2).run(train_frozen, many)
    assert [line[0] for line in losses(one)] == [3, 6]
    for ours, theirs in zip(losses(many), losses(one), strict=True):
        assert ours == pytest.approx(theirs, rel=FP64_RTOL)
