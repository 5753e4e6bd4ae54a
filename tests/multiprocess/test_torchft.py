"""DiLoCo beside torchft's, where that is installed: `pip install -e '.[torchft]'`."""

import importlib.util
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from tests.support.apart import Replica, Weights
from tests.support.distributed import RankPool
from tests.support.runs import tiny_run, train_frozen

pytestmark = [
    pytest.mark.multiprocess,
    pytest.mark.skipif(
        importlib.util.find_spec("torchft") is None,
        reason="NOT CHECKED AGAINST TORCHFT: it is not installed; pip install -e '.[torchft]'",
    ),
]

STEPS, EVERY, REPLICAS = 12, 4, 2
OUTER = {"lr": 0.7, "momentum": 0.9}
COMMON = ("train.precision=fp32", "model.n_layers=3", f"train.steps={STEPS}")


class Manager:
    """torchft's manager of one replica, which is all of its processes."""

    def __init__(self, number: int, lighthouse: str) -> None:
        from torchft.manager import Manager as TorchftManager
        from torchft.process_group import ProcessGroupGloo

        self.store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        patience = timedelta(seconds=60)
        self.manager = TorchftManager(
            pg=ProcessGroupGloo(timeout=patience), load_state_dict=None, state_dict=None,
            min_replica_size=REPLICAS, use_async_quorum=False, timeout=patience,
            quorum_timeout=patience, connect_timeout=patience, rank=0, world_size=1,
            store_addr="127.0.0.1", store_port=self.store.port, lighthouse_addr=lighthouse,
            replica_id=f"replica_{number}", hostname="127.0.0.1", init_sync=False,
        )  # fmt: skip

    def diloco(self, replica: Replica) -> Any:
        """Return torchft's DiLoCo around the optimizer of `replica`: a context."""
        from torchft.local_sgd import DiLoCo

        (inner,) = replica.parts.optimizers
        outer = torch.optim.SGD(list(replica.weights.values()), nesterov=True, **OUTER)
        # In buckets it loses tensors that do not fill one (torchft 0.2.0).
        return DiLoCo(
            self.manager, [replica.parts.model.module], inner, outer, sync_every=EVERY,
            use_bucketization=False,
        )  # fmt: skip


def train_with_torchft(folder: Path) -> list[Weights]:
    """Train replicas of a world of one, side by side; return everyone's weights."""
    from torchft.coordination import LighthouseServer

    lighthouse = LighthouseServer(bind="127.0.0.1:0", min_replicas=REPLICAS, join_timeout_ms=1000)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        with ThreadPoolExecutor(REPLICAS) as threads, ExitStack() as contexts:
            team = [Replica(folder, number, REPLICAS, COMMON) for number in range(REPLICAS)]
            managers = [Manager(number, lighthouse.address()) for number in range(REPLICAS)]
            for replica, manager in zip(team, managers, strict=True):
                contexts.callback(manager.manager.shutdown, wait=False)
                contexts.callback(replica.loader.close)
                contexts.enter_context(manager.diloco(replica))
            for step in range(STEPS):
                for replica in team:
                    replica.gradients(step)
                # An optimizer's step that ends a round waits for the other one's.
                list(threads.map(Replica.update, team))
            rounds = [manager.manager.current_step() for manager in managers]
            assert rounds == [STEPS // EVERY] * REPLICAS
            return [{n: w.detach().clone() for n, w in r.weights.items()} for r in team]
    finally:
        dist.destroy_process_group()
        lighthouse.shutdown()


def test_diloco_is_torchfts_bitwise(
    tmp_path: Path, rank_pool: Callable[[int], RankPool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TORCHFT_USE_BUCKETIZATION", raising=False)
    expected = train_with_torchft(tmp_path)
    run_dir = tiny_run(
        tmp_path / "run", *COMMON, "strategy=data", "sync=diloco",
        f"sync.sync_every_steps={EVERY}", f"sync.outer_lr={OUTER['lr']}",
        f"sync.outer_momentum={OUTER['momentum']}", world_size=REPLICAS,
    )  # fmt: skip
    for weights in [*expected, *rank_pool(REPLICAS).run(train_frozen, run_dir)]:
        assert weights.keys() == expected[0].keys()
        for name, value in weights.items():
            assert torch.equal(value, expected[0][name]), name
