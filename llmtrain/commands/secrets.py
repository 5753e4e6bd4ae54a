"""Secrets in a configuration: refused, since config.yaml, logs and W&B would all show them."""

import re
from collections.abc import Iterator
from typing import Any

from llmtrain.data.clean_mask import KEY, PRIVATE_KEY
from llmtrain.errors import ConfigError
from llmtrain.secret import secrets

LOGIN = re.compile(r"\w+://[^/\s:@]*:[^/\s@]+@")
"""A URL that carries a password."""

NEVER_KEPT = {"prompt"}
"""Keys whose values are written nowhere."""


def refuse_secrets(config: Any) -> None:
    """Refuse a value that is, or holds, a secret; the message does not repeat it.

    Args:
        config: The composed configuration as plain values.

    Raises:
        ConfigError: names the key, and where secrets belong.
    """
    known = secrets()
    for key, value in _texts("", config):
        if key in NEVER_KEPT:
            continue
        named = next((name for secret, name in known.items() if secret in value), None)
        if named is not None:
            raise ConfigError(
                f"{key} holds the value of ${named}, which config.yaml and logs would show. Leave "
                "it in the environment: the libraries that need it read it there."
            )
        if KEY.search(value) or PRIVATE_KEY.search(value) or LOGIN.search(value):
            raise ConfigError(
                f"{key} looks like a key or password, which config.yaml and logs would show. Put "
                "it into the environment (WANDB_API_KEY, HF_TOKEN, AWS_SECRET_ACCESS_KEY ...), "
                "where the libraries that need it read it."
            )


def _texts(prefix: str, value: Any) -> Iterator[tuple[str, str]]:
    """Yield (key, text) of every text in plain values."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _texts(f"{prefix}.{name}" if prefix else str(name), inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(prefix, inner)
    elif isinstance(value, str):
        yield prefix, value
