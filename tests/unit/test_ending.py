"""What is said at the end of a run."""

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from llmtrain.tasks.ending import resume_command


@pytest.mark.parametrize("active", [True, False], ids=["environment active", "not active"])
def test_the_line_that_goes_on_can_be_typed(
    active: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "my conf"
    (own / "model").mkdir(parents=True)
    (own / "model" / "small.yaml").write_text("defaults: [gpt_micro, _self_]\nn_layers: 1\n")
    typed = ["--config-dir", str(own), "model=small", "tokenizer=byte", "run_dir=gone"]
    (tmp_path / "overrides.yaml").write_text(yaml.safe_dump(typed))
    folder = Path(sys.executable).parent
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin" if active else "/usr/bin:/bin")
    line = resume_command(tmp_path)
    assert line.startswith("llmtrain ") is active
    assert shlex.split(line)[-1] == f"run_dir={tmp_path}" and "gone" not in line
    assert shutil.which("bash") is not None
    composed = subprocess.run(
        ["bash", "-c", f"{line} --cfg job"], capture_output=True, text=True, check=True
    )
    assert yaml.safe_load(composed.stdout)["model"]["n_layers"] == 1
