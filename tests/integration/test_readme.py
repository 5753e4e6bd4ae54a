"""Every command of the README and docs/ works, and refusals read as they are shown there."""

import itertools
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from llmtrain.commands.compose import composer
from llmtrain.config.plan import make_plan
from tests.support.runs import environment

ROOT = Path(__file__).resolve().parents[2]
LLMTRAIN = Path(sys.executable).with_name("llmtrain")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PLACEHOLDERS = ("COMMAND", "RUN_DIR", "<command>", "DIR", " ... ")


def code_lines(page: Path) -> list[str]:
    """Return the lines of `page` that are code, those indented by four; the others as empty."""
    lines = page.read_text().splitlines()
    return [line[4:] if line.startswith("    ") else "" for line in lines]


def commands(page: Path) -> list[str]:
    """Return the command lines of llmtrain that `page` shows, those of several lines as one."""
    whole = "\n".join(code_lines(page)).replace("\\\n", " ").splitlines()
    lines = (line.removeprefix("$ ") for line in whole)
    return [line for line in lines if line.startswith("llmtrain ")]


def shown_refusals(page: Path) -> list[tuple[str, str]]:
    """Return (command, message) of every `$ llmtrain train ...` that is followed by a refusal."""
    lines, found = code_lines(page), []
    for number, line in enumerate(lines):
        if line.startswith("$ llmtrain train"):
            message = []
            for text in lines[number + 1 :]:
                if not text or text.startswith(("$", "llmtrain")):
                    break
                message.append(text)
            found.append((line.removeprefix("$ "), " ".join(message)))
    return found


TRAINING = [
    pytest.param(line, id=f"{page.name}: {line.split('#')[0].strip()}")
    for page in PAGES
    for line in commands(page)
    if line.startswith("llmtrain train") and not any(word in line for word in PLACEHOLDERS)
    if not any(line == shown for shown, _ in shown_refusals(page))
]

REFUSED = [pytest.param(*each, id=each[0]) for page in PAGES for each in shown_refusals(page)]


def test_the_pages_were_read() -> None:
    assert len(TRAINING) > 15 and len(REFUSED) >= 3


@pytest.mark.parametrize("line", TRAINING)
def test_every_training_command_composes_and_plans(line: str, tmp_path: Path) -> None:
    words = list(itertools.takewhile(lambda w: w not in "|>", shlex.split(line, comments=True)[2:]))
    if "-m" in words or any(word.startswith("sweep=") for word in words):
        return  # expanded by Hydra; tests/unit/cli/test_sweep.py does that
    (tmp_path / "books").mkdir()
    (tmp_path / "books" / "one.txt").write_text("To be, or not to be. " * 400)
    before = Path.cwd()
    os.chdir(tmp_path)
    try:
        with composer("train") as hydra:
            settings = [word for word in words if word not in ("-n", "--dry-run")]
            assert make_plan(hydra.compose(settings).config, gpus=0).world_size >= 1
    finally:
        os.chdir(before)


@pytest.mark.integration
@pytest.mark.parametrize(("line", "message"), REFUSED)
def test_a_refusal_reads_as_it_is_shown(line: str, message: str, tmp_path: Path) -> None:
    words = shlex.split(line, comments=True)[1:]
    ended = subprocess.run(
        [LLMTRAIN, *words], cwd=tmp_path, env=environment(COLUMNS="200"), capture_output=True,
        text=True, timeout=60,
    )  # fmt: skip
    assert ended.returncode == 2
    said = re.sub(r"[╭╮╰╯│─]", " ", ended.stderr).replace("error: configuration", "")
    assert " ".join(said.split()) == " ".join(message.split())


SHORT = (
    "train.steps=4", "train.eval_tokens=2048", "train.sample_tokens=8", "scheduler.warmup_steps=1",
    "train.eval_every_steps=null", "model.seq_len=32", "model.dim=32", "model.n_layers=4",
    "model.n_heads=4",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.integration
def test_what_to_do_next_can_be_done(tmp_path: Path) -> None:
    """The block of the README, line after line in one folder, with smaller models."""
    (tmp_path / "books").mkdir()
    for number in range(3):
        (tmp_path / "books" / f"{number}.txt").write_text(f"Book {number}. To be, or not. " * 400)
    text = (ROOT / "README.md").read_text().split("## What to do next")[1].split("\n\n")[1]
    lines = [shlex.split(line, comments=True) for line in text.splitlines()]
    assert len(lines) > 10
    for words in lines:
        program = str(Path(sys.executable).with_name(words[0]))
        short = SHORT if "train" in words else []
        # A synchronous start has to be shorter than the run, here too.
        words = [
            re.sub(r"^sync.warmup_sync_steps=.*", "sync.warmup_sync_steps=2", w) for w in words
        ]
        ended = subprocess.run(
            [program, *words[1:], *short], cwd=tmp_path, capture_output=True, text=True,
            env=environment(OMP_NUM_THREADS="1", LLMTRAIN_CACHE=str(tmp_path / "cache")),
            timeout=400,
        )  # fmt: skip
        assert ended.returncode == 0, f"{words}\n{ended.stderr}"
