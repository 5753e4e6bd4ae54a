"""Validation loss of synchronisation modes at equal tokens, beside allreduce.

`python -m benchmarks.modes` trains a small character model on the shipped text with four replicas,
under every mode and with two seeds, and prints a JSON object a mode. The numbers are results, not
times: where no server takes pushes in the order of their arrival, a loaded machine changes nothing.
"""

import argparse
import json
import math
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.curves import draw

STEPS, START = 400, 100
"""Of a run; of the start of those that change their mode."""

LOCAL = "sync=local_sgd sync.sync_every_steps=10 sync.warmup_sync_steps=100"
DILOCO = "sync=diloco sync.sync_every_steps=10 sync.warmup_sync_steps=100"
QUORUM = "sync=quorum_diloco sync.sync_every_steps=10"
ASYNC = "sync=async_local_sgd sync.sync_every_steps=10"

MODES = {
    "allreduce": "sync=allreduce",
    "one replica's share of the tokens": "sync=allreduce launcher.nproc_per_node=1 "
    "train.global_batch_size=8",
    "local_sgd, H=10": "sync=local_sgd sync.sync_every_steps=10",
    "local_sgd, H=10, after 100 steps": LOCAL,
    "local_sgd, H=10, after 100 steps, inner_state=average": f"{LOCAL} sync.inner_state=average",
    "hierarchical, 2 replicas H=5, all H=20, after 100 steps": "sync=hierarchical "
    "sync.levels=[{replicas:2,every_steps:5},{replicas:-1,every_steps:20}] "
    "sync.warmup_sync_steps=100",
    "diloco, H=10": "sync=diloco sync.sync_every_steps=10",
    "diloco, H=10, after 100 steps": DILOCO,
    "diloco, H=10, after 100 steps, int4": f"{DILOCO} sync.wire_dtype=int4",
    "streaming_diloco, H=10, 2 fragments, after 100 steps": "sync=streaming_diloco "
    "sync.sync_every_steps=10 sync.fragments=2 sync.overlap_steps=1 sync.warmup_sync_steps=100",
    "ssp, s=0": "sync=ssp sync.max_staleness=0",
    "ssp, s=3": "sync=ssp sync.max_staleness=3",
    "async_ps": "sync=async_ps",
    "async_local_sgd, H=10": ASYNC,
    "easgd": "sync=easgd",
    "gossip, H=1": "sync=gossip",
}

CONTINUED = {
    "async_local_sgd, H=10, after 100 steps": ASYNC,
    "quorum_diloco, H=10, after 100 steps": QUORUM,
    "quorum_diloco, H=10, after 100 steps, K=3": f"{QUORUM} sync.quorum=3",
    "quorum_diloco, H=10, after 100 steps, K=3, outer_momentum=0.6": f"{QUORUM} sync.quorum=3 "
    "sync.outer_momentum=0.6",
    "quorum_diloco, H=10, after 100 steps, K=3, grace_s=0.2": f"{QUORUM} sync.quorum=3 "
    "sync.grace_s=0.2",
}
"""Modes without a synchronous start of their own: they go on from a checkpoint of allreduce."""

LIMITS = {
    **{name: 0.10 for name in MODES | CONTINUED if name.startswith("async")},
    "diloco, H=10, after 100 steps": 0.03,
    "local_sgd, H=10, after 100 steps": 0.06,
}
"""How far over the first mode's loss a mode may end."""

SEQ_LEN = 64

COMMON = (
    "model=gpt_tiny", "model.n_layers=2", "model.dim=64", "model.n_heads=4",
    f"model.seq_len={SEQ_LEN}", "model.dropout=0", "tokenizer=char", "strategy=data",
    "launcher.nproc_per_node=4", "train.global_batch_size=32", "train.micro_batch_size=8",
    "train.eval_every_steps=50", "train.eval_tokens=65536", "train.sample_tokens=0",
    "train.precision=fp32", "optimizer.lr=3e-3", "scheduler=cosine", "scheduler.warmup_steps=20",
    f"scheduler.decay_steps={STEPS - 20}", "checkpoint.save_best=false",
    "checkpoint.every_steps=null", "metrics.progress=false", "metrics.peak_tflops=1.0",
)  # fmt: skip
"""512 tokens a step on each of four replicas."""

