"""The least that trains: a script for torchrun, or for Python alone, that ends after one step.

    torchrun --nproc-per-node 2 benchmarks/bare_step.py TOKENS VOCABULARY

Imports nothing but PyTorch, NumPy and the plain model. TOKENS is a file of uint16, prepared before.
"""

import os
import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.support.plain_loop import PlainGPT, plain_steps

SEQ_LEN, BATCH = 128, 16
"""Of gpt_tiny, and of train=default."""


def main() -> None:
    """Do one step and print its loss."""
    tokens = np.memmap(sys.argv[1], dtype=np.uint16, mode="r")
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    rows = BATCH // world_size
    ids = np.stack([tokens[i : i + SEQ_LEN + 1] for i in range(rank * rows, (rank + 1) * rows)])
    batch = torch.from_numpy(ids.astype(np.int64))
    torch.manual_seed(0)
    model: torch.nn.Module = PlainGPT(int(sys.argv[2]), seq_len=SEQ_LEN)
    if world_size > 1:
        dist.init_process_group("gloo")
        norm, model = model.norm, DistributedDataParallel(model)
        model.norm = norm  # the loop asks for its type
    loss = next(plain_steps(model, lambda _: (batch[:, :-1], batch[:, 1:]), 1000))
    if rank == 0:
        print(f"loss {loss}", flush=True)


if __name__ == "__main__":
    main()
