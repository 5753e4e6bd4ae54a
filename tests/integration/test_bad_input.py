"""Bad input, from the shell: one message that names it and the fix, exit code 2, nothing lost."""

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from llmtrain.errors import UserError
from tests.support.runs import SYNTHETIC, TINY, environment, freeze_run, train_frozen

pytestmark = pytest.mark.integration


def llmtrain(*words: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "llmtrain", *words], cwd=cwd, env=environment(**env),
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def _text(folder: Path, content: bytes, suffix: str = "") -> str:
    file = folder / f"corpus.txt{suffix}"
    file.write_bytes(content)
    return f"data.path={file}"


PROSE = b"It was the best of times, it was the worst of times.\n" * 40

Case = tuple[Callable[[Path], list[str]], list[str], bool]
"""Overrides, what the message says, and whether a worker had to be started to find out."""

CASES: dict[str, Case] = {
    "missing file": (
        lambda d: ["data=text", f"data.path={d / 'none.txt'}"], ["none.txt"], False,
    ),
    "no path": (lambda d: ["data=text"], ["data.path"], False),
    "empty corpus": (lambda d: ["data=text", _text(d, b"")], ["corpus.txt", "empty"], True),
    "only blanks": (lambda d: ["data=text", _text(d, b" \n \n")], ["corpus.txt"], True),
    "not UTF-8, strict": (
        lambda d: [
            "data=text", _text(d, PROSE + b"caf\xe9 " + PROSE), "data.errors=strict",
        ],
        ["corpus.txt", "UTF-8", "data.errors=skip"], True,
    ),
    "binary file": (
        lambda d: ["data=text", _text(d, PROSE + b"\0")],
        ["corpus.txt is not text", "NUL byte at offset 2120"], True,
    ),
    "torn gzip": (
        lambda d: ["data=text", _text(d, gzip.compress(os.urandom(5000))[:3000], ".gz")],
        ["corpus.txt.gz", "ends in the middle", "gzip -t"], True,
    ),
    "broken line, strict": (
        lambda d: ["data=jsonl", _text(d, b'{"text": "a"}\n{"text":\n'), "data.errors=strict"],
        ["corpus.txt:2: not JSON"], True,
    ),
    "no such column": (
        lambda d: ["data=csv", _text(d, b"id,body\n1,a\n")],
        ["no column 'text'", "id, body", "data.text_key"], True,
    ),
    "a field that is not there": (
        lambda d: ["data=csv", _text(d, b"id,label\n1,a\n"), "data.target=' {lable}'"],
        ["no column 'lable'", "Did you mean 'label'", "data.target"], True,
    ),
    "a target without a field": (
        lambda d: ["data=csv", _text(d, b"id,label\n1,a\n"), "data.target=label"],
        ["data.target='label' names no field", "{label}"], False,
    ),
    "a prompt without a target": (
        lambda d: ["data=jsonl", _text(d, b"{}"), "data.prompt='{text}'"],
        ["data.prompt", "without data.target"], False,
    ),
    "a target without fields": (
        lambda d: ["data=text", _text(d, PROSE), "data.target='{text}'"],
        ["there is no setting 'data.target'", "jsonl or csv or parquet or huggingface"], False,
    ),
    "a setting of before": (
        lambda d: ["data.encoding_errors=strict"], ["is spelt data.errors"], False,
    ),
    "smaller than a window": (
        lambda d: ["data=text", _text(d, PROSE), "model.seq_len=100000"],
        ["model.seq_len=100000", "tokens"], True,
    ),
    "vocabulary too small": (
        lambda d: [*SYNTHETIC, "model.vocab_size=100"], ["model.vocab_size=100", "257"], True,
    ),
    "batch not divisible": (
        lambda d: [*SYNTHETIC, "strategy=data", "launcher.nproc_per_node=3"],
        ["train.global_batch_size=8", "6 or 9"], False,
    ),
    "micro-batch does not divide": (
        lambda d: [*SYNTHETIC, "train.micro_batch_size=3"],
        ["train.micro_batch_size=3", "1, 2, 4, 8"], False,
    ),
    "unknown key": (lambda d: ["model.dimm=3"], ["model.dimm", "Did you mean 'model.dim'"], False),
    "wrong type": (lambda d: ["model.dim=wide"], ["model.dim=wide", "whole number"], False),
    "endless": (
        lambda d: [*SYNTHETIC, "train.steps=null", "train.tokens=inf"], ["train.tokens=inf"], False,
    ),
    "no such extra": (lambda d: [*SYNTHETIC, "metrics.wandb=true"], ["llmtrain[wandb]"], False),
    "no tokenizer": (lambda d: [*SYNTHETIC, "tokenizer=gpt2"], ["tokenizer.path"], False),
    "two lengths": (lambda d: ["train.tokens=1e6"], ["train.steps", "train.tokens", "null"], False),
}  # fmt: skip


