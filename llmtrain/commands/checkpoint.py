"""`llmtrain checkpoint ...`: list, verify and delete in this process, without torch; convert in a
worker."""

import dataclasses
from contextlib import nullcontext
from pathlib import Path

from llmtrain.commands.options import Options
from llmtrain.commands.task import check_run, compose_or_show
from llmtrain.config.groups.checkpoint_command import CheckpointCommandConfig
from llmtrain.errors import EXIT_OK
from llmtrain.launch.claim import claimed
from llmtrain.launch.local import run_task


def run_checkpoint(options: Options) -> int:
    """Do what is asked with what a run has saved; return the exit code.

    Raises:
        UserError: when there is no such run or checkpoint, or it cannot be used.
    """
    if options.action is not None:
        options.overrides.append(f"action={options.action}")
    config = compose_or_show(options, "checkpoint_command")
    if config is None:
        return EXIT_OK
    assert isinstance(config, CheckpointCommandConfig)
    check_run(str(config.run))
    if config.action == "convert":
        out = str(Path(str(config.out)).expanduser().absolute())
        return run_task("convert", dataclasses.asdict(config) | {"out": out})
    from llmtrain.tasks.checkpoints import run_on_checkpoints

    # Nothing is taken from under a run that is training.
    run_dir = Path(str(config.run)).expanduser()
    with claimed(run_dir) if config.action == "delete" else nullcontext():
        return run_on_checkpoints(config)
