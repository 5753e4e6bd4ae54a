"""The errors that a user meets, and the exit code of each.

`UserError` is the user's mistake: one message that names what is wrong, where, and how to mend it;
no traceback, exit code 2. Everything else is a bug of ours and keeps its traceback (exit code 1).
"""

import difflib
from collections.abc import Iterable

EXIT_OK = 0
EXIT_BUG = 1
EXIT_USER = 2
EXIT_SIGINT = 130
EXIT_SIGTERM = 143


class UserError(Exception):
    """The user's mistake: shown as one message, exit code 2."""


class ConfigError(UserError):
    """A configuration that cannot run: names the keys, their values and a fix."""


class DataError(UserError):
    """Input data that cannot be used: names the file, what is wrong with it and a fix."""


class CheckpointError(UserError):
    """A checkpoint that cannot be loaded: names the folder, what is wrong with it and a fix."""


class RefusedElsewhereError(UserError):
    """Rank 0 has refused and told the user; this rank only ends."""


def require(condition: bool, message: str) -> None:
    """Raise `ConfigError` with `message` unless `condition` holds.

    Raises:
        ConfigError: when `condition` is false.
    """
    if not condition:
        raise ConfigError(message)


def require_choice(key: str, value: object, choices: Iterable[str]) -> None:
    """Refuse a `value` of `key` that is none of `choices`, with a did-you-mean.

    Raises:
        ConfigError: when `value` is none of `choices`.
    """
    known = list(choices)
    if value not in known:
        hint = did_you_mean(str(value), known)
        raise ConfigError(f"{key}={value} is not a choice.{hint} Choices: {', '.join(known)}.")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" for the nearest of `known`, or "" where none is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" Did you mean '{near[0]}'?" if near else ""
