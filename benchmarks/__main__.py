"""`make bench`: tokens/s, GFLOP/s and the share of the machine's bf16 matmul peak, beside a peer.

Each side runs in a process of its own, ours with the environment our launcher gives a worker, the
plain loop with none. Rounds alternate, so that a machine whose speed drifts slows both; the ratio
is the median over rounds of ours to the plain one of the same round.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.case import CASES, Case
from llmtrain.launch.environment import worker_environment
from llmtrain.train.peak import measure_matmul_flops
from tests.support.runs import compose_run, freeze_run


class Side:
    """A child process that runs steps on request."""

    def __init__(self, kind: str, number: int, run_dir: Path, env: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.side", kind, str(number), str(run_dir)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env,
        )  # fmt: skip
        self.flops_per_token = float(self._read()["flops_per_token"])

    def seconds(self, steps: int) -> float:
        """Run `steps` steps; return how long they took."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{steps}\n")
        self._process.stdin.flush()
        return float(self._read()["seconds"])

    def close(self) -> None:
        """End the child."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _read(self) -> dict[str, float]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("a side of the benchmark died; its error is above")
        return json.loads(line)


def measure(number: int, case: Case, rounds: int, folder: Path) -> dict[str, float | str]:
    """Return the row of `case`."""
    quiet = ("metrics.progress=false", "train.sample_tokens=0", "metrics.peak_tflops=1.0")
    run_dir = freeze_run(folder / str(number), *case.overrides, *quiet)
    launcher = compose_run(*case.overrides).launcher
    ours_env = worker_environment(launcher, 1)
    ours = Side("ours", number, run_dir, ours_env)
    plain = Side("plain", number, run_dir, dict(os.environ))
    tokens = case.batch * case.seq_len * case.steps_per_round
    ours_s, plain_s, peaks = [], [], []
    for _ in range(rounds):
        ours_s.append(ours.seconds(case.steps_per_round))
        plain_s.append(plain.seconds(case.steps_per_round))
        peaks.append(measure_matmul_flops(torch.bfloat16, size=2048))
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


def main() -> None:
    """Measure every case and print the table (or one JSON object a line)."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=15, help="interleaved rounds of each case")
    parser.add_argument(
        "--case", type=int, action="append", help="numbers of the cases; default all"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a case on stdout")
    args = parser.parse_args()
    table = Table("case", "tokens/s", "plain loop", "ours : plain", "GFLOP/s", "of bf16 peak")
    with tempfile.TemporaryDirectory(prefix="llmtrain-bench-") as folder:
        for number in args.case or range(len(CASES)):
            row = measure(number, CASES[number], args.rounds, Path(folder))
            if args.json:
                print(json.dumps(row), flush=True)
            table.add_row(
                str(row["case"]), f"{row['tokens_per_s']:,.0f}",
                f"{row['plain_tokens_per_s']:,.0f}", f"{row['ratio']:.2f}",
                f"{row['gflop_per_s']:.1f}", f"{row['share_of_bf16_peak']:.1%}",
            )  # fmt: skip
    if not args.json:
        Console().print(table)


if __name__ == "__main__":
    main()
