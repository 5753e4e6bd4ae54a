"""What --dry-run says to type on several hosts."""

import shlex
from pathlib import Path

import pytest

from llmtrain.commands.options import parse
from llmtrain.commands.show import print_hosts
from llmtrain.config.groups.launcher import TorchrunLauncherConfig


@pytest.mark.parametrize(
    ("endpoint", "first"),
    [("host0:29500", "host0"), ("host0", "host0"), ("[fd00::1]:29500", "fd00::1"),
     (None, "this machine")],
)  # fmt: skip
def test_the_first_host_is_named(
    endpoint: str | None, first: str, capsys: pytest.CaptureFixture[str]
) -> None:
    launcher = TorchrunLauncherConfig(nnodes=2 if endpoint else 1, rdzv_endpoint=endpoint)
    print_hosts(launcher, ["launcher=torchrun"])
    assert f"launcher=torchrun    # {first} is the first\n" in capsys.readouterr().out


def test_the_line_says_what_was_typed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = tmp_path / "my conf"
    own.mkdir()
    typed = parse(["train", "--config-dir", str(own), "model=mine", "launcher.node_rank=1"])
    launcher = TorchrunLauncherConfig(nnodes=2, node_rank=1, rdzv_endpoint="host0")
    print_hosts(launcher, typed.typed)
    _, line = capsys.readouterr().out.split("host 0: llmtrain ")
    again = parse(shlex.split(line.partition("\n")[0]))
    assert again.config_dirs == [own] and "launcher.node_rank=0" in again.overrides
