"""A disk that is really full while a checkpoint is saved."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from llmtrain.checkpoint.manifest import step_folders, verify
from tests.support.runs import SYNTHETIC, TINY, environment, metric_lines, train_command

PRIVATE = ("unshare", "--mount", "--map-root-user")
"""A mount that nobody else sees, and that ends with its processes."""

MOUNTS = (
    sys.platform.startswith("linux")
    and subprocess.run([*PRIVATE, "true"], capture_output=True, check=False).returncode == 0
)

OVERRIDES = (
    *TINY, *SYNTHETIC, "train.steps=8", "checkpoint.every_steps=2", "checkpoint.keep_last=9",
    "checkpoint.save_best=false",
)  # fmt: skip

SCRIPT = """
    mount -t tmpfs -o size=100m tmpfs {disk} || exit 99
    mkdir -p {disk}/run/checkpoints
    {first} || exit 98
    # What is left is less than is kept free for logs.
    dd if=/dev/zero of={disk}/ballast bs=1M count=60 2> /dev/null || exit 97
    {second}
    code=$?
    cp -r {disk}/run {out}
    exit $code
"""


@pytest.mark.integration
@pytest.mark.skipif(not MOUNTS, reason="needs user namespaces to mount a small disk")
@pytest.mark.parametrize(
    "extra",
    [
        pytest.param(("checkpoint.on_error=stop",), id="stop", marks=pytest.mark.slow),
        pytest.param(
            ("checkpoint.on_error=go_on", "checkpoint.async_save=true"), id="go_on",
            marks=pytest.mark.slow,
        ),
    ],
)  # fmt: skip
def test_what_was_saved_stays(extra: tuple[str, ...], tmp_path: Path) -> None:
    disk, out = tmp_path / "disk", tmp_path / "out"
    disk.mkdir()
    run_dir = disk / "run"
    first = train_command(run_dir, OVERRIDES, ("train.steps=4",))
    second = train_command(run_dir, OVERRIDES, extra)
    ended = subprocess.run(
        [*PRIVATE, "sh", "-c", SCRIPT.format(
            disk=disk, out=out, first=shlex.join(first), second=shlex.join(second),
        )],
        env=environment(), capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert ended.returncode == 1, ended.stderr
    told = " ".join(ended.stderr.replace("│", " ").split())
    assert "Free some space" in told
    assert "are free" in told
    folders = step_folders(out / "checkpoints")
    assert [verify(folder).step for folder in folders] == [2, 4]
    assert not list((out / "checkpoints").glob("*.tmp"))
    if "go_on" in extra[0]:
        assert "training goes on" in told
        assert metric_lines(out)[-1]["step"] == 8
