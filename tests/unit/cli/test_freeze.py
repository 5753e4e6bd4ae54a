"""The run directory is frozen whole, and nothing of an earlier start is lost."""

import json
from pathlib import Path

import pytest
import yaml

from llmtrain.commands.compose import Composer
from llmtrain.commands.freeze import freeze, run_folder
from llmtrain.config.plan import make_plan
from llmtrain.config.store import load_run_config
from llmtrain.errors import ConfigError


def test_frozen_is_what_was_composed(train: Composer, tmp_path: Path) -> None:
    overrides = ["model=llama_tiny", f"run_dir={tmp_path}/a"]
    run = train.compose(overrides).config
    folder = run_folder(run)
    assert freeze(run, make_plan(run, gpus=0), overrides, folder) is False
    assert load_run_config(folder / "config.yaml") == run
    assert yaml.safe_load((folder / "overrides.yaml").read_text()) == overrides
    assert json.loads((folder / "plan.json").read_text())["world_size"] == 1


def test_resuming_with_other_settings_keeps_the_earlier_ones(
    train: Composer, tmp_path: Path
) -> None:
    for number, steps in enumerate((1000, 1000, 2000, 3000)):
        overrides = [f"train.steps={steps}", f"run_dir={tmp_path}"]
        run = train.compose(overrides).config
        assert freeze(run, make_plan(run, gpus=0), overrides, run_folder(run)) is (number > 0)
    assert load_run_config(tmp_path / "config.yaml").train.steps == 3000
    assert load_run_config(tmp_path / "config.1.yaml").train.steps == 1000
    assert load_run_config(tmp_path / "config.2.yaml").train.steps == 2000
    assert yaml.safe_load((tmp_path / "overrides.2.yaml").read_text())[0] == "train.steps=2000"
    assert not (tmp_path / "config.3.yaml").exists()


def test_a_file_in_the_way_is_refused(train: Composer, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    run = train.compose([f"run_dir={tmp_path}/taken"]).config
    with pytest.raises(ConfigError, match="a file stands in the way"):
        run_folder(run)


def test_a_folder_of_something_else_is_refused(train: Composer, tmp_path: Path) -> None:
    run = train.compose([f"run_dir={tmp_path}"]).config
    for number in range(4):
        (tmp_path / f"chapter_{number}.md").write_text("")
    with pytest.raises(ConfigError, match=r"chapter_0\.md, chapter_1\.md, chapter_2\.md, \.\.\."):
        run_folder(run)
    assert len(list(tmp_path.iterdir())) == 4


def test_a_verification_has_a_folder_of_its_own(train: Composer, tmp_path: Path) -> None:
    earlier, trained = tmp_path / "earlier", tmp_path / "trained"
    for path in (earlier / "dp2", trained / "checkpoints"):
        path.mkdir(parents=True)
    (earlier / "verify.json").write_text("{}")
    (trained / "config.yaml").write_text("")

    def folder(path: Path) -> Path:
        run = train.compose([f"run_dir={path}"]).config
        return run_folder(run, marks=("verify.json",), leftovers=("logs",))

    assert folder(earlier) == earlier
    with pytest.raises(ConfigError, match=r"holds something else \(checkpoints, config\.yaml\)"):
        folder(trained)


@pytest.mark.parametrize("left", ["logs", "plan.json.tmp", ".nfs0001", "checkpoints"])
def test_what_a_start_has_left_is_no_something_else(
    left: str, train: Composer, tmp_path: Path
) -> None:
    (tmp_path / left).mkdir()
    assert run_folder(train.compose([f"run_dir={tmp_path}"]).config) == tmp_path
