"""What the flight recorder and the stack know of collectives, between real ranks."""

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist

from tests.support.distributed import RankPool
from tests.support.waiting import eventually

pytestmark = pytest.mark.multiprocess


def _one_is_late() -> dict[str, Any]:
    """Have rank 1 join a collective late; return what rank 0 knows meanwhile."""
    from torch.distributed.device_mesh import init_device_mesh

    from llmtrain.distributed.pending import read_traffic
    from llmtrain.train.calls import main_calls, told, waits_in

    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    group = mesh.get_group("tp")
    store = dist.distributed_c10d._get_default_store()
    dist.all_reduce(torch.ones(2))
    seen: dict[str, Any] = {}

    def look() -> None:
        assert eventually(lambda: read_traffic().pending, 60)
        time.sleep(0.2)  # from the record to the wait itself
        traffic, calls = read_traffic(), main_calls()
        seen["pending"] = [str(p) for p in traffic.pending]
        seen["ranks"] = [p.ranks for p in traffic.pending]
        seen["asked"] = traffic.asked
        seen["waits"] = waits_in(calls, traffic, on_cuda=False)
        seen["innermost"] = told(calls)[-1]
        store.set("seen", "1")

    if dist.get_rank() == 0:
        thread = threading.Thread(target=look)
        thread.start()
        dist.all_reduce(torch.ones(3, 5, dtype=torch.float64), group=group)
        thread.join()
        # gloo tells the waiting thread that it is done before it tells the recorder.
        seen["cleared"] = eventually(lambda: not read_traffic().pending, 60)
        return seen
    if dist.get_rank() == 1:
        store.wait(["seen"])
        seen["asked"], seen["pending"] = read_traffic().asked, len(read_traffic().pending)
        seen["waits"] = waits_in(main_calls(), read_traffic(), on_cuda=False)
        dist.all_reduce(torch.ones(3, 5, dtype=torch.float64), group=group)
    return seen


def test_a_collective_that_one_rank_has_not_joined(
    rank_pool: Callable[[int], RankPool],
) -> None:
    waits, late, *_ = rank_pool(4).run(_one_is_late)
    (pending,) = waits["pending"]
    assert pending.startswith("all_reduce no. ")
    assert pending.endswith("of double[3, 5] over tp (ranks 0, 1)")
    assert waits["ranks"] == [(0, 1)] and waits["waits"] == pending
    assert "all_reduce" in waits["innermost"] and waits["cleared"]
    assert late["pending"] == 0 and late["waits"] == ""
    (group,) = (key for key in waits["asked"] if "tp" in key)
    assert late["asked"].get(group, 0) < waits["asked"][group]


def _receive_late() -> str:
    """Have rank 0 receive what rank 1 sends late; return what it is said to wait in."""
    from llmtrain.distributed.pending import read_traffic
    from llmtrain.train.calls import main_calls, waits_in

    store = dist.distributed_c10d._get_default_store()
    said: list[str] = []

    def look() -> None:
        assert eventually(lambda: waits_in(main_calls(), read_traffic(), on_cuda=False), 60)
        said.append(waits_in(main_calls(), read_traffic(), on_cuda=False))
        store.set("seen", "1")

    if dist.get_rank() == 0:
        thread = threading.Thread(target=look)
        thread.start()
        dist.recv(torch.ones(3), src=1)
        thread.join()
    if dist.get_rank() == 1:
        store.wait(["seen"])
        dist.send(torch.ones(3), dst=0)
    return said[0] if said else ""


def test_a_receive_that_no_recorder_sees(rank_pool: Callable[[int], RankPool]) -> None:
    assert rank_pool(2).run(_receive_late)[0] == "recv"
