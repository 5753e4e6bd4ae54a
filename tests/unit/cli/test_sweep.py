"""Which jobs a sweep has, and what its record says of them."""

import json
import os
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import yaml

from llmtrain.cli import run
from llmtrain.commands.compose import Composer, composer
from llmtrain.commands.groups import groups
from llmtrain.commands.sweep_jobs import compose_job, freeze_job, make_folder, read_sweep
from llmtrain.config.store import load_run_config
from llmtrain.config.sweep import Job, SweepRecord, load_sweep, to_do
from llmtrain.errors import ConfigError
from llmtrain.launch.shares import Shares

WHOLE = Shares(1, gpus=0, cores=2, visible=())
"""This machine, for one job at a time."""

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder of its own: sweeps are kept where one is, and one that is resumed goes there."""
    monkeypatch.chdir(tmp_path)


def jobs_of(train: Composer, *words: str) -> list[Job]:
    return read_sweep(train, words).jobs


def frozen(train: Composer, *words: str, shares: Shares = WHOLE) -> SweepRecord:
    """Return a sweep whose jobs are frozen, as they are before the first starts."""
    sweep = read_sweep(train, words)
    make_folder(sweep)
    for job in sweep.jobs:
        freeze_job(train, sweep, job, shares)
    sweep.save()
    return sweep


def test_every_combination(train: Composer) -> None:
    sweep = read_sweep(
        train, ["optimizer=adamw,lion", "train.steps=range(1,3)", "experiment_name=x"]
    )
    assert sweep.experiment_name == "x" and sweep.folder.parent.name == "x"
    assert [job.given for job in sweep.jobs] == [
        [f"optimizer={name}", f"train.steps={steps}"]
        for name in ("adamw", "lion")
        for steps in (1, 2)
    ]
    assert all("experiment_name=x" in job.overrides for job in sweep.jobs)


def test_choice_and_glob(train: Composer) -> None:
    jobs = jobs_of(train, "model=glob(llama_*,exclude=llama_*0*)", "train.seed=choice(1,2)")
    assert len(jobs) == 2 * 4  # llama_1b, llama_8b, llama_micro, llama_tiny


def test_a_sweep_of_yaml_and_what_is_typed_wins(train: Composer) -> None:
    sweep = read_sweep(train, ["sweep=optimizers", "train.steps=5", "sweep.parallel=2"])
    assert [job.given for job in sweep.jobs] == [
        [f"optimizer={n}"] for n in ("adamw", "lion", "muon")
    ]
    assert (sweep.experiment_name, sweep.settings.parallel) == ("optimizers", 2)
    jobs = jobs_of(train, "sweep=optimizers", "optimizer=sgd,adam")
    assert [job.given for job in jobs] == [["optimizer=sgd"], ["optimizer=adam"]]


@pytest.mark.parametrize("choice", groups("train")["sweep"].choices)
def test_every_sweep_of_yaml_has_jobs_that_run(
    choice: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["train", f"sweep={choice}", "-n"]) == 0
    assert "# job 0: " in capsys.readouterr().out


def test_what_only_some_jobs_can_take_is_their_own_matter(train: Composer) -> None:
    jobs = jobs_of(train, "optimizer=muon,adamw", "optimizer.momentum=0.9")
    assert train.compose(jobs[0].overrides).config.optimizer.momentum == 0.9
    with pytest.raises(ConfigError, match="momentum"):
        train.compose(jobs[1].overrides)


def test_no_job_knows_how_it_is_swept(train: Composer) -> None:
    sweep = frozen(train, "sweep.parallel=2", "train.seed=1,2")
    for job in sweep.jobs:
        assert not any(word.startswith("sweep") for word in job.overrides)
        assert "sweep" not in (sweep.run_dir(job) / "config.yaml").read_text().split("run_dir")[0]
        assert load_run_config(sweep.run_dir(job) / "config.yaml").train.seed == job.number + 1


def test_jobs_are_frozen_and_recorded_before_any_starts(train: Composer) -> None:
    sweep = frozen(train, "model.n_heads=3,2", "train.device=cpu")
    assert load_sweep(sweep.folder) == sweep
    assert [job.status for job in sweep.jobs] == ["refused", "not started"]
    assert "model.n_heads=3" in str(sweep.jobs[0].error)
    assert not sweep.run_dir(sweep.jobs[0]).exists()
    written = json.loads((sweep.folder / "sweep.json").read_text())["jobs"]
    assert written[1]["run_dir"] == str(sweep.folder / "1")


def test_what_is_frozen_is_not_composed_again_but_where_it_was_refused(train: Composer) -> None:
    sweep = frozen(train, "model.n_heads=3,2", "train.device=cpu")
    bad, good = sweep.jobs
    written = (sweep.run_dir(good) / "config.yaml").stat()
    good.status = "stopped"
    assert freeze_job(train, sweep, good, WHOLE) is None and good.status == "stopped"
    assert (sweep.run_dir(good) / "config.yaml").stat() == written
    sweep.run_dir(bad).mkdir()
    (sweep.run_dir(bad) / "config.yaml").write_text("of a refused start")
    assert freeze_job(train, sweep, bad, WHOLE) is not None


def test_a_long_sweep_composes_its_choices_once(
    train: Composer, monkeypatch: pytest.MonkeyPatch
) -> None:
    import llmtrain.commands.compose as module

    whole, calls = module.compose, []
    monkeypatch.setattr(module, "compose", lambda *a, **k: calls.append(a) or whole(*a, **k))
    sweep = read_sweep(train, ["optimizer=adamw,lion", "train.seed=range(8)"])
    for job in sweep.jobs:
        config = train.compose(job.overrides).config
        assert f"train.seed={config.train.seed}" in job.given
        assert f"optimizer={config.optimizer.name}" in job.given
    assert len(calls) <= 3  # what all share, and each optimizer


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["optimizer.lr=interval(0,1)"], "set sweep.sampler=tpe"),
        (["sweep.parallel=1,2"], "has one value"),
        (["sweep.parallel=0", "train.seed=1,2"], "must be positive"),
        (["sweep.paralel=2"], "Did you mean 'sweep.parallel'"),
        (["sweep.metric=loss"], "train_loss"),
        (["sweep.trials=4", "train.seed=1,2"], "sweep.sampler=grid tries every"),
        (["sweep.pruner=median", "train.seed=1,2"], "is for a search"),
        (["sweep.sampler=tpe", "train.seed=1,2"], "sweep.trials=20"),
        (["sweep.sampler=tpe", "sweep.trials=2"], "nothing to search"),
        (["train.seed=range(3,3)"], "empty"),
        (["run_dir=x", "train.seed=1,2"], "cannot share one"),
        (["sweep.sampler=tpe", "sweep.trials=2", "sweep.pruner=median", "train.seed=1,2",
          "train.eval_every_steps=null"], "train.eval_every_steps=50"),
        (["sweep.sampler=cmaes", "sweep.trials=2", "optimizer.lr=interval(1e-4,1e-2)",
          "model=glob(llama_*)", "train.seed=1,2"], "1 such setting; set sweep.sampler=tpe"),
        (["sweep.sampler=cmaes", "sweep.trials=2", "optimizer=adam,lion"], "0 such settings"),
        (["launcher=local,slurm"], "make a sweep of each"),
        (["launcher=torchrun", "launcher.nnodes=2", "launcher.rdzv_endpoint=a:1", "train.seed=1,2"],
         "launcher=torchrun cannot start the jobs of a sweep, only local and slurm can"),
        (["launcher=kubernetes", "train.seed=1,2"], "only local and slurm can"),
    ],
)  # fmt: skip
def test_what_makes_no_sweep_is_refused(train: Composer, words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_sweep(train, words)


def test_a_job_that_chooses_another_launcher_is_refused(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "far.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /launcher: torchrun\n"
    )
    with composer("train", [tmp_path]) as hydra:
        sweep = read_sweep(hydra, ["experiment=far,shakespeare_char_cpu"])
        with pytest.raises(ConfigError, match="only local and slurm can"):
            compose_job(hydra, sweep.jobs[0], WHOLE)
        compose_job(hydra, sweep.jobs[1], WHOLE)


def test_the_settings_of_a_sweep_are_refused_for_one_run(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(ConfigError, match="put -m first"):
        run(["train", "sweep.parallel=2", "-n"])


def test_one_gpu_at_least_for_each_job(train: Composer) -> None:
    two = Shares(4, gpus=2, cores=8, visible=("0", "1"))
    sweep = frozen(train, "train.device=auto,cpu", shares=two)
    assert [job.status for job in sweep.jobs] == ["refused", "not started"]
    assert "sweep.parallel=2, or train.device=cpu" in str(sweep.jobs[0].error)


def record(folder: Path, *jobs: Job, metric: str = "val_loss") -> SweepRecord:
    from llmtrain.config.groups.sweep import SweepConfig

    settings = SweepConfig(metric=metric)
    return SweepRecord(folder, "x", [], [], [], str(folder), settings, jobs=list(jobs))


def test_the_best_comes_first(tmp_path: Path) -> None:
    jobs = [
        Job(0, [], [], "completed", val_loss=2.0, train_loss=1.0),
        Job(1, [], [], "failed", val_loss=0.1),
        Job(2, [], [], "completed", val_loss=1.5, train_loss=3.0),
        Job(3, [], [], "completed", val_loss=float("nan")),
        Job(4, [], [], "pruned", val_loss=1.0),
    ]
    sweep = record(tmp_path, *jobs)
    assert [job.number for job in sweep.ranked()] == [2, 0, 3, 1, 4]
    sweep.save()
    ranks = [job["rank"] for job in json.loads((tmp_path / "sweep.json").read_text())["jobs"]]
    assert ranks == [2, None, 1, None, None]
    assert record(tmp_path, *jobs, metric="train_loss").ranked()[0].number == 0


def test_what_is_left_to_do() -> None:
    names = ["completed", "not started", "stopped", "pruned", "failed", "preempted", "refused"]
    left = to_do([Job(number, [], [], status) for number, status in enumerate(names)])
    # What has begun comes first.
    assert [job.number for job in left] == [2, 4, 5, 6, 1]


@pytest.mark.parametrize(
    ("code", "written", "status"),
    [
        (0, {"status": "completed", "val_loss": 1.0}, "completed"),
        (143, {"status": "preempted"}, "preempted"),
        (130, None, "stopped"),
        (-9, None, "failed"),
        (1, {"status": "failed", "error": "rank 0: x"}, "failed"),
        (2, None, "failed"),
    ],
)
def test_how_a_job_has_ended(
    tmp_path: Path, code: int, written: dict[str, object] | None, status: str
) -> None:
    job = Job(0, [], [], "running")
    sweep = record(tmp_path, job)
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "result.json").write_text(json.dumps(written or {"status": "completed"}))
    # What an earlier start left says nothing of this one.
    os.utime(tmp_path / "0" / "result.json", None if written else (100, 100))
    sweep.finish(job, code, since=200)
    assert job.status == status
    assert bool(job.error) == (status == "failed")


def test_a_resumed_sweep_takes_no_other_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record(tmp_path, Job(0, ["train.steps=3"], ["train.steps=3"], "completed", val_loss=1.0)).save()
    resume = ["train", "-m", f"sweep.resume={tmp_path}"]
    for words in (["train.steps=5"], ["sweep.seed=3"], ["--config-dir", str(tmp_path)]):
        with pytest.raises(ConfigError, match="and sweep\\.trials may change"):
            run([*resume, *words])
    with pytest.raises(ConfigError, match="cannot be read"):
        run(["train", "-m", f"sweep.resume={tmp_path / 'nowhere'}"])


def test_a_sweep_that_is_done_shows_its_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = [Job(n, [f"train.seed={n}"], [f"train.seed={n}"], "completed", val_loss=2.0 - n)
            for n in (0, 1)]  # fmt: skip
    record(tmp_path, *jobs).save()
    assert run(["train", f"sweep.resume={tmp_path}", "sweep.parallel=2"]) == 0
    rows = [line.split()[:4] for line in capsys.readouterr().out.splitlines()]
    assert rows[1:] == [["1", "1", "train.seed=1", "completed"],
                        ["2", "0", "train.seed=0", "completed"]]  # fmt: skip


def test_what_another_has_written_before_the_claim_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import llmtrain.commands.sweep as module

    words = ["model.n_heads=3"]  # refused, should it be tried
    record(tmp_path, Job(0, words, words)).save()
    claim = module.claimed

    def late(folder: Path, key: str) -> AbstractContextManager[None]:
        """Claim the folder when another, which had it, has just ended."""
        record(tmp_path, Job(0, words, words, "completed", val_loss=1.0)).save()
        return claim(folder, key)

    monkeypatch.setattr(module, "claimed", late)
    assert run(["train", "-m", f"sweep.resume={tmp_path}", "sweep.parallel=2"]) == 0
    kept = load_sweep(tmp_path)
    assert kept.jobs[0].status == "completed" and kept.jobs[0].val_loss == 1.0


def test_what_others_have_run_is_collected(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = Job(0, ["train.seed=1"], ["train.seed=1"])
    sweep = record(tmp_path, job)
    sweep.save()
    (tmp_path / "0").mkdir()
    result = {"status": "completed", "step": 9, "val_loss": 1.25}
    (tmp_path / "0" / "result.json").write_text(json.dumps(result))
    assert run(["train", f"sweep.resume={tmp_path}"]) == 0
    assert load_sweep(tmp_path).jobs[0].val_loss == 1.25


@pytest.mark.parametrize("more", [[], ["-m"], ["train.steps=200,400"]])
def test_choosing_a_sweep_implies_multirun(
    more: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["train", "sweep=optimizers", "-n", *more]) == 0
    out = capsys.readouterr().out
    assert out.count("# job") == (6 if "train.steps=200,400" in more else 3)
    for name in ("adamw", "lion", "muon"):
        assert f"optimizer={name}" in out


def test_an_experiment_may_be_a_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(
        "# @package _global_\nhydra:\n  mode: MULTIRUN\n  sweeper:\n    params:\n"
        "      optimizer: adamw,lion\n"
    )
    assert run(["train", "--config-dir", str(tmp_path), "experiment=mine", "-n"]) == 0
    assert capsys.readouterr().out.count("# job") == 2


def test_a_sweep_without_a_job_that_can_run_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["train", "-m", "model.n_heads=5,3"]) == 2
    said = capsys.readouterr()
    assert said.out.count("refused") == 2
    assert "is removed. Begin another sweep" in said.err and "sweep.resume" not in said.err
    assert not list(tmp_path.glob("sweeps/*/*"))


def test_why_a_job_is_refused_is_told_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["model.n_heads=3"]
    before = [Job(0, [], [], "completed"), Job(1, words, words, "refused", error="no 3 heads")]
    record(tmp_path, *before).save()
    assert run(["train", f"sweep.resume={tmp_path}"]) == 1
    err = capsys.readouterr().err
    assert err.count("model.n_heads=3") == 1 and "no 3 heads" not in err
    assert f"To go on: llmtrain train -m sweep.resume={tmp_path}" in err


def test_a_dry_run_shows_every_job(capsys: pytest.CaptureFixture[str]) -> None:
    dry = ["train", "-m", "-n"]
    assert run([*dry, "model.n_heads=5,4,3"]) == 1
    bad, good, last = capsys.readouterr().out.split("# job ")[1:]
    assert "# refused: " in bad and "model.n_heads=5" in bad.partition("refused")[2]
    assert "4 heads" in good and "refused" not in good
    assert "model.n_heads=3" in last.partition("# refused: ")[2]
    assert run([*dry, "model.n_heads=5,3"]) == 2
    assert run(["train", "-m", "--cfg", "job", "model.n_heads=5,4"]) == 1
    shown = list(yaml.safe_load_all(capsys.readouterr().out))
    assert shown[-1]["model"]["n_heads"] == 4


def test_a_sweep_that_has_ended_is_not_cancelled(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done, killed = Job(0, [], [], "completed"), Job(1, [], [], "running")
    record(tmp_path, done).save()
    assert run(["cancel", str(tmp_path)]) == 0
    assert capsys.readouterr().err == f"{tmp_path} is not running: 1 job: 1 completed\n"
    record(tmp_path, done, killed).save()
    assert run(["cancel", str(tmp_path)]) == 0
    assert "not running: 2 jobs: 1 completed, 1 stopped. To go on: " in capsys.readouterr().err
