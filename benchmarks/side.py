"""One side of a comparison, in a process of its own: answers "N" with the seconds N steps took.

`python -m benchmarks.side ours|plain cpu|cuda CASE_NUMBER RUN_DIR` reads counts from stdin.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from rich.console import Console

from benchmarks.case import CASES, Case
from llmtrain.config import paths, store
from llmtrain.config.plan import load_plan
from llmtrain.data.dataset import TokenDataset
from llmtrain.data.loader import Loader
from llmtrain.data.prepare import prepare
from llmtrain.distributed.env import init_process_group, open_store, rank_info
from llmtrain.train.build import build_parts
from llmtrain.train.stop import StopRequest
from llmtrain.train.trainer import Interval, Trainer
from tests.support.plain_loop import PlainGPT, plain_steps


def ours(run_dir: Path) -> tuple[Callable[[int], None], float]:
    """Return what runs N steps of the real trainer, and its FLOPs a token."""
    run = store.load_run_config(run_dir / paths.CONFIG)
    info = rank_info(run.train.device)
    rendezvous = open_store()
    init_process_group(info, rendezvous)
    console = Console(quiet=True)
    folder = prepare(run.data, run.tokenizer, console=console)
    parts = build_parts(run, load_plan(run_dir), run_dir, folder, info, console)
    trainer, interval = Trainer(parts, StopRequest(), rendezvous), Interval(0.0)
    parts.loader.start(0)

    def steps(count: int) -> None:
        for _ in range(count):
            result, _ = trainer.one_step(interval)
        # The plain loop reads every loss; a step whose loss nobody waits for would be no peer.
        float(result.loss_sum)

    return steps, parts.plan.flops_per_token or 0.0


def plain(case: Case, run_dir: Path, device: torch.device) -> tuple[Callable[[int], None], float]:
    """Return what runs N steps of the plain loop, on batches that lie ready on `device`."""
    run = store.load_run_config(run_dir / paths.CONFIG)
    dataset = TokenDataset(prepare(run.data, run.tokenizer), "train")
    loader = Loader(
        dataset, seq_len=case.seq_len, samples="windows", seed=0, global_batch_size=case.batch,
        micro_batch_size=case.batch, dp_rank=0, dp_size=1,
    )  # fmt: skip
    ready = [
        (b.input_ids.to(device), b.labels.to(device))
        for (b,) in (loader.load(step * case.batch) for step in range(64))
    ]
    torch.manual_seed(0)
    model = PlainGPT(dataset.vocab_size, case.dim, case.layers, case.heads, case.seq_len)
    model.to(device)
    for block in model.blocks:
        if case.compiled:
            block.compile()
    loop = plain_steps(model, lambda step: ready[step % 64], 10**5, bf16=case.bf16)

    def steps(count: int) -> None:
        for _ in range(count):
            next(loop)

    return steps, 0.0


def main() -> None:
    """Serve."""
    side, device, number, run_dir = sys.argv[1], sys.argv[2], int(sys.argv[3]), Path(sys.argv[4])
    torch.set_num_threads(max(1, torch.get_num_threads()))
    if side == "ours":
        steps, flops = ours(run_dir)
    else:
        steps, flops = plain(CASES[device][number], run_dir, torch.device(device))
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    steps(3)
    wait()
    print(json.dumps({"flops_per_token": flops}), flush=True)
    for line in sys.stdin:
        t0 = time.perf_counter()
        steps(int(line))
        wait()
        print(json.dumps({"seconds": time.perf_counter() - t0}), flush=True)
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
