"""Compose a command's configuration with Hydra: once, in the launching process.

Hydra's Compose API, not @hydra.main: no output folder, no change of directory, no second run of
this in any worker. What is wrong with the command line leaves here as a `ConfigError`.

What is chosen from the groups is composed once, and copied for the jobs of a sweep that differ in
values alone: five sixths of the time that a composition takes go into the choices.
"""

import contextlib
import copy
import dataclasses
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict

from llmtrain.commands import explain
from llmtrain.commands.groups import groups
from llmtrain.commands.refuse import check_package, unknown_key
from llmtrain.commands.secrets import refuse_secrets
from llmtrain.config.groups.sweep import SweepConfig
from llmtrain.config.paths import conf_dir
from llmtrain.config.register import register
from llmtrain.config.schema import TrainCommandConfig, run_of
from llmtrain.config.store import ROOTS, is_group
from llmtrain.errors import ConfigError

FREE_TEXT = {
    "prompt", "sample_prompt", "path", "pattern", "delimiter", "run", "run_dir", "cache_dir",
    "step", "resume",
}  # fmt: skip
"""Last parts of keys whose value is taken as it stands: `prompt=Hello, you!` needs no quotes for
Hydra inside the shell's own."""


TABLE = re.compile(r"\+*(data\.sources|launcher\.(?:labels|node_selector))(?:\.([\w-]+))?")
"""Keys under which users put names of their own: Hydra wants that told with ++, and OmegaConf makes
typed entries only of a whole table."""


@dataclass(frozen=True)
class Composed:
    """A composed command line."""

    config: Any
    """The typed root dataclass of the command."""
    sweep: dict[str, str] | None
    """`hydra.sweeper.params` where a `sweep=NAME` asks for a multirun; null: one run."""


@dataclass(frozen=True)
class SweepBase:
    """What all jobs of a sweep share."""

    experiment_name: str
    run_dir: str | None
    params: dict[str, str]
    """`hydra.sweeper.params` of the `sweep=NAME` that was chosen."""
    settings: SweepConfig
    """How it is swept."""
    device: str
    """train.device."""
    steps: int | None
    """train.steps."""
    log_every: int
    """train.log_every_steps."""
    eval_every_steps: int | None
    """train.eval_every_steps."""
    launcher: str
    """launcher.name."""


@dataclass(frozen=True)
class Survey:
    """What a command line chooses."""

    choices: dict[str, str]
    """Group -> choice."""
    found: dict[str, tuple[type, Any]]
    """Group -> its dataclass and plain values; "" -> those of the root."""


