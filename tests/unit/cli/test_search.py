"""The search of a sweep by Optuna itself, without runs."""

import re
import warnings
from pathlib import Path

import pytest

from llmtrain.commands.compose import Composer
from llmtrain.commands.search import JOURNAL, Search
from llmtrain.commands.sweep_jobs import read_sweep, words_of
from llmtrain.config.sweep import Job, SweepRecord, load_sweep
from llmtrain.errors import ConfigError

pytest.importorskip("optuna", reason="needs the extra llmtrain[optuna]")

SPACE = (
    "optimizer.lr=tag(log, interval(1e-4, 1e-2))",
    "optimizer=adamw,sgd",
    "train.seed=range(1,8,2)",
    "model.n_layers=int(interval(1, 4))",
    "experiment_name='a, b'",
)


def sweep_of(train: Composer, folder: Path, *words: str) -> SweepRecord:
    sweep = read_sweep(train, ["sweep.trials=6", "train.steps=100", *words])
    sweep.folder = folder
    return sweep


def opened(train: Composer, sweep: SweepRecord) -> Search:
    return Search(sweep, words_of(train, sweep), sweep.folder)


def ask(search: Search) -> Job:
    job = search.ask()
    assert job is not None
    return job


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_draws_from_every_kind_of_space(train: Composer, tmp_path: Path, sampler: str) -> None:
    sweep = sweep_of(train, tmp_path, f"sweep.sampler={sampler}", "sweep.startup_trials=2", *SPACE)
    search = opened(train, sweep)
    for number in range(6):
        job = ask(search)
        assert job.number == number and len(job.given) == 4
        run = train.compose(job.overrides).config
        assert 1e-4 <= run.optimizer.lr <= 1e-2
        assert run.optimizer.name in ("adamw", "sgd")
        assert run.train.seed in (1, 3, 5, 7)
        assert 1 <= run.model.n_layers <= 4
        assert run.experiment_name == "a, b" and run.train.steps == 100
        job.status, job.val_loss = "completed", 1.0 + number
        search.tell(job)
    assert search.ask() is None
    assert len({job.label for job in sweep.jobs}) == 6
    # Not the digits that no person reads.
    assert re.search(r"optimizer.lr=[\d.]{1,9} ", sweep.jobs[0].label)


def test_learns_from_what_has_ended(train: Composer, tmp_path: Path) -> None:
    words = ["sweep.sampler=tpe", "sweep.trials=40", "train.seed=range(0,1000)"]
    sweep = sweep_of(train, tmp_path, *words)
    search = opened(train, sweep)
    distances = []
    while (job := search.ask()) is not None:
        distance = abs(int(job.given[0].partition("=")[2]) - 700)
        job.status, job.val_loss = "completed", float(distance)
        search.tell(job)
        distances.append(distance)
    assert sum(distances[-15:]) / 15 < sum(distances[:10]) / 10 / 2


@pytest.mark.parametrize("sampler", ["tpe", "cmaes"])
def test_goes_on_as_if_it_had_not_been_interrupted(
    train: Composer, tmp_path: Path, sampler: str
) -> None:
    drawn = []
    for name, deaths in (("whole", ()), ("cut", (2, 4))):
        (tmp_path / name).mkdir()
        words = [f"sweep.sampler={sampler}", "sweep.startup_trials=2", *SPACE[:1], SPACE[2]]
        sweep = sweep_of(train, tmp_path / name, *words)
        sweep.save()
        search = opened(train, sweep)
        for number in range(6):
            if number in deaths:
                sweep = load_sweep(sweep.folder)
                search = opened(train, sweep)
            job = ask(search)
            sweep.save()
            job.status, job.val_loss = "completed", 1.0 + number
            sweep.save()
            search.tell(job)
        drawn.append([job.given for job in sweep.jobs])
    assert drawn[0] == drawn[1]


def test_a_death_at_any_moment_loses_no_job(train: Composer, tmp_path: Path) -> None:
    sweep = sweep_of(train, tmp_path, "sweep.sampler=tpe", *SPACE)
    sweep.save()
    search = opened(train, sweep)
    first = ask(search)
    sweep.save()
    # One is drawn, and its death comes before the record is written; another has ended, and the
    # study was not told; and the study's file ends in half a line, its lock held.
    second = ask(search)
    first.status, first.val_loss = "completed", 2.0
    recorded = [job for job in sweep.jobs if job is first]
    sweep.jobs = recorded
    sweep.save()
    with (tmp_path / JOURNAL).open("a") as stream:
        stream.write('{"op_code": 4, "work')
    (tmp_path / f"{JOURNAL}.lock").symlink_to(JOURNAL)

    again = load_sweep(tmp_path)
    search = opened(train, again)
    assert [job.given for job in again.jobs] == [first.given, second.given]
    states = [trial.state.name for trial in search._study.get_trials()]
    assert states == ["COMPLETE", "RUNNING"]
    third = ask(search)
    assert third.number == 2
    opened(train, again)  # its file can be read