Curve = list[tuple[int, float]]
"""Tokens read, and the validation loss then."""


def train(words: str, seed: int, run_dir: Path, steps: int = STEPS) -> None:
    """Train up to `steps` steps, from the newest checkpoint if there is one."""
    command = [sys.executable, "-m", "llmtrain", "train", *COMMON, *words.split()]
    command += [f"train.seed={seed}", f"train.steps={steps}", f"run_dir={run_dir}"]
    # The last value of a key counts, and Hydra refuses two: the mode's own come instead.
    keys = {word.partition("=")[0] for word in words.split()}
    kept = [w for w in command if w.partition("=")[0] not in keys or w in words.split()]
    done = subprocess.run(kept, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(done.stderr)


def train_mode(name: str, seed: int, folder: Path) -> Path:
    """Train the mode called `name`; return its run directory."""
    run_dir = folder / re.sub(r"\W+", "_", name) / str(seed)
    if name in MODES:
        train(MODES[name], seed, run_dir)
        return run_dir
    start = folder / "start" / str(seed)
    if not start.exists():
        train("sync=allreduce", seed, start, START)
    shutil.copytree(start, run_dir)
    train(CONTINUED[name], seed, run_dir)
    return run_dir


def read(run_dir: Path) -> tuple[Curve, float]:
    """Return how the validation loss fell, and MB that a rank sent; to a server and back."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    tokens = json.loads((run_dir / "plan.json").read_text())["global_batch_size"] * SEQ_LEN
    curve = [(line["step"] * tokens, line["val_loss"]) for line in lines if "val_loss" in line]
    every = [line for line in lines if "comm_bytes" in line]
    steps = [0, *(line["step"] for line in every)]
    sent = sum(
        line["comm_bytes"] * (line["step"] - before)
        for line, before in zip(every, steps, strict=False)
    )
    return curve, sent / 1e6


def measure(name: str, seeds: int, folder: Path) -> dict[str, Any]:
    """Return the row of a mode, but for its comparison with the first one."""
    read_all = [read(train_mode(name, seed, folder)) for seed in range(seeds)]
    curves = [curve for curve, _ in read_all]
    # A server rests once at least as many tokens are in: seeds may differ by a push.
    mean = [
        [at[0][0], statistics.mean(loss for _, loss in at)] for at in zip(*curves, strict=False)
    ]
    losses = [curve[-1][1] for curve in curves]
    return {"mode": name, "val_loss": losses, "sent_mb": read_all[-1][1], "curve": mean}


def main() -> None:
    """Train all modes; print one JSON object a line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.modes", description=__doc__)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--mode", action="append", choices=MODES | CONTINUED)
    parser.add_argument("--keep", type=Path, help="keep the runs here")
    parser.add_argument("--plot", type=Path, help="draw the losses over tokens into this SVG")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="llmtrain-modes-") as name:
        for mode in args.mode or MODES | CONTINUED:
            row = measure(mode, args.seeds, args.keep or Path(name))
            pairs = zip(row["val_loss"], (rows or [row])[0]["val_loss"], strict=True)
            row["over_first"] = statistics.mean(own / first - 1 for own, first in pairs)
            rows.append(row)
            print(json.dumps(row), flush=True)
    if args.plot:
        args.plot.write_text(draw(rows))
    late = [row["mode"] for row in rows if row["over_first"] > LIMITS.get(row["mode"], math.inf)]
    if late:
        sys.exit(f"further over the first mode than allowed: {', '.join(late)}")


if __name__ == "__main__":
    main()
