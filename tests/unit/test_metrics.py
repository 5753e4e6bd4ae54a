"""metrics.jsonl where it cannot be written for a while."""

import json
import resource
import sys
from pathlib import Path

import pytest

from llmtrain.train.audit import AuditLog, read_events
from llmtrain.train.metrics import JsonlWriter

ROOM_BYTES = 100


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on the size of files")
def test_lines_wait_for_room(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "metrics.jsonl"
    writer, audit = JsonlWriter(path, after_step=0, evaluated_step=0), AuditLog(tmp_path / "bad")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (ROOM_BYTES, limits[1]))  # as a disk that is full
    try:
        for step in range(1, 9):
            writer.write({"step": step, "loss": 1 / 3})
        writer.sync()
        audit.add({"step": 1, "action": "skipped", "text": "x" * ROOM_BYTES})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.stat().st_size == ROOM_BYTES
    assert "held back" in caplog.text and "bad cannot be written" in caplog.text
    writer.write({"step": 9, "loss": 1 / 3})
    writer.close()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 10))
    audit.add({"step": 9, "action": "skipped"})
    assert [event["step"] for event in read_events(audit.path)] == [9]
