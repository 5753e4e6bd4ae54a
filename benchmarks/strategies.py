"""Two processes of one thread, under each strategy, beside one process of two threads.

The same model, the same global batch, the same cores: what is lost is what the strategy costs. All
sides live at once and take turns, so that a machine whose speed drifts slows all; a ratio is the
median over rounds of one process's time to the strategy's of the same round.
"""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path

from benchmarks.contender import Contender
from llmtrain.data.prepare import prepare
from llmtrain.launch.environment import worker_environment
from tests.support.runs import compose_run, freeze_run

STRATEGIES = {
    "dp2": "strategy=data",
    "zero3": "strategy=data strategy.zero=3",
    "tp2": "strategy=model",
    "pp2": "strategy=pipeline train.micro_batch_size=2",
}
"""What each is called in DESIGN and papers; pp2 has 8 micro-batches."""

COMMON = (
    "model=gpt_10m", "model.seq_len=256", "tokenizer=bpe", "train.global_batch_size=16",
    "train.steps=100000", "scheduler.warmup_steps=100", "metrics.progress=false",
    "metrics.peak_tflops=1.0", "train.sample_tokens=0", "train.device=cpu",
)  # fmt: skip


def measure_strategies(
    names: Sequence[str], precision: str, rounds: int, folder: Path
) -> list[dict[str, float | str]]:
    """Return a row a strategy.

    Args:
        names: Of STRATEGIES.
        precision: train.precision.
        rounds: Steps of each, in turns.
        folder: For the runs.
    """
    common = (*COMMON, f"train.precision={precision}")
    run = compose_run(*common)
    prepare(run.data, run.tokenizer)  # once, and not by several processes
    sides = {"one process": _start("single", "strategy=single", 1, common, folder)}
    for name in names:
        sides[name] = _start(name, STRATEGIES[name], 2, common, folder)
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            taken[name].append(side.seconds(1))
    for side in sides.values():
        side.close()
    tokens = run.train.global_batch_size * run.model.seq_len
    rows: list[dict[str, float | str]] = []
    for name, seconds in taken.items():
        pairs = zip(taken["one process"], seconds, strict=True)
        ratio = statistics.median(one / own for one, own in pairs)
        limit = _limit(folder / name) if name in STRATEGIES else 1.0
        rows.append(
            {
                "strategy": name,
                "tokens_per_s": tokens / statistics.median(seconds),
                "ratio": ratio,
                "of_its_limit": ratio / limit,
            }
        )
    return rows


def _start(name: str, words: str, processes: int, common: Sequence[str], folder: Path) -> Contender:
    words_of = (*common, *words.split())
    launcher = compose_run(*words_of).launcher
    run_dir = freeze_run(folder / name, *words_of, world_size=processes)
    return Contender("ours", "cpu", 0, run_dir, worker_environment(launcher, processes), processes)


def _limit(run_dir: Path) -> float:
    """Return what the bubble leaves: m / (m + p-1) of a pipeline's time, 1 without one."""
    plan = json.loads((run_dir / "plan.json").read_text())
    micro_batches, pp = plan["gradient_accumulation_steps"], plan["pp"]
    return micro_batches / (micro_batches + pp - 1) if pp > 1 else 1.0
