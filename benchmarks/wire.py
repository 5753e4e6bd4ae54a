"""Bytes that training sends, counted by the kernel, beside the textbook's formulas.

`python -m benchmarks.wire` starts itself in a network namespace of its own (Linux, root or
unprivileged user namespaces), where nothing else uses the loopback device, trains each layout for
few and for more steps, and takes the difference: what starting, evaluating and saving send drops
out. TCP's own headers and acknowledgements are counted too, some tenths of a percent.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from llmtrain.config.schema import RunConfig
from tests.support.distributed import RankPool
from tests.support.runs import compose_run, freeze_run, train_frozen

INSIDE = "LLMTRAIN_WIRE_NAMESPACE"
FEW, MORE = 3, 8
ITEM_BYTES = 4
"""fp32."""
INT4_BYTES = 0.5 + 4 / 256
"""Two numbers a byte, and a scale in fp32 for 256 of them."""

COMMON = (
    "model=gpt_tiny", "tokenizer=byte", "train.global_batch_size=8", "train.precision=fp32",
    "train.log_every_steps=1000", "train.eval_every_steps=null", "train.eval_tokens=2000",
    "train.sample_tokens=0", "scheduler=constant", "scheduler.warmup_steps=0",
    "metrics.progress=false", "metrics.peak_tflops=1.0", "metrics.tensorboard=false",
    "checkpoint.save_best=false", "checkpoint.every_steps=null",
)  # fmt: skip

LAYOUTS = {
    "dp2": "strategy=data strategy.zero=0",
    "zero3": "strategy=data strategy.zero=3",
    "tp2": "strategy=model",
    "pp2": "strategy=pipeline train.micro_batch_size=1",
    "diloco": f"strategy=data sync=diloco sync.sync_every_steps={MORE - FEW}",
    "diloco_int4": f"strategy=data sync=diloco sync.sync_every_steps={MORE - FEW} "
    "sync.wire_dtype=int4",
}
"""The last step of a run is an exchange too: of those between FEW and MORE steps one is counted."""


GLOO_SCATTER = 2.0
"""What a reduce-scatter of N bytes sends over gloo, in N (W-1): torch 2.13 does an all-reduce."""


def formula_bytes(layout: str, run: RunConfig, n_parameters: int, scatter: float) -> float:
    """Return the bytes that both ranks together send in a step, by the ring formulas.

    An all-reduce of N bytes over W ranks sends 2 (W-1)/W N from each, a reduce-scatter or an
    all-gather (W-1)/W N (Patarasuk and Yuan 2009): over all ranks, 2 (W-1) N and (W-1) N; here
    W = 2.

    Args:
        layout: One of LAYOUTS.
        run: Its configuration.
        n_parameters: Parameters of the model, tied ones once.
        scatter: What a reduce-scatter sends, in N (W-1): 1 by the book, `GLOO_SCATTER` over gloo.
    """
    model = run.model
    weights = n_parameters * ITEM_BYTES
    tokens = run.train.global_batch_size * model.seq_len
    activation = tokens * model.dim * ITEM_BYTES
    if layout == "dp2":
        return 2.0 * weights
    if layout == "diloco":
        return 2.0 * weights / (MORE - FEW)
    if layout == "diloco_int4":
        return 2.0 * n_parameters * INT4_BYTES / (MORE - FEW)
    if layout == "zero3":
        return (2 + scatter) * weights  # gathered forward and backward, scattered once
    if layout == "pp2":
        tied = run.model.tie_embeddings
        copy = 257 * model.dim * ITEM_BYTES
        return 2.0 * activation + (2.0 * copy if tied else 0.0)
    # Attention and feed-forward gather and scatter, forward and backward; so do embedding and head.
    passes = (model.n_layers * 2 * 2 + 2) * (1 + scatter)
    norms = (2 * model.n_layers + 1) * model.dim + model.seq_len * model.dim
    loss = 4 * tokens
    return passes * activation + 2.0 * (norms + loss) * ITEM_BYTES


def sent_bytes() -> int:
    """Return what the loopback device of this namespace has sent."""
    line = next(x for x in Path("/proc/net/dev").read_text().splitlines() if "lo:" in x)
    return int(line.split(":")[1].split()[8])


def measure(layout: str, folder: Path, pool: RankPool) -> dict[str, object]:
    """Return a row: bytes a step on the wire and by formula."""
    counts = []
    words = (*COMMON, *LAYOUTS[layout].split())
    n_parameters = 0
    for steps in (FEW, MORE):
        run_dir = freeze_run(
            folder / f"{layout}-{steps}", *words, f"train.steps={steps}", world_size=2
        )
        before = sent_bytes()
        pool.run(train_frozen, run_dir)
        counts.append(sent_bytes() - before)
        n_parameters = json.loads((run_dir / "plan.json").read_text())["n_parameters"]
    measured = (counts[1] - counts[0]) / (MORE - FEW)
    run = compose_run(*words)
    over_gloo = formula_bytes(layout, run, n_parameters, GLOO_SCATTER)
    return {
        "layout": layout,
        "measured_bytes": measured,
        "textbook_bytes": formula_bytes(layout, run, n_parameters, 1.0),
        "gloo_bytes": over_gloo,
        "ratio": measured / over_gloo,
    }


def main() -> None:
    """Measure every layout; print one JSON object a line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.wire", description=__doc__)
    parser.add_argument("--layout", action="append", choices=sorted(LAYOUTS))
    args = parser.parse_args()
    if INSIDE not in os.environ:
        user = [] if os.geteuid() == 0 else ["--map-root-user"]
        command = ["unshare", "--net", *user, sys.executable, "-m", "benchmarks.wire"]
        env = {**os.environ, INSIDE: "1", "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
        sys.exit(subprocess.call([*command, *sys.argv[1:]], env=env))
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    pool = RankPool(2)
    with tempfile.TemporaryDirectory(prefix="llmtrain-wire-") as folder:
        for layout in args.layout or LAYOUTS:
            print(json.dumps(measure(layout, Path(folder), pool)), flush=True)
    pool.close()


if __name__ == "__main__":
    main()
