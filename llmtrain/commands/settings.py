"""The settings of a command, read off the schema and the YAML without composing.

For --help, completion and did-you-mean. Never imports hydra.
"""

import ast
import dataclasses
import functools
import inspect
import itertools
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmtrain.commands.groups import choice_file, groups, read_yaml
from llmtrain.config.store import PLAIN_SCHEMAS, ROOTS, SCHEMAS, is_group


@dataclass(frozen=True)
class Key:
    """One setting."""

    name: str
    """Dotted, as typed."""
    kind: str
    """Its type, as a user would say it."""
    default: Any
    doc: str
    """First sentence of its docstring."""


def schema_of(
    group: str, choice: str | None, config_dirs: Sequence[Path] = ()
) -> tuple[type | None, dict[str, Any]]:
    """Return the dataclass that a choice fills, and the values its YAML gives."""
    if group in PLAIN_SCHEMAS and choice == "schema":
        return PLAIN_SCHEMAS[group], {}
    if choice is not None and choice.startswith("schema_"):
        return SCHEMAS.get(group, {}).get(choice.removeprefix("schema_")), {}
    path = choice_file(group, choice, config_dirs) if choice else None
    if path is None:
        return None, {}
    values = read_yaml(path)
    schema: type | None = None
    merged: dict[str, Any] = {}
    for base in values.pop("defaults", []):
        if isinstance(base, str) and base not in ("_self_", choice):
            schema, inherited = schema_of(group, base, config_dirs)
            merged.update(inherited)
    return schema, {**merged, **values}


def keys(
    command: str, chosen: Mapping[str, str] | None = None, config_dirs: Sequence[Path] = ()
) -> Iterator[Key]:
    """Yield every setting of `command`, with its default.

    Args:
        command: Its name.
        chosen: Group -> choice, where it is not the default one.
        config_dirs: The user's own YAML folders.
    """
    yield from _fields("", ROOTS[command], {})
    for group in groups(command, config_dirs).values():
        choice = (chosen or {}).get(group.name, group.default)
        schema, values = schema_of(group.name, choice, config_dirs)
        if schema is not None:
            yield from _fields(f"{group.name}.", schema, values)


def keys_of(composed: Mapping[str, tuple[type, Any]]) -> Iterator[Key]:
    """Yield every setting of a composed configuration, with its value.

    Args:
        composed: Name -> dataclass and plain values of each group; "" -> those of the root.
    """
    for name, (schema, values) in composed.items():
        yield from _fields(f"{name}." if name else "", schema, values)


def _fields(prefix: str, schema: type, values: Mapping[str, Any]) -> Iterator[Key]:
    docs = field_docs(schema)
    hints = typing.get_type_hints(schema)
    for field in dataclasses.fields(schema):
        hint = hints[field.name]
        name = f"{prefix}{field.name}"
        if dataclasses.is_dataclass(hint):
            if prefix or not is_group(field.name):  # a group of the root is not a setting
                nested = values.get(field.name)
                yield from _fields(
                    f"{name}.", typing.cast(type, hint), nested if isinstance(nested, dict) else {}
                )
            continue
        default = values.get(field.name, field.default)
        if default is dataclasses.MISSING and callable(field.default_factory):
            default = field.default_factory()
        if default is dataclasses.MISSING:
            default = "???"
        yield Key(name, kind_of(hint), default, docs.get(field.name, ""))


def kind_of(hint: Any) -> str:
    """Return a type as a user would say it: `a whole number or null`."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(kind_of(part) for part in typing.get_args(hint))
    if hint is type(None):
        return "null"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    return names.get(hint, getattr(hint, "__name__", str(hint)))


def field_docs(schema: type) -> dict[str, str]:
    """Return the docstring of every field of a dataclass, inherited ones included, on one line."""
    docs: dict[str, str] = {}
    for base in reversed(schema.__mro__):
        if dataclasses.is_dataclass(base):
            docs.update(_module_docs(inspect.getfile(base)).get(base.__name__, {}))
    return docs


@functools.cache
def _module_docs(path: str) -> dict[str, dict[str, str]]:
    """Return class -> field -> docstring of a Python file: Python itself does not keep them."""
    found: dict[str, dict[str, str]] = {}
    for node in ast.parse(Path(path).read_text()).body:
        if not isinstance(node, ast.ClassDef):
            continue
        docs = found.setdefault(node.name, {})
        for item, after in itertools.pairwise(node.body):
            if (
                isinstance(item, ast.AnnAssign)
                and isinstance(item.target, ast.Name)
                and isinstance(after, ast.Expr)
                and isinstance(after.value, ast.Constant)
            ):
                docs[item.target.id] = " ".join(str(after.value.value).split())
    return found
