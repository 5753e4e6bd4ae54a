"""A composer for each test: Hydra's state is one a process, so it is never left open."""

from collections.abc import Iterator

import pytest

from llmtrain.commands.compose import Composer, composer


@pytest.fixture
def train() -> Iterator[Composer]:
    """Composes `llmtrain train`."""
    with composer("train") as hydra:
        yield hydra
