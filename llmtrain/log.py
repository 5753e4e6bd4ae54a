"""Standard-library logging: each rank writes its own file, people see the terminal elsewhere."""

import logging
import sys
import time
from pathlib import Path

from llmtrain.secret import masked

FORMAT = "%(asctime)s.%(msecs)03dZ %(levelname)s rank {rank} %(name)s: %(message)s"


def log_path(run_dir: Path, rank: int) -> Path:
    """Return RUN_DIR/logs/rank_N.log."""
    return run_dir / "logs" / f"rank_{rank}.log"


class _Formatter(logging.Formatter):
    """Writes no secret of the environment, whoever logs it."""

    def format(self, record: logging.LogRecord) -> str:
        return masked(super().format(record))


class _Handler(logging.FileHandler):
    """Is silent while the disk is full: training goes on, and its terminal is no place to say so
    at every line."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


def setup_log(path: Path, rank: int, level: int = logging.INFO) -> None:
    """Send the root logger to the file `path`, appended; every line carries time (UTC) and rank.

    Calling it again moves the log: the earlier file is closed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = _Handler(path, encoding="utf-8")
    formatter = _Formatter(FORMAT.format(rank=rank), datefmt="%Y-%m-%dT%H:%M:%S")
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
        old.close()
    root.addHandler(handler)
    root.setLevel(level)
    logging.captureWarnings(True)
