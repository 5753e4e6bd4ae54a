"""The installed command, as a person or a script runs it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.integration

LLMTRAIN = Path(sys.executable).with_name("llmtrain")


def llmtrain(*words: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [LLMTRAIN, *words],
        cwd=cwd,
        env={**os.environ, "LLMTRAIN_CACHE": str(cwd / "cache"), **env},
        capture_output=True,
        text=True,
        timeout=240,
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train", "modle=gpt_tiny"], "Did you mean 'model'?"),
        (["train", "model=gpt_tny"], "Did you mean 'gpt_tiny'?"),
        (["train", "+model.foo=1"], "model.foo"),
        (["train", "model.dim=abc"], "whole number"),
        (["train", "data=text"], "data.path"),
        (["train", "data=text", "data.path=missing.txt"], "missing.txt"),
        (["train", "train.global_batch_size=3", "strategy=data", "launcher.nproc_per_node=2"],
         "train.global_batch_size=3"),
        (["train", "launcher.nproc_per_node=2"], "strategy=data"),
        (["trian"], "Did you mean 'train'?"),
        (["evaluate"], "run is missing"),
        (["evaluate", "run=nowhere"], "no such folder"),
        (["generate", "run=.", "prompt=Hello, you!"], "not a run directory"),
        (["train", "-m", "modle=a,b"], "modle"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_message_and_exit_code_2(
    words: list[str], said: str, tmp_path: Path
) -> None:
    ended = llmtrain(*words, cwd=tmp_path)
    assert ended.returncode == 2, ended.stderr
    assert ended.stdout == "" or words[1] == "-m"
    assert said in ended.stderr
    assert ended.stderr.count("╭") == 1 and "Traceback" not in ended.stderr
    assert not (tmp_path / "runs").exists()


def test_run_dir_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    ended = llmtrain("train", "run_dir=file/run", cwd=tmp_path)
    assert ended.returncode == 2
    assert "run_dir=" in ended.stderr and "Traceback" not in ended.stderr


def test_cfg_job_prints_yaml_that_is_the_configuration(tmp_path: Path) -> None:
    ended = llmtrain("train", "--cfg", "job", "model=llama_tiny", cwd=tmp_path)
    assert ended.returncode == 0 and ended.stderr == ""
    assert yaml.safe_load(ended.stdout)["model"]["name"] == "llama"
    assert list(tmp_path.iterdir()) == []


def test_dry_run_prints_the_plan_and_writes_nothing(tmp_path: Path) -> None:
    ended = llmtrain("train", "--dry-run", "strategy=data", cwd=tmp_path)
    assert ended.returncode == 0
    assert "16 sequences = 2 data-parallel x 1 micro-batch x 8" in ended.stdout
    assert list(tmp_path.iterdir()) == []


def test_version(tmp_path: Path) -> None:
    assert llmtrain("--version", cwd=tmp_path).stdout.startswith("llmtrain 0.")


def test_a_reader_that_has_enough_is_no_error(tmp_path: Path) -> None:
    ended = subprocess.run(
        ["bash", "-c", f"{LLMTRAIN} train --help | head -1"],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert ended.stderr == ""


def test_doctor(tmp_path: Path) -> None:
    ended = llmtrain("doctor", "--json", cwd=tmp_path)
    answer = json.loads(ended.stdout)
    assert ended.returncode == 0 and answer["ok"] is True
    names = {finding["name"] for finding in answer["findings"]}
    assert {"python", "torch", "gloo", "gpus", "memory", "loopback", "open files"} <= names


def test_doctor_names_what_is_broken_and_the_fix(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('libtorch.so: cannot open')\n")
    ended = llmtrain("doctor", cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert ended.returncode == 1
    assert "libtorch.so: cannot open" in ended.stdout and "make setup" in ended.stdout


COMPLETE = r"""
eval "$("$1" --completion bash)"
COMP_LINE="$2"; COMP_POINT=${#2}; COMPREPLY=()
_llmtrain
printf '%s\n' "${COMPREPLY[@]}"
"""


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("tr", ["train"]),
        ("train model=gpt_t", ["gpt_tiny"]),
        ("train model=llama_tiny model.n_k", ["model.n_kv_heads="]),
        ("train optimizer=adamw,li", ["adamw,lion"]),
        ("train data=text data.path=no", ["notes.txt"]),
    ],
)
def test_bash_completion(line: str, offered: list[str], tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("")
    ended = subprocess.run(
        ["bash", "-c", COMPLETE, "bash", LLMTRAIN, f"{LLMTRAIN} {line}"],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert ended.stdout.split() == offered, ended.stderr


@pytest.mark.parametrize(("shell", "check"), [("zsh", ["-n"]), ("fish", ["--no-execute"])])
def test_other_shells_read_their_scripts(shell: str, check: list[str], tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed: nobody reads its completion script here")
    script = llmtrain("--completion", shell, cwd=tmp_path).stdout
    subprocess.run([shell, *check], input=script, text=True, check=True)
