"""What training sends, counted by the kernel, is what the formulas say."""

import json
import os
import shutil
import subprocess
import sys

import pytest

HEADERS = 0.015
"""TCP/IP headers, acknowledgements and control messages; measured 0.3 to 0.8 %."""


def _may_unshare() -> bool:
    user = [] if os.geteuid() == 0 else ["--map-root-user"]
    command = ["unshare", "--net", *user, "ip", "link", "set", "lo", "up"]
    found = shutil.which("unshare") and shutil.which("ip")
    return bool(found) and subprocess.run(command, capture_output=True).returncode == 0


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.skipif(not _may_unshare(), reason="needs a network namespace: unshare --net, ip")
def test_bytes_on_the_wire_are_the_formulas() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.wire"], capture_output=True, text=True, timeout=600
    )
    rows = [json.loads(line) for line in run.stdout.splitlines()]
    assert [row["layout"] for row in rows] == [
        "dp2",
        "zero3",
        "tp2",
        "pp2",
        "diloco",
        "diloco_int4",
    ], run.stderr
    for row in rows:
        assert 1.0 <= row["ratio"] <= 1.0 + HEADERS, row
