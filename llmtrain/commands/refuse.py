"""Refusals that need no composition: choices that are not there, keys that no schema has.

Asked before Hydra is imported, so that most slips of the pen are answered at once.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from llmtrain.commands.groups import Group, choice_file, groups
from llmtrain.commands.settings import keys, schema_of
from llmtrain.config.paths import conf_dir
from llmtrain.config.store import PLAIN_SCHEMAS, ROOTS, SCHEMAS, is_group
from llmtrain.errors import ConfigError, did_you_mean

PACKAGE = r"\s*#\s*@package +_global_\s*$"
"""The comment by which a YAML file speaks of all groups; Hydra reads it at the very top alone."""

RENAMED = {"data.encoding_errors": "data.errors: skip (it was replace) or strict"}
"""Keys of earlier versions, and how they are spelt now."""


def check_words(command: str, words: Sequence[str], config_dirs: Sequence[Path]) -> None:
    """Refuse what is wrong with `words` whatever else is chosen; Hydra judges the rest.

    Raises:
        ConfigError: with a did-you-mean.
    """
    known = groups(command, config_dirs)
    chosen = {word.lstrip("+").partition("=")[0]: word.partition("=")[2] for word in words}
    for word in words:
        typed, equals, value = word.partition("=")
        key = typed.lstrip("+")
        if not equals or not re.fullmatch(r"\w+(\.\w+)*", key) or key.startswith("hydra."):
            continue
        if key in known:
            if re.fullmatch(r"[\w./-]+", value):
                check_choice(known[key], None if value == "null" else value)
        else:
            _check_key(command, known, key, chosen, value)


def check_choice(group: Group, choice: str | None) -> None:
    """Refuse a choice that the group does not have.

    Raises:
        ConfigError: with the choices there are and a did-you-mean.
    """
    if choice is None and group.default is None:
        return
    word = "null" if choice is None else choice
    if word not in group.choices:
        hint = did_you_mean(word, group.choices)
        raise ConfigError(
            f"{group.name}={word}: there is no such {group.name}.{hint}\n"
            f"Choices: {', '.join(group.choices)}."
        )


def check_package(command: str, group: str, choice: str, config_dirs: Sequence[Path]) -> None:
    """Refuse a recipe over all groups (an experiment, a sweep) whose file does not say that it is.

    Hydra would put its settings under the group's own name, and complain of that name.

    Raises:
        ConfigError: names the file and the line that it lacks.
    """
    path = choice_file(group, choice, config_dirs)
    if is_group(group) or path is None:
        return
    text = path.read_text(encoding="utf-8", errors="replace")
    if not re.match(PACKAGE, text, re.MULTILINE):
        raise ConfigError(
            f"{group}={choice}: the first line of {path} must be\n\n    # @package _global_\n\n"
            f"Without it what the file sets would belong to a group '{group}', not to the run."
        )


def _check_key(
    command: str, known: Mapping[str, Group], key: str, chosen: Mapping[str, str], value: str
) -> None:
    """Refuse a key whose first part the command lacks, or whose second no choice of the group has;
    and a choice by its name alone, which would leave the settings of another.

    Raises:
        ConfigError: with a did-you-mean.
    """
    first, _, rest = key.partition(".")
    if first not in (*_names(ROOTS[command]), *known, "hydra"):
        raise unknown_key(first, ROOTS[command], command=command, typed=key)
    schemas = [*SCHEMAS.get(first, {}).values(), *filter(None, [PLAIN_SCHEMAS.get(first)])]
    second = rest.partition(".")[0]
    if first in SCHEMAS and rest == "name" and value in known[first].choices:
        raise ConfigError(
            f"{key}={value} changes the name alone, not the settings that go with it; use "
            f"{first}={value}."
        )
    if schemas and rest and not any(second in _names(schema) for schema in schemas):
        default = known[first].default
        schema, _ = schema_of(first, chosen.get(first, default))
        if schema is None:
            schema, _ = schema_of(first, default)
        raise unknown_key(f"{first}.{second}", schema, command=command, typed=key)


def unknown_key(
    key: str, schema: type | None, *, command: str = "train", typed: str = "", where: str = "",
    value: str = "",
) -> ConfigError:  # fmt: skip
    """Return the refusal of a key that `schema` lacks, with the nearest that exists.

    Args:
        key: Dotted, up to the part that is unknown.
        schema: The dataclass that was asked for it.
        command: Whose settings to search for a key of that name elsewhere.
        typed: The whole key as typed.
        where: The file it comes from, in brackets; "": the command line.
        value: What it was to be set to, as typed.
    """
    typed = typed or key
    if key in RENAMED:
        return ConfigError(f"{typed}{where} is spelt {RENAMED[key]}.")
    parent, _, leaf = key.rpartition(".")
    if not dataclasses.is_dataclass(schema):
        return ConfigError(f"{typed}{where}: '{key}' is not a setting, and holds no others.")
    siblings = _names(schema)
    lines = [f"{typed}{where}: there is no setting '{key}'."]
    near = did_you_mean(leaf, [name for name in siblings if name != "name"])
    elsewhere = _elsewhere(command, typed.rpartition(".")[2])
    owners = [name for name, other in SCHEMAS.get(parent, {}).items() if leaf in _names(other)]
    if owners:
        names = " or ".join(owners)
        lines.append(f"It exists where {parent}.name is {names}: {_chosen(key, owners, value)}.")
    elif elsewhere and (typed == leaf or not near):  # its group was left out
        lines.append(f"Did you mean '{elsewhere}'?")
    elif near:
        word = near.split("'")[1]
        lines[0] += f" Did you mean '{f'{parent}.{word}' if parent else word}'?"
    else:
        lines += filter(None, [did_you_mean(typed, [k.name for k in keys(command)]).strip()])
    name = f"of {parent} " if parent else ""
    known = [s for s in siblings if s != "name"]
    lines.append(f"Settings {name}here: {', '.join(known)}.")
    return ConfigError("\n".join(lines))


def _chosen(key: str, owners: Sequence[str], value: str) -> str:
    """Return what to choose so that the key exists: a choice that has an owner's name."""
    group, _, leaf = key.rpartition(".")
    choices = [name for name in owners if (conf_dir() / group / f"{name}.yaml").is_file()]
    if not choices:
        return f"choose another {group}"
    if (group, leaf) == ("data", "path"):
        from llmtrain.data.locate import kind_of_path

        return f"add data={kind_of_path(value)}"
    return f"add {' or '.join(f'{group}={name}' for name in choices)}"


def _names(schema: type) -> list[str]:
    return [field.name for field in dataclasses.fields(schema)]


def _elsewhere(command: str, leaf: str) -> str | None:
    """Return the first key whose last part is `leaf`, in whatever group; null: there is none."""
    return next((k.name for k in keys(command) if k.name.rpartition(".")[2] == leaf), None)
