"""Validation loss of synchronisation modes at equal tokens, beside allreduce.

`python -m benchmarks.modes` trains a small character model on the shipped text with four replicas,
under every mode and with two seeds, and prints a JSON object a mode. The numbers are results, not
times: a loaded machine changes nothing.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

MODES = {
    "allreduce": "sync=allreduce",
    "one replica's share of the tokens": "sync=allreduce launcher.nproc_per_node=1 "
    "train.global_batch_size=8",
    "local_sgd, H=10": "sync=local_sgd sync.sync_every_steps=10",
    "local_sgd, H=10, after 100 steps": "sync=local_sgd sync.sync_every_steps=10 "
    "sync.warmup_sync_steps=100",
    "the same, moments averaged": "sync=local_sgd sync.sync_every_steps=10 "
    "sync.warmup_sync_steps=100 sync.inner_state=average",
    "hierarchical, 2 replicas H=5, all H=20, after 100 steps": "sync=hierarchical "
    "sync.levels=[{replicas:2,every_steps:5},{replicas:-1,every_steps:20}] "
    "sync.warmup_sync_steps=100",
    "diloco, H=10": "sync=diloco sync.sync_every_steps=10",
    "diloco, H=10, after 100 steps": "sync=diloco sync.sync_every_steps=10 "
    "sync.warmup_sync_steps=100",
    "the same, int4": "sync=diloco sync.sync_every_steps=10 sync.warmup_sync_steps=100 "
    "sync.wire_dtype=int4",
    "streaming_diloco, H=10, 2 fragments, after 100 steps": "sync=streaming_diloco "
    "sync.sync_every_steps=10 sync.fragments=2 sync.overlap_steps=1 sync.warmup_sync_steps=100",
}

COMMON = (
    "model=gpt_tiny", "model.n_layers=2", "model.dim=64", "model.n_heads=4", "model.seq_len=64",
    "model.dropout=0", "tokenizer=char", "strategy=data", "launcher.nproc_per_node=4",
    "train.global_batch_size=32", "train.micro_batch_size=8", "train.steps=400",
    "train.eval_every_steps=null", "train.eval_tokens=65536", "train.sample_tokens=0",
    "train.precision=fp32", "optimizer.lr=3e-3", "scheduler=cosine", "scheduler.warmup_steps=20",
    "checkpoint.save_best=false", "checkpoint.every_steps=null", "metrics.progress=false",
    "metrics.peak_tflops=1.0",
)  # fmt: skip
"""512 tokens a step on each of four replicas."""


def train(words: str, seed: int, folder: Path) -> tuple[float, float]:
    """Train once; return the validation loss, and MB that a rank sent."""
    run_dir = folder / "run"
    command = [sys.executable, "-m", "llmtrain", "train", *COMMON, *words.split()]
    command += [f"train.seed={seed}", f"run_dir={run_dir}"]
    # The last value of a key counts, and Hydra refuses two: the mode's own come instead.
    keys = {word.partition("=")[0] for word in words.split()}
    kept = [w for w in command if w.partition("=")[0] not in keys or w in words.split()]
    subprocess.run(kept, check=True, stderr=subprocess.PIPE)
    result = json.loads((run_dir / "result.json").read_text())
    lines = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    every = [line for line in lines if "comm_bytes" in line]
    steps = [0, *(line["step"] for line in every)]
    sent = sum(
        line["comm_bytes"] * (line["step"] - before)
        for line, before in zip(every, steps, strict=False)
    )
    return float(result["val_loss"]), sent / 1e6


def main() -> None:
    """Train all modes; print one JSON object a line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.modes", description=__doc__)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--mode", action="append", choices=MODES)
    args = parser.parse_args()
    reference: list[float] = []
    for name in args.mode or MODES:
        losses, sent = [], 0.0
        for seed in range(args.seeds):
            with tempfile.TemporaryDirectory(prefix="llmtrain-modes-") as folder:
                loss, sent = train(MODES[name], seed, Path(folder))
                losses.append(loss)
        reference = reference or losses
        over = statistics.mean(a / b - 1 for a, b in zip(losses, reference, strict=True))
        row = {"mode": name, "val_loss": losses, "over_first": over, "sent_mb": sent}
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
