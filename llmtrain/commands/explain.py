"""What Hydra and OmegaConf refuse, said so that a user can mend it: the key, the value, a fix."""

import contextlib
import dataclasses
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    InterpolationKeyError,
    InterpolationResolutionError,
    MissingMandatoryValue,
    OmegaConfBaseException,
    ValidationError,
)
from yaml import MarkedYAMLError, YAMLError

from llmtrain.commands.groups import Group
from llmtrain.commands.refuse import check_choice, unknown_key
from llmtrain.commands.settings import field_docs, kind_of
from llmtrain.config.schema import RunConfig
from llmtrain.config.store import ROOTS
from llmtrain.errors import ConfigError


def unreadable(word: str, reason: str = "") -> ConfigError:
    """Return the refusal of an override that is no `key=value`.

    Args:
        word: As typed.
        reason: What the parser says of its value.
    """
    if word.startswith("~"):
        return ConfigError(f"{word}: no setting can be taken away; where it may be null, set null.")
    if "=" not in word or word.startswith("="):
        return ConfigError(
            f"'{word}' is not a setting: settings are written key=value, such as optimizer.lr=3e-4."
        )
    return ConfigError(
        f"{word}: the value cannot be read ({reason.splitlines()[0]}).\n"
        "Quote what holds spaces or signs, once for the shell and once for the value: "
        "\"key='a, b!'\"."
    )


def check_group(known: Mapping[str, Group], override: Override) -> None:
    """Refuse an override whose group's choice does not exist, and those that name Hydra's own.

    Raises:
        ConfigError: with the choices there are and a did-you-mean.
    """
    name = override.key_or_group
    if name == "hydra" or name.startswith(("hydra.", "hydra/")):
        raise ConfigError(
            f"{override.input_line}: Hydra's own settings have no effect here. The folder of a run "
            "is run_dir=DIR; -m runs several; --config-dir adds YAML."
        )
    group = known.get(name)
    if group is None or override.is_sweep_override():
        return
    value = override.value()
    optional = group.default is None
    if value is None and optional:
        return
    if isinstance(value, dict) or (isinstance(value, list) and not optional):
        raise ConfigError(
            f"{override.input_line}: {name} is a group, of which one is chosen: {name}=CHOICE. Its "
            f"settings are {name}.KEY=VALUE. Choices: {', '.join(group.choices)}."
        )
    for choice in value if isinstance(value, list) else [value]:
        check_choice(group, None if choice is None else str(choice))


@contextlib.contextmanager
def explained(command: str, words: Sequence[str]) -> Iterator[None]:
    """Turn what Hydra and OmegaConf raise inside into a `ConfigError`.

    Raises:
        ConfigError: names the key, the value and a fix.
    """
    try:
        yield
    except OmegaConfBaseException as error:
        raise _from_omegaconf(command, words, error, "") from None
    except YAMLError as error:
        raise _from_yaml(error) from None
    except (HydraException, ValueError) as error:
        cause = error.__cause__ or error.__context__
        if isinstance(cause, OmegaConfBaseException):
            raise _from_omegaconf(command, words, cause, str(error)) from None
        raise ConfigError(_plain(error)) from None


def _from_omegaconf(
    command: str, words: Sequence[str], error: OmegaConfBaseException, context: str
) -> ConfigError:
    key = str(error.full_key or error.key or "")
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    # The last of several counts.
    given = next((w for w in reversed(words) if re.match(rf"\+*{re.escape(key)}[.=]", w)), None)
    where = f" ({context.splitlines()[0].partition(':')[0]})" if context.startswith("In '") else ""
    if isinstance(error, InterpolationKeyError | InterpolationResolutionError):
        return ConfigError(
            f"{given or key}: {_decapitalise(reason)}. ${{key}} stands for another setting's "
            "value, ${oc.env:NAME} for an environment variable's."
        )
    if isinstance(error, MissingMandatoryValue):
        return ConfigError(
            f"{key} has no value; give it one with {key}=VALUE, or choose a "
            f"{key.partition('.')[0]} that has one."
        )
    if isinstance(error, ValidationError):
        kind = _expected(error)
        doc = _doc(error)
        return ConfigError(
            f"{given or key}{where}: {f'{key} must be {kind}' if kind else _decapitalise(reason)}."
            f"{f'{chr(10)}{key}: {doc}' if doc else ''}"
        )
    if isinstance(error, ConfigAttributeError | ConfigKeyError):
        typed = given.lstrip("+").partition("=")[0] if given else key
        value = given.partition("=")[2].strip("'\"") if given else ""
        return unknown_key(
            key, error.object_type, command=command, typed=typed, where=where, value=value
        )
    return ConfigError(f"{given or key}{where}: {reason}")


def _from_yaml(error: YAMLError) -> ConfigError:
    """Return what is wrong with a YAML file: file, line, the line itself and the reason."""
    mark = getattr(error, "problem_mark", None)
    if not isinstance(error, MarkedYAMLError) or mark is None:
        return ConfigError(f"A YAML file cannot be read: {error}.")
    reason = " ".join(filter(None, [error.problem, error.context]))
    if error.context_mark is not None and error.context_mark.line != mark.line:
        reason += f" that begins in line {error.context_mark.line + 1}"
    try:
        lines = Path(mark.name).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        lines = []
    text = lines[mark.line] if mark.line < len(lines) else ""
    shown = f"\n\n    {text.expandtabs(1)}\n    {' ' * mark.column}^" if text.strip() else ""
    return ConfigError(f"{mark.name}, line {mark.line + 1}: this is not YAML: {reason}.{shown}")


def _expected(error: OmegaConfBaseException) -> str:
    """Return what type the key wants, as a user would say it; "" where that is not known."""
    schema, key = error.object_type, error.key
    if not dataclasses.is_dataclass(schema) or not isinstance(key, str):
        return ""
    hint = typing.get_type_hints(schema).get(key)
    if hint is None:
        return ""
    if dataclasses.is_dataclass(hint):
        if schema in ROOTS.values() or schema is RunConfig:
            return f"a choice of the group {key}"
        names = ", ".join(field.name for field in dataclasses.fields(hint))
        return f"given setting by setting: {error.full_key}.KEY=VALUE with KEY one of {names}"
    return kind_of(hint)


def _doc(error: OmegaConfBaseException) -> str:
    schema = error.object_type
    if not dataclasses.is_dataclass(schema) or not isinstance(schema, type):
        return ""
    return field_docs(schema).get(str(error.key), "")


def _decapitalise(text: str) -> str:
    return text[:1].lower() + text[1:]


def _plain(error: Exception) -> str:
    """Return Hydra's own words without its search path, its inner names and advice to use `+`."""
    text = str(error).partition("\nConfig search path")[0]
    lines = [
        line
        for line in text.splitlines()
        if not re.search(r"hydra\.cc|To append to your|^\s*schema(_\w+)?$", line)
    ]
    return "\n".join(lines)
