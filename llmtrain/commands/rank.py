"""`llmtrain train` as one of several ranks that torchrun, srun or mpirun has started."""

from collections.abc import Callable

from llmtrain.commands.options import Options
from llmtrain.errors import EXIT_OK, EXIT_USER, UserError
from llmtrain.launch import foreign
from llmtrain.panel import show_user_error


def run_rank(options: Options, command: Callable[[Options], int]) -> int:
    """Run `command` on rank 0 alone; the other ranks do what rank 0 tells them.

    Args:
        options: The command line.
        command: Composes, freezes and becomes rank 0's worker.

    Returns:
        The exit code, where no worker has taken this process' place.

    Raises:
        UserError: when the ranks do not know where to meet.
    """
    answers = options.has("--cfg") or options.has("--dry-run")
    if foreign.rank():
        if answers:
            return EXIT_OK
        foreign.become_follower()
    if not answers:
        foreign.check_meeting()  # before anything is made; the others cannot be told of it
    try:
        return command(options)
    except UserError as error:
        show_user_error(error)
        if answers:
            return EXIT_USER
        foreign.become_refusal()
