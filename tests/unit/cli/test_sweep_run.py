"""How a sweep takes the end of its jobs, with processes that end at once."""

import json
from pathlib import Path

import pytest

from llmtrain.commands.compose import Composer
from llmtrain.commands.search import Search
from llmtrain.commands.sweep_jobs import read_sweep, words_of
from llmtrain.commands.sweep_run import SweepRun
from llmtrain.commands.sweep_view import SweepView
from llmtrain.launch.shares import Shares


def test_a_bad_run_that_ends_between_two_looks(train: Composer, tmp_path: Path) -> None:
    pytest.importorskip("optuna", reason="needs the extra llmtrain[optuna]")
    sweep = read_sweep(train, [
        "sweep.sampler=random", "sweep.trials=3", "sweep.pruner=median", "sweep.startup_trials=2",
        "train.eval_every_steps=10", "train.seed=range(1,9)",
    ])  # fmt: skip
    sweep.folder = tmp_path
    search = Search(sweep, words_of(train, sweep), tmp_path)
    for loss in (2.0, 2.2):
        good = search.ask()
        assert good is not None and not search.report(good.number, 10, loss)
        good.status, good.val_loss = "completed", loss
        search.tell(good)
    job = search.ask()
    assert job is not None

    shares = Shares(1, gpus=0, cores=1, visible=())
    running = SweepRun(train, sweep, search, shares, SweepView(sweep))
    run_dir = sweep.run_dir(job)
    run_dir.mkdir()
    with running._pool as pool:
        running._start(job, 0)  # it ends at once, since nothing is frozen there
        pool.children[job.number].process.wait()
        # What it might have written since the last look.
        (run_dir / "metrics.jsonl").write_text('{"step": 10, "val_loss": 9.0}\n')
        result = {"status": "completed", "step": 10, "val_loss": 9.0}
        (run_dir / "result.json").write_text(json.dumps(result))
        assert list(pool.ended()) == [job.number]
        running._end(job, 0)
    assert job.status == "completed" and job.val_loss == 9.0
    states = [trial.state.name for trial in search._study.get_trials()]
    assert states == ["COMPLETE"] * 3
    assert search._study.trials[2].intermediate_values == {10: 9.0}