class Composer:
    """Composes command lines of one command; a context made by `composer`."""

    def __init__(self, command: str, config_dirs: Sequence[Path]) -> None:
        self.command = command
        self.config_dirs = tuple(config_dirs)
        self.groups = groups(command, self.config_dirs)
        self.parser = OverridesParser.create()
        self._composed: dict[tuple[str, ...], tuple[DictConfig, dict[str, str] | None]] = {}
        """What is chosen from the groups -> its configuration, and the sweep that it asks for."""

    def parse(self, overrides: Sequence[str], *, multirun: bool = False) -> list[Override]:
        """Return `overrides` parsed, free text quoted, every chosen group and choice known.

        Raises:
            ConfigError: for one that cannot be read, or names a choice that is not there.
        """
        parsed = [self._spelt_out(self._parse_one(word, multirun)) for word in overrides]
        for override in parsed:
            explain.check_group(self.groups, override)
            self._check_packages(override)
            if override.is_sweep_override() and not multirun:
                raise ConfigError(
                    f"{override.input_line}: several values for one run. To run each, put -m "
                    f"first (llmtrain {self.command} -m ...); a list is written "
                    f"{override.key_or_group}=[a,b]."
                )
        return parsed

    def _check_packages(self, override: Override) -> None:
        if override.key_or_group not in self.groups or override.is_sweep_override():
            return
        value = override.value()
        for choice in value if isinstance(value, list) else [value]:
            check_package(self.command, override.key_or_group, str(choice), self.config_dirs)

    def _parse_one(self, word: str, multirun: bool) -> Override:
        key, equals, value = word.partition("=")
        if not key or not equals or key.startswith("~"):
            raise explain.unreadable(word)
        if key.startswith("+") and key.lstrip("+") in self.groups:
            word = word.lstrip("+")  # as `+experiment=x` is written where it is not in the defaults
        if table := TABLE.fullmatch(key):
            entry = f"{{{table[2]}: {value}}}" if table[2] else value
            word = f"++{table[1]}={entry}"
        text = equals and key.lstrip("+").rpartition(".")[2] in FREE_TEXT
        quoted = f"{key}={_quote(value)}"
        plain = value in ("", "null") or "${" in value or value[:1] in "'\""
        if text and not plain and not multirun:
            word = quoted
        try:
            return self.parser.parse_override(word)
        except HydraException as error:
            if text and not plain:
                return self.parser.parse_override(quoted)
            raise explain.unreadable(word, str(error)) from None

    def _spelt_out(self, override: Override) -> Override:
        """Return a glob over a group's choices as those choices: Hydra would find schemas too."""
        pattern = override.value() if not override.is_delete() else None
        if not isinstance(pattern, Glob):
            return override
        group = self.groups.get(override.key_or_group)
        found = pattern.filter(list(group.choices)) if group else []
        if not found:
            raise ConfigError(f"{override.input_line}: no choice of a group matches.")
        return self.parser.parse_override(f"{override.key_or_group}=choice({','.join(found)})")

    def compose(self, overrides: Sequence[str]) -> Composed:
        """Return the typed configuration of `overrides`.

        Raises:
            ConfigError: for everything a user can get wrong.
        """
        parsed = self.parse(overrides)
        words = [str(o.input_line) for o in parsed]
        choices = [str(o.input_line) for o in parsed if o.key_or_group in self.groups]
        with explain.explained(self.command, words):
            config, sweep = self._choose(choices)
            values = [o for o in parsed if o.key_or_group not in self.groups]
            ConfigLoaderImpl._apply_overrides_to_config(values, config)
            _refuse_unknown("", config)
            refuse_secrets(OmegaConf.to_container(config, resolve=True))
            found = OmegaConf.to_object(config)
            return Composed(
                run_of(found) if isinstance(found, TrainCommandConfig) else found, sweep
            )

    def _choose(self, choices: Sequence[str]) -> tuple[DictConfig, dict[str, str] | None]:
        """Return what these choices of groups set, to be changed, and the sweep they ask for."""
        key = tuple(choices)
        if key not in self._composed:
            config = compose(self.command, self._with_folders(choices), return_hydra_config=True)
            sweep = _sweep(config)
            with open_dict(config):
                del config["hydra"]
            self._composed[key] = config, sweep
        config, sweep = self._composed[key]
        return copy.deepcopy(config), sweep

    def survey(self, overrides: Sequence[str], *, multirun: bool = False) -> Survey:
        """Return what `overrides` choose, unchecked: for --help, where what is needed may lack.

        Args:
            overrides: What is typed.
            multirun: Several values of one key are allowed, and left out.

        Raises:
            ConfigError: for keys, choices and types that are not there.
        """
        parsed = self.parse(overrides, multirun=multirun)
        words = self._words([str(o.input_line) for o in parsed if not o.is_sweep_override()])
        with explain.explained(self.command, words):
            config = compose(self.command, words, return_hydra_config=True)
            choices = {str(k): str(v) for k, v in config.hydra.runtime.choices.items()}
            with open_dict(config):
                del config["hydra"]
            _refuse_unknown("", config)
            plain: Any = OmegaConf.to_container(config)
            found: dict[str, tuple[type, Any]] = {"": (ROOTS[self.command], plain)}
            for name in filter(is_group, self.groups):
                schema = OmegaConf.get_type(config, name) if name in plain else None
                if schema is not None and dataclasses.is_dataclass(schema):
                    found[name] = (schema, plain[name])
            return Survey(choices, found)

    def sweep_base(self, overrides: Sequence[str]) -> SweepBase:
        """Return what all jobs of a sweep share; values that only some jobs can take are left out.

        Args:
            overrides: What is not swept.

        Raises:
            ConfigError: for a choice that is not there.
        """
        shared = {*self.groups, "experiment_name", "run_dir"}
        given = [(word.lstrip("+").partition("=")[0], word) for word in overrides]
        words = self._words(
            [w for key, w in given if key in shared or key.startswith(("sweep.", "train."))]
        )
        with explain.explained(self.command, words):
            config = compose(self.command, words, return_hydra_config=True)
            run_dir = None if config.run_dir is None else str(config.run_dir)
            _refuse_unknown("sweep.", config.sweep)
            settings = OmegaConf.to_object(config.sweep)
            assert isinstance(settings, SweepConfig)
            train = config.train
            return SweepBase(
                str(config.experiment_name), run_dir, _sweep(config) or {}, settings,
                str(train.device), train.steps, train.log_every_steps, train.eval_every_steps,
                str(config.launcher.name),
            )  # fmt: skip

    def _words(self, overrides: Sequence[str]) -> list[str]:
        """Return `overrides` as Hydra is to see them."""
        return self._with_folders([str(o.input_line) for o in self.parse(overrides)])

    def _with_folders(self, words: Sequence[str]) -> list[str]:
        if not self.config_dirs:
            return list(words)
        folders = ",".join(_quote(f"file://{folder}") for folder in self.config_dirs)
        return [*words, f"hydra.searchpath=[{folders}]"]


def _sweep(config: DictConfig) -> dict[str, str] | None:
    """Return `hydra.sweeper.params` where the configuration asks for a multirun."""
    mode = config.hydra.mode
    if mode is None or mode.name != "MULTIRUN":
        return None
    return {str(k): str(v) for k, v in (config.hydra.sweeper.params or {}).items()}


@contextlib.contextmanager
def composer(command: str, config_dirs: Sequence[Path] = ()) -> Iterator[Composer]:
    """Yield a composer of `command` over the shipped YAML and `config_dirs`.

    Raises:
        ConfigError: when a file in `config_dirs` has the name of a shipped one.
    """
    for folder in config_dirs:
        for path in folder.rglob("*.yaml"):
            if (conf_dir() / path.relative_to(folder)).is_file():
                raise ConfigError(
                    f"--config-dir: {path} has the name of a shipped file, which would be taken "
                    "instead; give it another name."
                )
    register()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        yield Composer(command, config_dirs)


def _quote(value: str) -> str:
    """Return `value` as a single-quoted string of Hydra's grammar."""
    escaped = re.sub(r"(\\*)'", r"\1\1\\'", value)
    return "'" + re.sub(r"(\\+)$", r"\1\1", escaped) + "'"


def _refuse_unknown(prefix: str, config: DictConfig) -> None:
    """Refuse what `+key=value` has put beside a dataclass's fields: Hydra lets it pass."""
    schema = OmegaConf.get_type(config)
    if not dataclasses.is_dataclass(schema):
        return
    known = {field.name for field in dataclasses.fields(schema)}
    for key in map(str, config):
        if key not in known:
            raise unknown_key(f"{prefix}{key}", schema)
        if OmegaConf.is_dict(config._get_node(key)) and not OmegaConf.is_missing(config, key):
            _refuse_unknown(f"{prefix}{key}.", config[key])
