"""The command `llmtrain`: reads the command line and hands over. Never imports torch.

Heavy imports (hydra, rich) wait until a command needs them, so that --help and completion answer
at once.
"""

import sys
from collections.abc import Callable, Sequence

from llmtrain import __version__
from llmtrain.commands.options import Options, UsageError, parse
from llmtrain.console import answering
from llmtrain.errors import EXIT_OK, EXIT_SIGINT, EXIT_USER, UserError


def _train(options: Options) -> int:
    # A sweep of YAML means -m. Known before composing: what only some of its jobs can take, and
    # values to sweep besides, would be refused in a single run.
    several = options.has("--multirun") or options.chooses("sweep")
    if several or options.chooses("sweep.resume"):
        from llmtrain.commands.sweep import run_sweep

        return run_sweep(options)
    from llmtrain.commands.train import run_train

    return run_train(options)


def _task(options: Options) -> int:
    from llmtrain.commands.task import run_task_command

    return run_task_command(options)


def _prepare(options: Options) -> int:
    if options.root == "prepare":
        return _task(options)
    from llmtrain.commands.prepared import run_prepared

    return run_prepared(options)


def _verify(options: Options) -> int:
    from llmtrain.commands.verify import run_verify

    return run_verify(options)


def _checkpoint(options: Options) -> int:
    from llmtrain.commands.checkpoint import run_checkpoint

    return run_checkpoint(options)


def _jobs(options: Options) -> int:
    from llmtrain.commands.jobs import run_jobs

    return run_jobs(options)


def _logs(options: Options) -> int:
    from llmtrain.commands.logs import run_logs

    return run_logs(options)


def _cancel(options: Options) -> int:
    from llmtrain.commands.cancel import run_cancel

    return run_cancel(options)


def _doctor(options: Options) -> int:
    from llmtrain.commands.doctor import run_doctor

    return run_doctor(options)


HANDLERS: dict[str, Callable[[Options], int]] = {
    "train": _train,
    "prepare": _prepare,
    "evaluate": _task,
    "generate": _task,
    "replay": _task,
    "verify": _verify,
    "checkpoint": _checkpoint,
    "jobs": _jobs,
    "logs": _logs,
    "cancel": _cancel,
    "doctor": _doctor,
}
"""What runs each of `options.COMMANDS`."""


def run(argv: Sequence[str]) -> int:
    """Run the command line `argv` (without the program's name); return the exit code.

    Raises:
        UserError: when it is the user's mistake.
    """
    if argv and argv[0] == "--complete":
        from llmtrain.commands.complete import complete

        sys.stdout.write("".join(f"{candidate}\n" for candidate in complete(argv[1:])))
        return EXIT_OK
    options = parse(argv)
    if options.has("--version"):
        print(f"llmtrain {__version__}")
        return EXIT_OK
    if options.shell is not None:
        from llmtrain.commands.complete import SCRIPTS

        print(SCRIPTS[options.shell])
        return EXIT_OK
    if options.has("--help") or options.command is None:
        from llmtrain.commands.help import show_help

        asked = options.has("--help")
        show_help(options, stderr=not asked)
        return EXIT_OK if asked else EXIT_USER
    if options.command == "train":
        from llmtrain.launch import foreign

        if foreign.rank() is not None:
            from llmtrain.commands.rank import run_rank

            return run_rank(options, _handle)
    return _handle(options)


def _handle(options: Options) -> int:
    """Run the command of `options`."""
    assert options.command is not None
    if options.overrides:
        from llmtrain.commands.refuse import check_words

        assert options.root is not None
        check_words(options.root, options.overrides, options.config_dirs)
    return HANDLERS[options.command](options)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code, having told the user of any mistake."""
    return answering(lambda: _told(sys.argv[1:] if argv is None else argv))


def _told(argv: Sequence[str]) -> int:
    """Run `argv` as `run` does, and show what it refuses."""
    try:
        return run(argv)
    except UserError as error:
        from llmtrain.launch.foreign import let_rank_0_speak
        from llmtrain.panel import show_user_error

        let_rank_0_speak()
        show_user_error(error)
        if isinstance(error, UsageError):
            print("llmtrain --help shows what there is.", file=sys.stderr)
        return EXIT_USER
    except KeyboardInterrupt:
        print("interrupted before anything was started", file=sys.stderr)
        return EXIT_SIGINT


if __name__ == "__main__":
    sys.exit(main())
