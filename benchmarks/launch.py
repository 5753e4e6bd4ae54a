"""How long it takes to the first step, beside a bare script, in one run.

    python -m benchmarks.launch [--rounds 7] [--processes 2]

Rounds alternate: `llmtrain train strategy=data` with N processes, from the shell to the first line
of metrics.jsonl; and `torchrun --nproc-per-node N benchmarks/bare_step.py` (Python alone for one
process), which imports what it needs of PyTorch, builds a model of the same size, does one step on
the same data, and prints the loss. The data is prepared before.
"""

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
OVERRIDES = (
    "model=gpt_tiny", "tokenizer=char", "data=shakespeare", "train.device=cpu",
    "train.log_every_steps=1", "train.eval_every_steps=null", "train.sample_tokens=0",
)  # fmt: skip
MOST = 1.3
"""How many times as long as under torchrun it may take."""
MOST_S = 300.0
LOOK_S = 0.002


def when(arrived: Callable[[], bool], process: "subprocess.Popen[bytes]") -> float:
    """Return when `process` had done what `arrived` sees, on the clock of `time.perf_counter`."""
    until = time.perf_counter() + MOST_S
    while not arrived():
        ended = process.poll() is not None and not arrived()
        if ended or time.perf_counter() > until:
            raise RuntimeError(f"no step was done by {process.args}")
        time.sleep(LOOK_S)
    return time.perf_counter()


def has_text(path: Path) -> bool:
    """Whether something stands in the file."""
    return path.exists() and path.stat().st_size > 0


def ours(processes: int, run_dir: Path) -> float:
    """Return the seconds from the shell to the first logged step."""
    strategy = ["strategy=data"] if processes > 1 else []
    words = [*OVERRIDES, *strategy, f"launcher.nproc_per_node={processes}", f"run_dir={run_dir}"]
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "llmtrain", "train", *words], cwd=ROOT, start_new_session=True,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        return when(lambda: has_text(run_dir / "metrics.jsonl"), process) - started
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # all that it started dies with it
        process.wait()
        while any(str(run_dir).encode() in words for words in command_lines()):
            time.sleep(LOOK_S)  # not inside the other's time


def command_lines() -> list[bytes]:
    """Return the command line of every process (Linux)."""
    lines = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            lines.append(entry.read_bytes())
    return lines


def bare(processes: int, tokens: Path, vocabulary: int, answer: Path) -> float:
    """Return the seconds from the shell to the loss of the first step."""
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--standalone"]
    how = torchrun if processes > 1 else []
    script = str(ROOT / "benchmarks" / "bare_step.py")
    with answer.open("wb") as stream:
        started = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, *how, script, str(tokens), str(vocabulary)], cwd=ROOT,
            stdout=stream, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            return when(lambda: has_text(answer), process) - started
        finally:
            process.wait()


def prepared() -> tuple[Path, int]:
    """Return a file of the training tokens, and the size of the vocabulary."""
    words = ["prepare", "data=shakespeare", "tokenizer=char", "--json"]
    told = subprocess.run(
        [sys.executable, "-m", "llmtrain", *words], cwd=ROOT, check=True, capture_output=True
    )
    tokens = Path(json.loads(told.stdout)["folder"]) / "train-00000.bin"
    return tokens, int(np.fromfile(tokens, np.uint16).max()) + 1


def main() -> int:
    """Print a row for each number of processes; return 1 where one beside torchrun is over MOST."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.launch", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="interleaved rounds")
    parser.add_argument("--processes", type=int, action="append", help="only this many")
    options = parser.parse_args()
    tokens, vocabulary = prepared()
    table = Table("processes", "llmtrain, s", "bare, s", "ratio", "least and most")
    is_over = False
    with tempfile.TemporaryDirectory(prefix="llmtrain-bench-") as name:
        for processes in options.processes or (2, 1):
            pairs = [
                (
                    ours(processes, Path(name) / f"{processes}-{number}"),
                    bare(processes, tokens, vocabulary, Path(name) / "answer"),
                )
                for number in range(options.rounds + 1)
            ][1:]  # the first finds nothing in the page cache
            ratios = sorted(a / b for a, b in pairs)
            seconds = [f"{statistics.median(side):.2f}" for side in zip(*pairs, strict=True)]
            is_over |= processes > 1 and statistics.median(ratios) > MOST
            table.add_row(
                str(processes), *seconds, f"{statistics.median(ratios):.2f}",
                f"{ratios[0]:.2f} {ratios[-1]:.2f}",
            )  # fmt: skip
    Console().print(table)
    return int(is_over)


if __name__ == "__main__":
    sys.exit(main())
