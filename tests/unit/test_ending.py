"""What is said at the end of a run."""

import io
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from rich.console import Console

from llmtrain.lifeline import PARENT_ENV
from llmtrain.tasks.ending import resume_command, tell_end


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


def said_at_the_end(run_dir: Path) -> str:
    """Return what a run says that was preempted."""
    ending: Any = SimpleNamespace(
        run=None, state=SimpleNamespace(step=5, tokens=80), start_tokens=0,
        plan=SimpleNamespace(steps=9),
    )  # fmt: skip
    result: Any = SimpleNamespace(status="preempted", train_loss=1.0, val_loss=None)
    out = io.StringIO()
    run_dir.mkdir(exist_ok=True)
    tell_end(ending, result, run_dir, Console(file=out, width=200), 1.0)
    return out.getvalue()


@pytest.mark.parametrize("of_sweep", [False, True])
def test_a_job_of_a_sweep_does_not_say_how_to_go_on_without_it(
    of_sweep: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PARENT_ENV, "1")
    if of_sweep:
        (tmp_path / "sweep.json").touch()
    said = said_at_the_end(tmp_path / "2")
    assert said.startswith("preempted at step 5/9")
    assert ("go on with: " in said) is not of_sweep
