"""A machine divided among several runs."""

import subprocess
import sys

import pytest

from llmtrain.errors import ConfigError
from llmtrain.launch.shares import Shares, share_machine
from llmtrain.machine import CORES_ENV, usable_cores


def test_one_run_has_the_whole_machine() -> None:
    assert Shares(1, 8, 64, tuple("01234567")).environment(0) == {}


def test_gpus_and_cores_are_divided() -> None:
    shares = Shares(3, 8, 64, tuple("01234567"))
    given = [shares.environment(slot) for slot in range(3)]
    assert [env["CUDA_VISIBLE_DEVICES"] for env in given] == ["0,1", "2,3", "4,5"]
    assert {env[CORES_ENV] for env in given} == {"21"}
    assert "2 GPUs left over" in shares.describe()


def test_a_gpu_each_at_least() -> None:
    Shares(2, 2, 4, ("0", "1")).require_gpu()
    Shares(3, 0, 4, ()).require_gpu()  # a machine without them trains on its cores
    with pytest.raises(ConfigError, match=r"try sweep\.parallel=2"):
        Shares(3, 2, 4, ("0", "1")).require_gpu()


def test_devices_keep_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmtrain.launch.shares.gpu_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-aa, 5,9")
    shares = share_machine(2)
    assert [shares.environment(slot)["CUDA_VISIBLE_DEVICES"] for slot in (0, 1)] == ["GPU-aa", "5"]


def test_a_share_of_the_cores_is_what_a_process_counts() -> None:
    code = "from llmtrain.machine import usable_cores; print(usable_cores())"
    for share, expected in (("1", 1), ("", usable_cores()), ("99999", usable_cores())):
        done = subprocess.run(
            [sys.executable, "-c", code], env={CORES_ENV: share, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert int(done.stdout) == expected
