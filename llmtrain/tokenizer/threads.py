"""Whether the library `tokenizers` uses threads: it asks the environment at every call."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

THREADS_ENV = "TOKENIZERS_PARALLELISM"


@contextmanager
def threads(allowed: bool) -> Iterator[None]:
    """Let the library use every core meanwhile, or none but this one's; other processes that are
    started meanwhile do the same."""
    before = os.environ.get(THREADS_ENV)
    os.environ[THREADS_ENV] = "true" if allowed else "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ[THREADS_ENV]
        else:
            os.environ[THREADS_ENV] = before
