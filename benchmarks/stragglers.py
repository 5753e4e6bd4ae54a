"""Wall clock of synchronisation modes where one of four replicas is three times as slow.

`python -m benchmarks.stragglers` trains a tiny model with real processes whose computing is
sleeping (`slowed/sitecustomize.py`), so that four replicas fit on few cores. Runs of equal replicas
and runs with a straggler alternate, at the same tokens; a ratio is the median over rounds of the
straggler's seconds to the equal ones of the same round. Counted is the training alone: from the
first step's begin to the last step's end, over all replicas.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.slowed.sitecustomize import FOLDER_ENV, SLEEPS_ENV

REPLICAS = 4

MODES = {
    "allreduce": "sync=allreduce",
    "local_sgd, H=8": "sync=local_sgd sync.sync_every_steps=8",
    "ssp, s=3": "sync=ssp sync.max_staleness=3",
    "async_ps": "sync=async_ps",
    "async_local_sgd, H=8, adapted": "sync=async_local_sgd sync.sync_every_steps=8",
}
LIMITS = {
    "allreduce": (1.8, 3.0), "async_ps": (0.0, 1.5), "async_local_sgd, H=8, adapted": (0.0, 1.7),
}  # fmt: skip
"""Between which ratios a mode has to be where one replica is three times as slow: synchronous ones
feel it, which says that the benchmark measures what it should, and asynchronous ones do not."""

COMMON = (
    "model=gpt_tiny", "model.n_layers=1", "model.dim=16", "model.n_heads=2", "model.seq_len=8",
    "model.dropout=0", "tokenizer=byte", "data=synthetic", "strategy=data",
    f"launcher.nproc_per_node={REPLICAS}", "launcher.threads_per_process=1",
    f"train.global_batch_size={REPLICAS}", "train.micro_batch_size=1",
    "train.log_every_steps=1000", "train.eval_every_steps=null", "train.eval_tokens=64",
    "train.sample_tokens=0", "train.precision=fp32", "scheduler=constant",
    "scheduler.warmup_steps=0", "checkpoint.save_best=false", "checkpoint.every_steps=null",
    "metrics.progress=false", "metrics.peak_tflops=1.0",
)  # fmt: skip


def seconds(words: str, gradients: int, sleeps_s: list[float], folder: Path) -> float:
    """Train once; return how long the training took.

    Args:
        words: The mode's.
        gradients: Of all replicas together.
        sleeps_s: Seconds that each replica's step takes.
        folder: An empty one.
    """
    command = [sys.executable, "-m", "llmtrain", "train", *COMMON, *words.split()]
    command += [f"train.steps={gradients // REPLICAS}", f"run_dir={folder / 'run'}"]
    hook = str(Path(__file__).parent / "slowed")
    path = os.pathsep.join([hook, *filter(None, [os.environ.get("PYTHONPATH")])])
    env = {**os.environ, "PYTHONPATH": path}
    env |= {SLEEPS_ENV: json.dumps(sleeps_s), FOLDER_ENV: str(folder)}
    done = subprocess.run(command, env=env, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    told = [json.loads((folder / f"{r}.json").read_text()) for r in range(REPLICAS)]
    return float(max(steps[-1][1] for steps in told) - min(steps[0][0] for steps in told))


def measure(words: str, args: argparse.Namespace) -> dict[str, Any]:
    """Return the row of a mode: medians over rounds."""
    equal, straggler = [], []
    fast, slow = args.step_ms / 1e3, args.step_ms / 1e3 * args.factor
    for _ in range(args.rounds):
        for last, times in ((fast, equal), (slow, straggler)):
            sleeps = [*[fast] * (REPLICAS - 1), last]
            with tempfile.TemporaryDirectory(prefix="llmtrain-stragglers-") as folder:
                times.append(seconds(words, args.gradients, sleeps, Path(folder)))
    ratios = [s / e for s, e in zip(straggler, equal, strict=True)]
    return {
        "equal_s": statistics.median(equal),
        "straggler_s": statistics.median(straggler),
        "ratio": statistics.median(ratios),
        "ratios": [round(ratio, 2) for ratio in ratios],
    }


def main() -> None:
    """Measure all modes; print one JSON object a line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stragglers", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="runs of each kind, in turns")
    parser.add_argument("--gradients", type=int, default=160, help="of all replicas together")
    parser.add_argument("--step-ms", type=float, default=20.0, help="of a replica")
    parser.add_argument("--factor", type=float, default=3.0, help="how much slower one of them is")
    parser.add_argument("--mode", action="append", choices=MODES)
    args = parser.parse_args()
    outside = []
    for name in args.mode or MODES:
        row = measure(MODES[name], args)
        print(json.dumps({"mode": name, **row}), flush=True)
        low, high = LIMITS.get(name, (0.0, float("inf")))
        if not low <= row["ratio"] <= high and args.factor == 3.0:
            outside.append(f"{name}: {row['ratio']:.2f} is not in {low} to {high}")
    if outside:
        sys.exit("\n".join(outside))


if __name__ == "__main__":
    main()