FROM_THE_SHELL = ("not UTF-8, strict", "smaller than a window")
"""Of what a worker finds, these are tried from the shell; the others meet the same panel."""


@pytest.mark.parametrize("case", CASES)
def test_one_message_and_exit_code_2(case: str, tmp_path: Path) -> None:
    make, said, started = CASES[case]
    run_dir = tmp_path / "run"
    overrides = [*TINY, "train.steps=5", *make(tmp_path), f"run_dir={run_dir}"]
    if started and case not in FROM_THE_SHELL:
        freeze_run(run_dir, *overrides[:-1])
        with pytest.raises(UserError) as caught:
            train_frozen(run_dir)
        for words in said:
            assert words in str(caught.value)
        return
    done = llmtrain("train", *overrides, cwd=tmp_path)
    flat = " ".join(done.stderr.replace("│", " ").split())
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert done.stderr.count("╭") == 1, done.stderr
    for words in said:
        assert words in flat, done.stderr
    if started:
        result = json.loads((run_dir / "result.json").read_text())
        assert result["status"] == "failed"
        assert result["error"]
    else:
        assert not (run_dir / "logs" / "rank_0.log").exists(), "a process was started"


def test_a_gpu_that_is_not_there(tmp_path: Path) -> None:
    words = [*TINY, *SYNTHETIC, "train.steps=5", "train.device=cuda", f"run_dir={tmp_path / 'run'}"]
    done = llmtrain("train", *words, cwd=tmp_path, CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 2, done.stderr
    assert "train.device=cpu" in done.stderr
    assert json.loads((tmp_path / "run" / "result.json").read_text())["status"] == "failed"


def test_bytes_that_are_not_utf8_are_counted(tmp_path: Path) -> None:
    path = _text(tmp_path, PROSE + b"caf\xe9 \xff " + PROSE)
    done = llmtrain("prepare", "data=text", path, "tokenizer=byte", "json=true", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert 2 in [v for k, v in _flat(report).items() if "replaced" in k], report


def _flat(values: dict[str, object], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in values.items():
        name = f"{prefix}.{key}"
        flat |= _flat(value, name) if isinstance(value, dict) else {name: value}
    return flat


def test_a_corrupt_shard_is_named(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    words = [*TINY, *SYNTHETIC, "train.steps=5"]
    done = llmtrain(
        "train", *words, f"run_dir={tmp_path / 'a'}", cwd=tmp_path, LLMTRAIN_CACHE=str(cache)
    )
    assert done.returncode == 0, done.stderr
    shard = next(cache.glob("*/train-00000.bin"))
    data = bytearray(shard.read_bytes())
    data[100] ^= 1
    shard.write_bytes(data)
    done = llmtrain(
        "train", *words, f"run_dir={tmp_path / 'b'}", cwd=tmp_path, LLMTRAIN_CACHE=str(cache)
    )
    assert done.returncode == 2, done.stderr
    assert "train-00000.bin" in done.stderr
    assert "delete" in done.stderr.lower()


def test_a_checkpoint_of_another_model_leaves_the_run_as_it_was(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    words = [*TINY, *SYNTHETIC, "train.steps=5", f"run_dir={run_dir}"]
    assert llmtrain("train", *words, cwd=tmp_path).returncode == 0
    before = _files(run_dir)
    for override, saved in (("model.n_heads=2", "model.n_heads=4"), ("tokenizer=char", "byte")):
        done = llmtrain("train", *words, override, cwd=tmp_path)
        assert done.returncode == 2, done.stderr
        assert saved in done.stderr
        assert "run_dir=DIR" in done.stderr
        assert _files(run_dir) == before
    assert llmtrain("generate", f"run={run_dir}", "max_new_tokens=3", cwd=tmp_path).returncode == 0


def _files(run_dir: Path) -> dict[Path, bytes]:
    """Return the contents of a run directory, without the mark of who started it."""
    return {p: p.read_bytes() for p in run_dir.rglob("*") if p.is_file() and p.suffix != ".pid"}


def test_evaluate_and_generate_need_a_run(tmp_path: Path) -> None:
    for command in ("evaluate", "generate"):
        done = llmtrain(command, "run=nowhere", cwd=tmp_path)
        assert done.returncode == 2
        assert "nowhere" in done.stderr
