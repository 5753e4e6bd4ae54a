"""`evaluate` and `generate` on a finished run, from the shell."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from llmtrain.config.groups.inference import GenerateConfig
from llmtrain.tasks.generate import generate_texts
from llmtrain.tasks.inference import load_trained
from tests.support.runs import (
    SYNTHETIC,
    environment,
    tiny_run,
    train_frozen,
    validation_losses,
)

pytestmark = pytest.mark.integration

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny_run(
        tmp_path_factory.mktemp("inference") / "run", "train.steps=30", "train.eval_every_steps=10",
        "train.eval_tokens=null", "train.precision=fp32", "optimizer.lr=0.01",
        "checkpoint.keep_last=3", "data.samples=packed",
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
    logged = {step: loss for step, loss, _ in validation_losses(run_dir)}
    answer = json.loads(llmtrain("evaluate", f"run={run_dir}", "step=10", "--json"))
    assert answer["loss"] == pytest.approx(logged[10], rel=1e-6)
    assert answer["step"] == 10
    table = llmtrain("evaluate", f"run={run_dir}", "split=train", "tokens=500")
    assert "perplexity" in table
    best = min(logged, key=lambda step: logged[step])
    assert load_trained(run_dir, "best", CPU).manifest.step == best
    assert load_trained(run_dir, "latest", CPU).manifest.step == 30


def test_generate_is_a_function_of_the_seed(run_dir: Path) -> None:
    def texts(**changes: Any) -> list[str]:
        config = GenerateConfig(run=str(run_dir), prompt="a b", max_new_tokens=40, **changes)
        return generate_texts(trained, config)

    trained = load_trained(run_dir, "best", CPU)
    assert texts(seed=1) == texts(seed=1) != texts(seed=2)
    assert len(set(texts(seed=1, n=3))) == 3
    pieces: list[str] = []
    config = GenerateConfig(run=str(run_dir), prompt="a b", max_new_tokens=40, seed=1)
    whole = generate_texts(trained, config, on_text=pieces.append)
    assert "".join(pieces) == whole[0] == texts(seed=1)[0]
    printed = llmtrain("generate", f"run={run_dir}", "prompt=a b", "max_new_tokens=40", "seed=1")
    assert printed == "a b" + whole[0] + "\n"


def test_a_reader_that_leaves_ends_a_text_quietly(run_dir: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "llmtrain", "generate", f"run={run_dir}", "max_new_tokens=9"],
        env=environment(), stdout=write, stderr=subprocess.PIPE, text=True, timeout=120,
    )  # fmt: skip
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


def test_temperature_zero_takes_the_likeliest(run_dir: Path) -> None:
    def text(**changes: Any) -> list[str]:
        config = GenerateConfig(run=str(run_dir), prompt="a", max_new_tokens=20, **changes)
        return generate_texts(trained, config)

    trained = load_trained(run_dir, "best", CPU)
    greedy = text(temperature=0.0, seed=1)
    assert greedy == text(temperature=0.0, seed=2) == text(temperature=1.0, top_k=1)


def test_a_run_needs_nothing_but_its_own_folder(run_dir: Path, tmp_path: Path) -> None:
    """The prepared data may be long gone: the run keeps its tokenizer."""
    done = subprocess.run(
        [sys.executable, "-m", "llmtrain", "generate", f"run={run_dir}", "max_new_tokens=5",
         "--json"],
        env=environment(LLMTRAIN_CACHE=str(tmp_path / "none")), capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout)) == {"prompt", "texts", "step", "checkpoint"}
    assert not (tmp_path / "none").exists()
