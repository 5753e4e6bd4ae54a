"""A state, taken apart into plain values and tensors by name, and put together again.

    {"rule": {"sum": {"0/embed": T}}}   <->   {"rule": {"sum": {"0/embed": {"tensor": P}}}}
                                              and {P: T} with P = "rule|sum|0/embed"

So that the plain part travels and is saved as JSON, and the tensors as tensors. A parameter's name
is that of its model, behind the place of the process in its replica that holds this shard of it.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import Tensor

from llmtrain.sync.server.tensors import Tensors

SEPARATOR = "|"
"""Between the parts of a path; no parameter's name has it."""
MARK = "tensor"
"""The key of what stands in a tensor's place."""
WEIGHTS = "rule|weights|"
"""Before the names of the weights in a server's state."""
OPTIMIZER = "rule|optimizer|"
"""Before the names of the parameters in the state of a server's torch optimizer."""

_PARAMETER = re.compile(r"\d+/")
_PLACE = re.compile(r"(?:^|\|)(\d+)/")


def pack(state: Any) -> tuple[Any, Tensors]:
    """Return the plain part of `state`, and its tensors by path."""
    tensors: Tensors = {}
    return _packed(state, (), tensors), tensors


def unpack(plain: Any, tensors: Tensors) -> Any:
    """Return what `pack` took apart.

    Raises:
        KeyError: when a tensor is missing.
    """
    if isinstance(plain, list):
        return [unpack(item, tensors) for item in plain]
    if not isinstance(plain, dict):
        return plain
    if plain.keys() == {MARK}:
        return tensors[plain[MARK]]
    return {key: unpack(value, tensors) for key, value in plain.items()}


def restricted(plain: Any, names: Collection[str]) -> Any:
    """Return `plain` without the parameters that are not in `names`: one shard's state."""
    if isinstance(plain, list):
        return [restricted(item, names) for item in plain]
    if not isinstance(plain, dict):
        return plain
    return {
        key: restricted(value, names)
        for key, value in plain.items()
        if key in names or not _PARAMETER.match(key)
    }


def relaid(plain: Any, place: int, names: Collection[str]) -> Any:
    """Return `plain` as a process of another layout has it: with its parameters, at its place.

    Args:
        plain: A whole state, of replicas of any layout.
        place: Of the process in its replica.
        names: Its parameters, as its model names them.
    """
    if isinstance(plain, list):
        return [relaid(item, place, names) for item in plain]
    if not isinstance(plain, dict):
        return plain
    if plain.keys() == {MARK}:
        parts = plain[MARK].split(SEPARATOR)
        moved = [_PARAMETER.sub(f"{place}/", p, 1) if _PARAMETER.match(p) else p for p in parts]
        return {MARK: SEPARATOR.join(moved)}
    kept = {}
    for key, value in plain.items():
        name = key.partition("/")[2] if _PARAMETER.match(key) else None
        if name is None or name in names:
            kept[key if name is None else f"{place}/{name}"] = relaid(value, place, names)
    return kept


def joined(parts: Sequence[Any]) -> Any:
    """Return the state whose shards `parts` are: what `restricted` or `relaid` took apart.

    Raises:
        ValueError: when they differ in more than their parameters.
    """
    first = parts[0]
    if all(isinstance(part, dict) for part in parts):
        keys = dict.fromkeys(key for part in parts for key in part)
        return {key: joined([part[key] for part in parts if key in part]) for key in keys}
    if all(isinstance(part, list) and len(part) == len(first) for part in parts):
        return [joined(items) for items in zip(*parts, strict=True)]
    if any(part != first for part in parts):
        raise ValueError(f"shards of one server's state differ: {parts}")
    return first


def owners(sizes: Mapping[str, int], servers: int) -> dict[str, int]:
    """Return which server holds each parameter: the largest first, each to whoever has least.

    Args:
        sizes: Elements of each parameter, by "place/name".
        servers: Servers.
    """
    held = [0] * servers
    owner = {}
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        owner[name] = min(range(servers), key=held.__getitem__)
        held[owner[name]] += sizes[name]
    return owner


def placed_name(path: str) -> str:
    """Return the parameter that a path speaks of, as the server names it: "place/name"."""
    return next(part for part in path.split(SEPARATOR) if _PARAMETER.match(part))


def paths_of(plain: Any) -> list[str]:
    """Return the paths of all tensors that `plain` wants."""
    if isinstance(plain, dict) and plain.keys() == {MARK}:
        return [plain[MARK]]
    items = plain if isinstance(plain, list) else plain.values() if isinstance(plain, dict) else ()
    return [path for item in items for path in paths_of(item)]


def _packed(value: Any, path: tuple[str, ...], tensors: Tensors) -> Any:
    if isinstance(value, Tensor):
        name = SEPARATOR.join(path)
        tensors[name] = value
        return {MARK: name}
    if isinstance(value, dict):
        return {key: _packed(item, (*path, str(key)), tensors) for key, item in value.items()}
    if isinstance(value, list):
        return [_packed(item, (*path, str(i)), tensors) for i, item in enumerate(value)]
    return value


def with_place(tensors: Tensors, place: int) -> Tensors:
    """Return a process's tensors by parameter as the server names them."""
    return {f"{place}/{name}": tensor for name, tensor in tensors.items()}


def place_of(path: str) -> int:
    """Return the place of the process that a name or path speaks of.

    Raises:
        ValueError: when there is none in it.
    """
    match = _PLACE.search(path)
    if match is None:
        raise ValueError(f"{path} has no place in it")
    return int(match.group(1))


def without_place(path: str) -> str:
    """Return a name or path as the process that it speaks of knows it."""
    place = place_of(path)
    return SEPARATOR.join(part.removeprefix(f"{place}/") for part in path.split(SEPARATOR))


def parameter_of(path: str) -> str:
    """Return the parameter that a path speaks of, as its model names it."""
    return placed_name(path).partition("/")[2]


def under(prefix: str, tensors: Tensors) -> Tensors:
    """Return those of `tensors` whose paths begin with `prefix`, by what follows it."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
