"""`llmtrain prepare | evaluate | generate | replay`: compose, check, and let one worker do it."""

import dataclasses
from pathlib import Path
from typing import Any

from llmtrain.commands.compose import composer
from llmtrain.commands.options import Options
from llmtrain.commands.show import as_plain
from llmtrain.config.groups.inference import FromRunConfig
from llmtrain.config.groups.replay import ReplayConfig
from llmtrain.config.paths import CONFIG
from llmtrain.config.schema import PrepareConfig
from llmtrain.config.store import to_yaml
from llmtrain.errors import EXIT_OK, ConfigError, did_you_mean
from llmtrain.launch.local import run_task


def run_task_command(options: Options) -> int:
    """Run the command of `options` in one worker process; return the exit code.

    Raises:
        UserError: for everything that can be told before a process starts.
    """
    assert options.command is not None
    config = compose_or_show(options, options.command)
    if config is None:
        return EXIT_OK
    if isinstance(config, PrepareConfig):
        from llmtrain.data.locate import check_source
        from llmtrain.data.stdin import keep_stdin
        from llmtrain.tokenizer.pretrained import check_tokenizer

        config = dataclasses.replace(config, data=keep_stdin(config.data))
        check_source(config.data)
        check_tokenizer(config.tokenizer)
    if isinstance(config, FromRunConfig | ReplayConfig):
        check_run(str(config.run))
    return run_task(options.command, as_plain(config))


def compose_or_show(options: Options, root: str) -> Any | None:
    """Return the typed configuration `root` under the overrides of `options`.

    None: it was asked for (--cfg) and has been printed.

    Raises:
        ConfigError: for everything a user can get wrong.
    """
    overrides = list(options.overrides)
    if options.has("--json"):
        overrides.append("json=true")
    with composer(root, options.config_dirs) as hydra:
        config = hydra.compose(overrides).config
    if not options.has("--cfg"):
        return config
    print(to_yaml(config), end="")
    return None


def check_run(run: str) -> None:
    """Refuse a run directory that is none.

    Raises:
        ConfigError: with the nearest folder that is one, else the newest.
    """
    folder = Path(run).expanduser()
    if (folder / CONFIG).is_file():
        return
    inside = _newest_run(folder)
    if inside is not None:
        raise ConfigError(f"run={run} holds runs, and is none itself. The newest: run={inside}")
    if folder.is_dir():
        raise ConfigError(f"run={run} is not a run directory: it has no {CONFIG}.{_other_run()}")
    beside = [path.parent.name for path in folder.parent.glob(f"*/{CONFIG}")]
    near = did_you_mean(folder.name, beside)
    if not near:
        newest = _newest_run(folder.parent)
        near = f" The newest nearby: run={newest}" if newest is not None else _other_run()
    raise ConfigError(f"run={run}: there is no such folder.{near}")


def _other_run() -> str:
    newest = _newest_run(Path("runs"))
    return f" The newest run here: run={newest}" if newest is not None else ""


def _newest_run(folder: Path) -> Path | None:
    """Return the run that was started last in `folder` or in a folder of it; null: there is none.

    That is runs/<experiment_name>/<run>, or a folder of runs that the user named.
    """
    found = [path for depth in ("*", "*/*") for path in folder.glob(f"{depth}/{CONFIG}")]
    newest = max(found, key=lambda path: path.stat().st_mtime, default=None)
    return None if newest is None else newest.parent
