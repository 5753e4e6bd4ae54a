"""The standard input as a source, from the shell."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from llmtrain.config.store import load_run_config
from tests.support.runs import TINY, environment

pytestmark = pytest.mark.integration

PROSE = "It was the best of times, it was the worst of times.\n" * 40


def llmtrain(*words: str, cwd: Path, stdin: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "llmtrain", *words], cwd=cwd,
        env=environment(LLMTRAIN_CACHE=str(cwd / "cache"), **env), input=stdin,
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def test_json_lines_are_prepared(tmp_path: Path) -> None:
    lines = "".join(json.dumps({"body": f"{PROSE} {i}"}) + "\n" for i in range(5))
    words = ("prepare", "data=jsonl", "data.path=-", "data.text_key=body", "tokenizer=byte")
    done = llmtrain(*words, "json=true", cwd=tmp_path, stdin=lines)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["documents"]["read"] == 5
    [kept] = (tmp_path / "cache" / "stdin").iterdir()
    assert kept.suffix == ".jsonl"
    assert kept.read_text() == lines


@pytest.mark.slow
def test_a_run_names_what_it_was_trained_on_and_goes_on(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    words = ["train", *TINY, "data=text", f"run_dir={run_dir}"]
    done = llmtrain(*words, "data.path=-", "train.steps=4", cwd=tmp_path, stdin=PROSE)
    assert done.returncode == 0, done.stderr
    path = load_run_config(run_dir / "config.yaml").data.path  # type: ignore[attr-defined]
    assert Path(path).read_text() == PROSE
    # Once more, with the same text; and from the file.
    done = llmtrain(*words, "data.path=-", "train.steps=5", cwd=tmp_path, stdin=PROSE)
    assert done.returncode == 0, done.stderr
    assert "resuming" in done.stderr
    assert load_run_config(run_dir / "config.yaml").data.path == path  # type: ignore[attr-defined]
    assert [p.name for p in (tmp_path / "cache" / "stdin").iterdir()] == [Path(path).name]


@pytest.mark.parametrize(
    ("words", "env", "said"),
    [
        (["prepare", "data=text"], {}, "the standard input is empty"),
        (["train", "data=text", "--dry-run"], {}, "save it to a file"),
        (["train", "-m", "data=text", "train.seed=1,2"], {}, "save it to a file"),
        (
            ["train", "data=text"],
            {"RANK": "0", "WORLD_SIZE": "1", "TORCHELASTIC_RUN_ID": "x"},
            "save it to a file",
        ),
    ],
)
def test_refused(tmp_path: Path, words: list[str], env: dict[str, str], said: str) -> None:
    done = llmtrain(*words, "data.path=-", cwd=tmp_path, stdin="", **env)
    assert done.returncode == 2, done.stderr
    assert said in " ".join(done.stderr.replace("│", " ").split())
    assert not list(tmp_path.glob("cache/stdin/*"))


def test_a_terminal_is_refused(tmp_path: Path) -> None:
    import pty

    _, terminal = pty.openpty()
    done = subprocess.run(
        [sys.executable, "-m", "llmtrain", "prepare", "data=text", "data.path=-"], cwd=tmp_path,
        env=environment(), stdin=terminal, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "which is a terminal" in done.stderr
