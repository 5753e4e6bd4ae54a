"""What RUN_DIR/result.json says, for whoever did not write it; `tasks/result.py` writes it."""

import json
from pathlib import Path
from typing import Any

from llmtrain.config.paths import RESULT
from llmtrain.errors import EXIT_OK, EXIT_SIGINT, EXIT_SIGTERM

EXIT_CODES = {"completed": EXIT_OK, "stopped": EXIT_SIGINT, "preempted": EXIT_SIGTERM}
"""Status -> what the command ends with; any other status is a failure."""


def read_result(run_dir: Path, *, since: float = 0.0) -> dict[str, Any]:
    """Return what result.json says; {}: there is none that can be read, or none as young.

    Args:
        run_dir: The run directory.
        since: What was written earlier, unix s, is of an earlier start.
    """
    path = run_dir / RESULT
    try:
        return dict(json.loads(path.read_text())) if path.stat().st_mtime >= since else {}
    except (OSError, ValueError, TypeError):
        return {}
