"""How long a long sweep takes until its first job starts: composed, planned and frozen.

    python -m benchmarks.sweep [--jobs 200]

Jobs differ in a group's choice and in two values. Wall-clock time, and the CPU time of this
process, which says more on a busy machine.
"""

import argparse
import os
import tempfile
import time

from llmtrain.commands.compose import composer
from llmtrain.commands.sweep_jobs import freeze_job, make_folder, read_sweep
from llmtrain.launch.shares import share_machine


def main() -> None:
    """Freeze a sweep in a folder that is removed, and print what it took."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sweep")
    parser.add_argument("--jobs", type=int, default=200)
    jobs = parser.parse_args().jobs
    words = [
        "experiment=shakespeare_char_cpu", "strategy=hybrid", "optimizer=adamw,lion",
        "optimizer.lr=1e-3,3e-4", f"train.seed=range({-(-jobs // 4)})",
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        began, cpu = time.perf_counter(), time.process_time()
        with composer("train") as hydra:
            sweep, shares = read_sweep(hydra, words), share_machine(1)
            make_folder(sweep)
            for job in sweep.jobs:
                freeze_job(hydra, sweep, job, shares)
            sweep.save()
        wall_s, cpu_s = time.perf_counter() - began, time.process_time() - cpu
        os.chdir("/")
    refused = [job.error for job in sweep.jobs if job.status != "not started"]
    assert not refused, refused[0]
    print(
        f"{len(sweep.jobs)} jobs composed and frozen in {wall_s:.1f} s ({cpu_s:.1f} s of CPU), "
        f"{1000 * cpu_s / len(sweep.jobs):.0f} ms of CPU a job"
    )


if __name__ == "__main__":
    main()
