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