def test_a_bad_run_is_given_up_by_its_loss_so_far(train: Composer, tmp_path: Path) -> None:
    words = ["sweep.sampler=random", "sweep.pruner=median", "sweep.startup_trials=2",
             "sweep.warmup_steps=20", "train.eval_every_steps=10", *SPACE]  # fmt: skip
    sweep = sweep_of(train, tmp_path, *words)
    search = opened(train, sweep)
    for loss in (2.0, 2.2):
        job = ask(search)
        assert not any(search.report(job.number, step, loss) for step in (10, 20, 30))
        job.status, job.val_loss = "completed", loss
        search.tell(job)
    bad, good = ask(search), ask(search)
    assert not search.report(bad.number, 10, 9.0)  # in its warm-up
    assert search.report(bad.number, 20, 9.0)
    assert not search.report(bad.number, 20, 9.0)  # told before
    assert not search.report(good.number, 20, 1.0)
    bad.status, bad.val_loss = "pruned", 9.0
    search.tell(bad)
    assert search._study.trials[bad.number].state.name == "PRUNED"
    assert sweep.ranked()[-1] is not sweep.ranked()[0] and sweep.ranked()[0].val_loss == 2.0


@pytest.mark.parametrize(("loss", "given_up_at"), [(9.0, 500), (1.0, None)])
def test_old_lines_are_no_news_to_a_search_that_goes_on(
    train: Composer, tmp_path: Path, loss: float, given_up_at: int | None
) -> None:
    words = ["sweep.sampler=random", "sweep.pruner=median", "sweep.startup_trials=2",
             "train.eval_every_steps=100", *SPACE]  # fmt: skip
    sweep = sweep_of(train, tmp_path, *words)
    sweep.save()
    search = opened(train, sweep)
    for good in (2.0, 2.2):
        job = ask(search)
        assert search.report(job.number, 500, good) is None
        job.status, job.val_loss = "completed", good
        search.tell(job)
    bad = ask(search)
    sweep.save()
    steps = range(100, 501, 100)
    for step in steps:  # and the sweep dies before it can give the run up
        search.report(bad.number, step, loss)

    search = opened(train, load_sweep(tmp_path))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Optuna warns of every step that it has been told of
        told = [search.report(bad.number, step, loss) for step in steps]
    assert told == [given_up_at, None, None, None, None]
    assert search.report(bad.number, 600, loss) is None  # no other run has come so far
    assert list(search._study.trials[2].intermediate_values) == [*steps, 600]


@pytest.mark.parametrize("pruner", ["successive_halving", "hyperband"])
def test_other_pruners_compare_at_rungs(train: Composer, tmp_path: Path, pruner: str) -> None:
    words = ["sweep.sampler=random", f"sweep.pruner={pruner}", "sweep.trials=12",
             "train.eval_every_steps=10", *SPACE]  # fmt: skip
    sweep = sweep_of(train, tmp_path, *words)
    search = opened(train, sweep)
    given_up = []
    while (job := search.ask()) is not None:
        loss = 1.0 if job.number % 4 == 0 else 3.0
        if any(search.report(job.number, step, loss) for step in range(10, 100, 10)):
            given_up.append(job.number)
            job.status = "pruned"
        else:
            job.status, job.val_loss = "completed", loss
        search.tell(job)
    assert given_up and 0 not in given_up


@pytest.mark.parametrize(
    "word",
    ["optimizer.lr=interval(1, 0)", "optimizer.lr=tag(log, interval(0, 1))",
     "train.seed=range(3, 3)"],
)  # fmt: skip
def test_a_space_without_values_is_refused(train: Composer, tmp_path: Path, word: str) -> None:
    sweep = sweep_of(train, tmp_path, "sweep.sampler=tpe", word)
    with pytest.raises(ConfigError, match=re.escape(word.partition("=")[0])):
        opened(train, sweep).ask()
