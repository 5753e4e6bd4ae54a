"""Which jobs a sweep has."""

from pathlib import Path

import pytest

from llmtrain.cli import run
from llmtrain.commands.compose import Composer
from llmtrain.commands.sweep import make_jobs
from llmtrain.errors import ConfigError


def test_every_combination(train: Composer) -> None:
    jobs, base = make_jobs(
        train, ["optimizer=adamw,lion", "train.steps=range(1,3)", "experiment_name=x"]
    )
    assert base.experiment_name == "x"
    assert [job.given for job in jobs] == [
        [f"optimizer={name}", f"train.steps={steps}"]
        for name in ("adamw", "lion")
        for steps in (1, 2)
    ]
    assert all("experiment_name=x" in job.overrides for job in jobs)


def test_choice_and_glob(train: Composer) -> None:
    jobs, _ = make_jobs(train, ["model=glob(llama_*,exclude=llama_*0*)", "train.seed=choice(1,2)"])
    assert len(jobs) == 2 * 4  # llama_1b, llama_8b, llama_micro, llama_tiny


def test_a_sweep_of_yaml_and_what_is_typed_wins(train: Composer) -> None:
    jobs, base = make_jobs(train, ["sweep=optimizers", "train.steps=5"])
    assert [job.given for job in jobs] == [[f"optimizer={n}"] for n in ("adamw", "lion", "muon")]
    assert base.experiment_name == "optimizers"
    jobs, _ = make_jobs(train, ["sweep=optimizers", "optimizer=sgd,adam"])
    assert [job.given for job in jobs] == [["optimizer=sgd"], ["optimizer=adam"]]


def test_what_only_some_jobs_can_take_is_their_own_matter(train: Composer) -> None:
    jobs, _ = make_jobs(train, ["optimizer=muon,adamw", "optimizer.momentum=0.9"])
    assert train.compose(jobs[0].overrides).config.optimizer.momentum == 0.9
    with pytest.raises(ConfigError, match="momentum"):
        train.compose(jobs[1].overrides)


def test_an_endless_sweep_is_refused(train: Composer) -> None:
    with pytest.raises(ConfigError, match="only lists"):
        make_jobs(train, ["optimizer.lr=interval(0,1)"])


@pytest.mark.parametrize("more", [[], ["-m"], ["train.steps=20,40"]])
def test_choosing_a_sweep_implies_multirun(
    more: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["train", "sweep=optimizers", "-n", *more]) == 0
    out = capsys.readouterr().out
    assert out.count("# job") == (6 if "train.steps=20,40" in more else 3)
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
