"""The task of a server that another leads: `python -m llmtrain.worker RUN_DIR --server 1`."""

from functools import partial
from pathlib import Path

import torch.distributed as dist

from llmtrain.config import paths
from llmtrain.config.plan import load_plan
from llmtrain.config.store import load_run_config
from llmtrain.errors import EXIT_OK
from llmtrain.sync.transport.hub import Hub
from llmtrain.sync.transport.shard import Shard
from llmtrain.sync.transport.stamps import entries
from llmtrain.tasks.serve import open_shard, watch_door
from llmtrain.train.stop import StopRequest


def run_follower(run_dir: Path, store: dist.Store, stop: StopRequest, server: int) -> int:
    """Hold part of the weights until the lead has no more to say; return the exit code.

    When to save and to end is the lead's to decide: signals are only taken note of.

    Raises:
        ShardError: when this server is not where the lead is.
    """
    assert isinstance(store, dist.TCPStore)
    stop.defer()
    run, plan = load_run_config(run_dir / paths.CONFIG), load_plan(run_dir)
    shard = Shard(partial(open_shard, run))
    hub = Hub(shard, plan.replica_size)
    watch_door(hub, store, server)
    for entry in entries(store, server):
        if hub.error is not None:
            raise hub.error
        hub.act(partial(shard.follow, entry))
    return EXIT_OK
