"""Secrets of this process's environment: kept out of what is written and shown."""

import os
import re
from collections.abc import Mapping

NAME = re.compile(
    r"(?:^|_)(?:API_?KEY|(?:SECRET_)?ACCESS_KEY|SECRET|SECRET_KEY|TOKEN|PASSWORD|PASSWD)$"
)
"""Environment variables that hold one: WANDB_API_KEY, HF_TOKEN, AWS_SECRET_ACCESS_KEY ..."""

LEAST_CHARACTERS = 8
"""Shorter values are words that stand in any text."""

MASK = "***"


def secrets(env: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the secrets of `env`: value -> name of its variable."""
    return {
        value: name
        for name, value in env.items()
        if len(value) >= LEAST_CHARACTERS and NAME.search(name.upper())
    }


def masked(text: str, env: Mapping[str, str] = os.environ) -> str:
    """Return `text` with every secret of `env` replaced by `MASK`."""
    for value in sorted(secrets(env), key=len, reverse=True):
        text = text.replace(value, MASK)
    return text
