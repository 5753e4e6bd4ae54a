"""The bubble of a pipeline of two stages whose time is spent computing, beside the formula.

`python -m benchmarks.bubble` trains a GPT whose blocks dwarf its byte vocabulary's head, so that
the stages are equal, and reads the bubble from `metrics.trace`. Rounds alternate between the
schedules; the median over all traced steps is what is compared.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path

from llmtrain.train.timeline import Bubble, measured_bubble, read_trace
from tests.support.distributed import RankPool
from tests.support.runs import freeze_run, train_frozen

SCHEDULES = (
    "GPipe", "1F1B", "Interleaved1F1B", "InterleavedZeroBubble", "ZBVZeroBubble", "DualPipeV",
)  # fmt: skip

TRACED = 4

COMMON = (
    "model=gpt_tiny", "model.n_layers=8", "model.dim=512", "model.n_heads=8", "model.seq_len=256",
    "model.tie_embeddings=false", "tokenizer=byte", "strategy=pipeline", "strategy.cut=uniform",
    "train.global_batch_size=8", "train.micro_batch_size=2", "train.precision=fp32",
    "train.eval_every_steps=null", "train.eval_tokens=2048", "train.sample_tokens=0",
    "train.log_every_steps=1000", f"train.steps={TRACED + 1}", "scheduler=constant",
    "scheduler.warmup_steps=0", "checkpoint.save_best=false", "checkpoint.every_steps=null",
    "metrics.progress=false", "metrics.peak_tflops=1.0", "metrics.trace=true",
    "metrics.trace_after_steps=1", f"metrics.trace_steps={TRACED}",
)  # fmt: skip
"""Four micro-batches of 512 tokens."""


def bubbles(run_dir: Path) -> list[Bubble]:
    """Return the bubble of every traced step."""
    ranks = [read_trace(run_dir / "profile" / f"rank_{rank}.json.gz") for rank in range(2)]
    return [measured_bubble(steps) for steps in zip(*ranks, strict=True)]


def main() -> None:
    """Measure every schedule; print one JSON object a line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bubble", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help=f"of {TRACED} traced steps each")
    parser.add_argument("--schedule", action="append", choices=SCHEDULES)
    parser.add_argument("--keep", type=Path, help="keep the runs, with their drawings, here")
    args = parser.parse_args()
    chosen = args.schedule or SCHEDULES
    pool = RankPool(2)
    measured: dict[str, list[Bubble]] = {schedule: [] for schedule in chosen}
    ideal: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="llmtrain-bubble-") as name:
        folder = args.keep or Path(name)
        for number in range(args.rounds):
            for schedule in chosen:
                run_dir = freeze_run(
                    folder / f"{schedule}-{number}", *COMMON, f"strategy.schedule={schedule}",
                    world_size=2,
                )  # fmt: skip
                pool.run(train_frozen, run_dir)
                measured[schedule] += bubbles(run_dir)
                summary = json.loads((run_dir / "profile" / "timeline.json").read_text())
                ideal[schedule] = summary["ideal_bubble"]
    pool.close()
    for schedule, values in measured.items():
        waiting = [value.waiting for value in values]
        median = statistics.median(waiting)
        row = {
            "schedule": schedule, "bubble": median, "lowest": min(waiting), "highest": max(waiting),
            "theory": ideal[schedule], "ratio": median / ideal[schedule],
            "imbalance": statistics.median(value.imbalance for value in values),
        }  # fmt: skip
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
