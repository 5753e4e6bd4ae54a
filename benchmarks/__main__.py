"""`make bench`: tokens/s, GFLOP/s and the share of the machine's bf16 matmul peak, beside a peer.

Each side runs in a process of its own, ours with the environment our launcher gives a worker, the
plain loop with none. Rounds alternate, so that a machine whose speed drifts slows both; the ratio
is the median over rounds of ours to the plain one of the same round.
"""

import argparse
import json
import os
import statistics
import tempfile
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.case import CASES
from benchmarks.contender import Contender
from benchmarks.loader import STEPS, TOKENS, make_folder, measure_loading, measure_waiting
from benchmarks.strategies import STRATEGIES, measure_strategies
from llmtrain.launch.environment import worker_environment
from llmtrain.train.peak import measure_matmul_flops
from tests.support.runs import compose_run, freeze_run

PEAK_SIZES = {"cpu": 2048, "cuda": 8192}
"""Rows and columns of the matrices whose product is the peak."""


def measure(device: str, number: int, rounds: int, folder: Path) -> dict[str, float | str]:
    """Return the row of the case `number` of `device`."""
    case = CASES[device][number]
    quiet = ("metrics.progress=false", "train.sample_tokens=0", "metrics.peak_tflops=1.0")
    run_dir = freeze_run(folder / str(number), *case.overrides, *quiet)
    launcher = compose_run(*case.overrides).launcher
    ours_env = worker_environment(launcher, 1)
    ours = Contender("ours", device, number, run_dir, ours_env)
    plain = Contender("plain", device, number, run_dir, os.environ)
    tokens = case.batch * case.seq_len * case.steps_per_round
    ours_s, plain_s, peaks = [], [], []
    for _ in range(rounds):
        ours_s.append(ours.seconds(case.steps_per_round))
        plain_s.append(plain.seconds(case.steps_per_round))
        peaks.append(measure_matmul_flops(torch.bfloat16, device, PEAK_SIZES[device]))
    ours.close()
    plain.close()
    rate = tokens / statistics.median(ours_s)
    flops = rate * ours.flops_per_token
    return {
        "case": case.name,
        "tokens_per_s": rate,
        "plain_tokens_per_s": tokens / statistics.median(plain_s),
        "ratio": statistics.median(p / o for o, p in zip(ours_s, plain_s, strict=True)),
        "gflop_per_s": flops / 1e9,
        "bf16_peak_gflop_per_s": statistics.median(peaks) / 1e9,
        "share_of_bf16_peak": flops / statistics.median(peaks),
    }


def show(rows: list[dict[str, float | str]], title: str, *, as_json: bool) -> None:
    """Print rows as a table, or as one JSON object a line."""
    if as_json:
        for row in rows:
            print(json.dumps(row), flush=True)
        return
    table = Table(*(name.replace("_", " ") for name in rows[0]), title=title)
    for row in rows:
        table.add_row(*(v if isinstance(v, str) else f"{v:,.4g}" for v in row.values()))
    Console().print(table)


def main() -> None:
    """Measure every case and every strategy, and print a table of each."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=15, help="interleaved rounds of each")
    parser.add_argument("--device", default="cpu", choices=CASES, help="of the plain loop's cases")
    parser.add_argument(
        "--case", type=int, action="append", default=[],
        help="only this case beside the plain loop, from 0; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--strategy", action="append", default=[], choices=STRATEGIES,
        help="only this strategy beside one process; may be repeated",
    )  # fmt: skip
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"), help="strategies'")
    parser.add_argument("--json", action="store_true", help="one JSON object a row on stdout")
    args = parser.parse_args()
    on_cpu = args.device == "cpu"
    everything = not args.case and not args.strategy
    with tempfile.TemporaryDirectory(prefix="llmtrain-bench-") as name:
        folder = Path(name)
        cases = [
            measure(args.device, number, args.rounds, folder)
            for number in (range(len(CASES[args.device])) if everything else args.case)
        ]
        if cases:
            show(cases, "one process beside a plain-PyTorch loop", as_json=args.json)
        if args.strategy or (everything and on_cpu):
            rows = measure_strategies(
                args.strategy or list(STRATEGIES), args.precision, args.rounds, folder
            )
            title = f"two processes of one thread beside one of two, gpt_10m, {args.precision}"
            show(rows, title, as_json=args.json)
        if everything and on_cpu:
            (folder / "tokens").mkdir()
            tokens = make_folder(folder / "tokens", TOKENS)
            rows = measure_loading(tokens, args.rounds, STEPS)
            show(rows, "batches from prepared data", as_json=args.json)
            show([measure_waiting(folder)], "waiting for data in training", as_json=args.json)


if __name__ == "__main__":
    main()
