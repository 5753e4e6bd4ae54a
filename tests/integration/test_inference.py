"""`evaluate` and `generate` on a finished run, from the shell."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.runs import SYNTHETIC, TINY, environment, tiny_run, train_frozen

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny_run(
        tmp_path_factory.mktemp("inference") / "run", "train.steps=30", "train.eval_every_steps=10",
        "train.eval_tokens=null", "train.precision=fp32", "optimizer.lr=0.01",
        "checkpoint.keep_last=3",
    )  # fmt: skip
    train_frozen(folder)
    prepared = json.loads(llmtrain("prepare", *SYNTHETIC, "tokenizer=byte", "json=true"))["folder"]
    (folder / "tokenizer.json").write_bytes((Path(prepared) / "tokenizer.json").read_bytes())
    return folder


def llmtrain(*words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "llmtrain", *words], env=environment(), capture_output=True,
        text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_evaluate_gives_the_loss_that_training_logged(run_dir: Path) -> None:
    lines = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    logged = {line["step"]: line["val_loss"] for line in lines if "val_loss" in line}
    for step in (10, 30):
        answer = json.loads(llmtrain("evaluate", f"run={run_dir}", f"step={step}", "--json"))
        assert answer["loss"] == pytest.approx(logged[step], rel=1e-6)
        assert answer["step"] == step
    best = json.loads(llmtrain("evaluate", f"run={run_dir}", "--json"))
    assert best["step"] == min(logged, key=lambda step: logged[step])
    assert "perplexity" in llmtrain("evaluate", f"run={run_dir}", "split=train", "tokens=500")


def test_generate_is_a_function_of_the_seed(run_dir: Path) -> None:
    words = ("generate", f"run={run_dir}", "prompt=a b", "max_new_tokens=40")
    first, again = llmtrain(*words, "seed=1"), llmtrain(*words, "seed=1")
    other = llmtrain(*words, "seed=2")
    assert first == again
    assert first != other
    assert first.startswith("a b")
    plain = llmtrain(*words, "seed=1", "stream=false")
    assert plain == first
    answer = json.loads(llmtrain(*words, "seed=1", "n=3", "--json"))
    assert len(answer["texts"]) == 3
    assert len(set(answer["texts"])) == 3


def test_temperature_zero_takes_the_likeliest(run_dir: Path) -> None:
    words = ("generate", f"run={run_dir}", "prompt=a", "max_new_tokens=20", "temperature=0")
    assert llmtrain(*words, "seed=1") == llmtrain(*words, "seed=2")
    assert llmtrain(*words) == llmtrain(*words[:-1], "top_k=1", "temperature=1.0")


def test_a_tiny_run_needs_nothing_but_its_own_folder(run_dir: Path, tmp_path: Path) -> None:
    """The prepared data may be long gone: the run keeps its tokenizer."""
    done = subprocess.run(
        [sys.executable, "-m", "llmtrain", "generate", f"run={run_dir}", "max_new_tokens=5"],
        env=environment(LLMTRAIN_CACHE=str(tmp_path / "none")), capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "none").exists()
    assert TINY
