"""`llmtrain prepare --inspect DIR` and `--samples`: answered in this process, without torch."""

from llmtrain.commands.options import Options
from llmtrain.commands.task import check_run, compose_or_show
from llmtrain.config.groups.prepared import InspectConfig, SamplesConfig
from llmtrain.console import make_console
from llmtrain.data.prepared import find_prepared
from llmtrain.errors import EXIT_OK


def run_prepared(options: Options) -> int:
    """Show what a prepared folder holds, or what a step trains on; return the exit code.

    Raises:
        UserError: when there is no such folder or run, or it cannot be used.
    """
    assert options.root is not None
    config = compose_or_show(options, options.root)
    if config is None:
        return EXIT_OK
    if isinstance(config, InspectConfig):
        from llmtrain.tasks.inspection import run_inspection

        assert options.inspected is not None
        return run_inspection(find_prepared(options.inspected), config, make_console())
    from llmtrain.tasks.samples import run_samples

    assert isinstance(config, SamplesConfig)
    check_run(str(config.run))
    return run_samples(config, make_console())
