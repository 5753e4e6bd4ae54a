"""`llmtrain verify` as a person runs it: the table, verify.json, the exit code, refusals."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.runs import environment

pytestmark = pytest.mark.integration

LLMTRAIN = Path(sys.executable).with_name("llmtrain")

FAULTS = """
import importlib.abc, importlib.machinery, os, sys

def run():
    words = sys.orig_argv
    return os.path.basename(words[-1]) if "llmtrain.worker" in words else ""

if run() == "zero3" and os.environ.get("RANK") == "1":
    os.kill(os.getpid(), 9)

class Planted(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "llmtrain.distributed.rng":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        execute = spec.loader.exec_module
        def exec_module(module):
            execute(module)
            right = module.derive_seed
            module.derive_seed = lambda *parts: right(*parts, os.environ["RANK"])
        spec.loader.exec_module = exec_module
        return spec

if run() == "dp2":
    sys.meta_path.insert(0, Planted())
"""
"""Imported by every Python process: kills a rank of zero3, gives each rank of dp2 its own seed."""


def verify(
    *words: str, cwd: Path, timeout: float = 280, **env: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [LLMTRAIN, "verify", *words], cwd=cwd, env=environment(**env), capture_output=True,
        text=True, timeout=timeout,
    )  # fmt: skip


def test_a_pass(tmp_path: Path) -> None:
    words = ("verify.strategies=[pp2_1f1b]", "verify.steps=2", "run_dir=out")
    ended = verify(*words, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert "pp2_1f1b computes what one process computes." in ended.stdout
    assert "1/1 pp2_1f1b" in ended.stderr
    report = json.loads((tmp_path / "out" / "verify.json").read_text())
    assert report["status"] == "passed" and report["steps"] == 2
    assert [run["name"] for run in report["runs"]] == ["reference", "pp2_1f1b"]
    for row in report["comparisons"]:
        assert row["passed"] and row["gradient"]["error"] < 1e-12 and row["gradient"]["parameter"]
    assert not list((tmp_path / "out").glob("*/records"))


@pytest.mark.slow
def test_once_more_in_the_same_folder(tmp_path: Path) -> None:
    """Nothing goes on from where the first one ended."""
    words = ("verify.strategies=[pp2_1f1b]", "verify.steps=2", "run_dir=out")
    assert verify(*words, cwd=tmp_path).returncode == 0
    (tmp_path / "notes.txt").write_text("")
    again = verify("verify.strategies=[dp2]", "verify.steps=1", "run_dir=out", "--json",
                   cwd=tmp_path)  # fmt: skip
    assert again.returncode == 0, again.stderr
    assert [row["name"] for row in json.loads(again.stdout)["comparisons"]] == ["dp2"]
    assert not (tmp_path / "out" / "pp2_1f1b").exists()


def test_a_wrong_strategy_and_one_that_dies(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(FAULTS)
    ended = verify("verify.strategies=[zero3,dp2]", "verify.steps=2", "run_dir=out",
                   cwd=tmp_path, PYTHONPATH=str(tmp_path))  # fmt: skip
    assert ended.returncode == 1, ended.stdout + ended.stderr
    assert "2 of 2 strategies FAIL" in ended.stdout and "Traceback" not in ended.stderr
    assert "SIGKILL" in ended.stdout and "First difference before the first step" in ended.stdout
    report = json.loads((tmp_path / "out" / "verify.json").read_text())
    zero3, dp2 = report["comparisons"]
    assert "SIGKILL" in zero3["error"] and not zero3["passed"]
    assert dp2["error"] is None and dp2["divergence"]["step"] == 0
    assert (tmp_path / "out" / "dp2" / "records").is_dir(), "to look into"


@pytest.mark.slow
def test_the_quick_selection(tmp_path: Path) -> None:
    ended = verify("verify.quick=true", cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert len(list((tmp_path / "runs" / "verify").glob("*/verify.json"))) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["verify.strategies=[dp3]"], ["'dp3' is not a known", "mean 'dp4'", "Known: dp2"]),
        (["verify.strategies=[dp2,dp2]"], ["named twice"]),
        (["verify.strategies=[]"], ["names nothing"]),
        (["verify.steps=0"], ["verify.steps=0"]),
        (["verify.stepps=1"], ["verify.steps"]),
        (["strategy=data"], ["strategy=data", "verify.strategies"]),
        (["strategy.zero=3"], ["verify.strategies"]),
        (["train.steps=9"], ["verify.steps"]),
        (["launcher.nproc_per_node=2"], ["launcher.nproc_per_node=2", "verify.strategies"]),
        (["verify.strategies=[tp4]", "model.n_heads=2"], ["tp4", "model.n_heads=2"]),
        (["verify.strategies=[dp2,pp2_zbv]", "model.n_layers=3"], ["pp2_zbv", "model.n_layers=3"]),
        (["verify.strategies=[\"strategy=single\"]"], ["one process"]),
        (["verify.strategies=[\"strategy=hybird strategy.tp=2\"]"], ["hybird", "'hybrid'"]),
        (["data=text", "data.path=missing.txt"], ["missing.txt"]),
    ],
)  # fmt: skip
def test_a_mistake_is_told_before_a_process_starts(
    words: list[str], said: list[str], tmp_path: Path
) -> None:
    ended = verify(*words, cwd=tmp_path)
    assert ended.returncode == 2, ended.stderr
    assert ended.stdout == "" and ended.stderr.count("╭") == 1
    for text in said:
        assert text in ended.stderr.replace("\n", " "), ended.stderr
    assert not (tmp_path / "runs").exists()


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    ended = verify("verify.quick=true", "run_dir=mine", cwd=tmp_path)
    assert ended.returncode == 2 and "thesis.tex" in ended.stderr
    assert (tmp_path / "mine" / "thesis.tex").exists()


def test_ctrl_c_ends_all(tmp_path: Path) -> None:
    child = subprocess.Popen(
        [LLMTRAIN, "verify", "verify.quick=true", "run_dir=out"], cwd=tmp_path,
        env=environment(), stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    report = tmp_path / "out" / "verify.json"
    while not report.exists():
        assert child.poll() is None
        time.sleep(0.05)
    time.sleep(1.0)
    os.kill(child.pid, signal.SIGINT)
    _, told = child.communicate(timeout=60)
    assert child.returncode in (130, 143), told
    assert json.loads(report.read_text())["status"] == "stopped"
    assert "nothing was compared" in told and "1/4" not in told
