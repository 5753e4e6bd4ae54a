"""Fixtures of the whole suite."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

# One thread a process: tests run beside each other on few cores, and threads of tiny models that
# wait for each other at every operation slow a busy machine down tenfold. Read before torch is.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# As where the environment is active: what llmtrain tells people to type begins with its name then.
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"

from tests.support.distributed import RankPool


@pytest.fixture(scope="session", autouse=True)
def data_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Prepared data goes to a folder of this session, never to the user's cache."""
    folder = tmp_path_factory.mktemp("cache")
    before = os.environ.get("LLMTRAIN_CACHE")
    os.environ["LLMTRAIN_CACHE"] = str(folder)
    yield folder
    if before is None:
        del os.environ["LLMTRAIN_CACHE"]
    else:
        os.environ["LLMTRAIN_CACHE"] = before


@pytest.fixture(scope="session")
def rank_pool(data_cache: Path) -> Iterator[Callable[[int], RankPool]]:
    """Return a function from a world size to its pool of ranks; a broken pool is started anew."""
    pools: dict[int, RankPool] = {}

    def pool(world_size: int) -> RankPool:
        if world_size not in pools or not pools[world_size].alive:
            pools[world_size] = RankPool(world_size)
        return pools[world_size]

    yield pool
    for one in pools.values():
        one.close()
