"""The groups of a command and their choices, read off the YAML files without composing.

For --help, completion and did-you-mean. Imports neither hydra nor omegaconf: --help waits for it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from llmtrain.config.paths import conf_dir

_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True)
class Group:
    """A configuration group of one command."""

    name: str
    default: str | None
    choices: dict[str, str]
    """Name of each choice -> first comment line of its YAML."""


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file; empty where it holds none."""
    try:
        loaded = yaml.load(path.read_text(), Loader=_Loader)
    except (OSError, yaml.YAMLError, UnicodeDecodeError):
        return {}
    return loaded if isinstance(loaded, dict) else {}


def groups(command: str, config_dirs: Sequence[Path] = ()) -> dict[str, Group]:
    """Return the groups that `command` knows, in the order of its root YAML."""
    dirs = [conf_dir(), *config_dirs]
    found = {}
    for entry in read_yaml(conf_dir() / f"{command}.yaml").get("defaults", []):
        if isinstance(entry, dict):
            ((name, default),) = entry.items()
            choices: dict[str, str] = {}
            for folder in dirs:
                for path in sorted((folder / name).rglob("*.yaml")):
                    choice = path.relative_to(folder / name).with_suffix("").as_posix()
                    choices.setdefault(choice, first_comment(path))
            found[name] = Group(name, default, choices)
    return found


def first_comment(path: Path) -> str:
    """Return the first comment line of a YAML file that is for people."""
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return ""
    comments = (line[1:].strip() for line in lines if line.startswith("#"))
    return next((text for text in comments if not text.startswith("@package")), "")


def choice_file(group: str, choice: str, config_dirs: Sequence[Path] = ()) -> Path | None:
    """Return the YAML of a choice; null where there is none."""
    for folder in [conf_dir(), *config_dirs]:
        path = folder / group / f"{choice}.yaml"
        if path.is_file():
            return path
    return None
