"""A frozen run, from its start to its end: `python -m llmtrain.start RUN_DIR`.

What a sweep starts for each of its jobs: `llmtrain train` without the composition. Never imports
torch or Hydra. A run that has been here before is resumed.
"""

import dataclasses
import os
import signal
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from llmtrain.errors import EXIT_SIGINT, EXIT_SIGTERM, EXIT_USER, UserError
from llmtrain.lifeline import STOP_SIGNALS, die_with_parent


def _exit_at_once(signum: int, frame: types.FrameType | None) -> NoReturn:
    """A signal before a worker exists; those that come later are passed on to it."""
    os._exit(EXIT_SIGINT if signum == signal.SIGINT else EXIT_SIGTERM)


def main(argv: Sequence[str] | None = None) -> int:
    """Train from the run directory that `argv` names; return the exit code."""
    for signum in STOP_SIGNALS:
        signal.signal(signum, _exit_at_once)
    die_with_parent()
    # After that: the imports take a tenth of a second.
    from llmtrain.console import answering

    [run_dir] = sys.argv[1:] if argv is None else argv
    return answering(lambda: _train(Path(run_dir).absolute()))


def _train(run_dir: Path) -> int:
    import yaml

    from llmtrain.commands.train import plan_run, start
    from llmtrain.config.paths import CONFIG, OVERRIDES
    from llmtrain.config.store import load_run_config
    from llmtrain.panel import show_user_error

    try:
        # Where it is now: a sweep's folder may have been moved.
        run = dataclasses.replace(load_run_config(run_dir / CONFIG), run_dir=str(run_dir))
        overrides = yaml.safe_load((run_dir / OVERRIDES).read_text())
        # Planned here, where the devices of this run alone are seen.
        return start(run, plan_run(run), overrides)
    except UserError as error:
        show_user_error(error)
        return EXIT_USER


if __name__ == "__main__":
    sys.exit(main())
