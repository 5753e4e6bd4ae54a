"""What a run says at its end."""

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from llmtrain.tasks.ending import tell_end


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
    tmp_path: Path, of_sweep: bool
) -> None:
    if of_sweep:
        (tmp_path / "sweep.json").touch()
    said = said_at_the_end(tmp_path / "2")
    assert said.startswith("preempted at step 5/9")
    assert ("go on with: llmtrain train" in said) is not of_sweep
