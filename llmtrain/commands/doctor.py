"""`llmtrain doctor`: asks `llmtrain.tasks.doctor`, which imports torch, in a process of its own."""

import os

from llmtrain.commands.options import Options
from llmtrain.launch.local import PYTHON
from llmtrain.launch.process import supervise
from llmtrain.panel import show_error


def run_doctor(options: Options) -> int:
    """Print what this machine offers; return 1 where something essential is broken."""
    command = [*PYTHON, "llmtrain.tasks.doctor", *(["--json"] if options.has("--json") else [])]
    ended = supervise(command, os.environ)
    if ended.code < 0 and ended.stopped_by is None:
        show_error("doctor died", f"Looking at this machine was ended by signal {-ended.code}.")
    return ended.exit_code
