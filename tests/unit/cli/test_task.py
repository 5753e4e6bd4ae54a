"""run=DIR that is no run: the one that was meant, or the newest."""

import os
from pathlib import Path

import pytest

from llmtrain.commands.task import check_run
from llmtrain.errors import ConfigError


@pytest.fixture(autouse=True)
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for age, name in enumerate(
        ("books/2026-01-02_a", "default/2026-01-01_b", "books/2025-12-31_c")
    ):
        folder = Path("runs") / name
        folder.mkdir(parents=True)
        (folder / "config.yaml").touch()
        os.utime(folder / "config.yaml", (1e9 - age, 1e9 - age))
    Path("empty").mkdir()


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("runs/books/2026-01-02_b", "Did you mean '2026-01-02_a'?"),
        ("runs/nope", "The newest nearby: run=runs/books/2026-01-02_a"),
        ("runs/default/nope", "The newest nearby: run=runs/default/2026-01-01_b"),
        ("elsewhere/nope", "The newest run here: run=runs/books/2026-01-02_a"),
        ("runs", "holds runs, and is none itself. The newest: run=runs/books/2026-01-02_a"),
        ("runs/default", "The newest: run=runs/default/2026-01-01_b"),
        ("empty", "it has no config.yaml. The newest run here: run=runs/books/2026-01-02_a"),
    ],
)
def test_refused_with_the_run_that_may_be_meant(typed: str, said: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        check_run(typed)
    assert said in str(refusal.value)


def test_a_run_is_accepted() -> None:
    check_run("runs/default/2026-01-01_b")
