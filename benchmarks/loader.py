"""How fast batches come from prepared data: `python -m benchmarks.loader`, part of `make bench`.

The tokens are made up, in a folder written as `prepare` writes one, and lie in the page cache.
What is timed is `Loader.load`, the work that a step's batches take, in the thread that calls it:
training has it done ahead by another one. Rounds alternate between the cases; the median counts. A
short training run then says which share of its steps waits for data.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from llmtrain.config.groups.tokenizer import BPETokenizerConfig
from llmtrain.data.dataset import TokenDataset
from llmtrain.data.loader import Loader
from llmtrain.data.manifest import MANIFEST, Manifest, Shard
from llmtrain.data.publish import TOKENIZER, json_bytes
from llmtrain.data.shard import write_file, write_shard
from llmtrain.tokenizer.byte import ByteTokenizer
from tests.support.runs import freeze_run, train_frozen

TOKENS = 100_000_000
SHARDS = 4
VOCABULARY = 50_257
MEDIAN_LENGTH = 500
"""Tokens of a document in the median; lengths are log-normal, as those of web pages about are."""

LEAST_TOKENS_PER_S = 20e6
MOST_DATA_SHARE = 0.01

GLOBAL_BATCH_TOKENS = 1 << 16
"""Of a step."""

STEPS = 20
"""In a round."""

TRAINED = (
    "model=gpt_tiny", "tokenizer=bpe", "train.steps=60", "train.log_every_steps=10",
    "train.eval_every_steps=null", "train.eval_tokens=2048", "train.sample_tokens=0",
    "checkpoint.save_best=false", "checkpoint.every_steps=null", "metrics.progress=false",
    "metrics.peak_tflops=1.0", "scheduler.warmup_steps=0",
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """What is loaded."""

    samples: str
    seq_len: int


CASES = [
    Case(samples, seq_len)
    for samples in ("windows", "masked_windows", "packed", "documents")
    for seq_len in (256, 2048)
]


def make_folder(folder: Path, tokens: int) -> Path:
    """Write a prepared folder with about `tokens` made-up tokens to train on; return it."""
    rng = np.random.default_rng(0)
    files, shards = {}, []
    tokenizer = ByteTokenizer(BPETokenizerConfig().separator)
    for number in range(SHARDS):
        name = f"train-{number:05d}"
        lengths = _lengths(rng, tokens // SHARDS)
        files |= write_shard(folder, name, lengths, _blocks(rng, lengths))
        shards.append(Shard(name, int(lengths.sum()), len(lengths)))
    tokenizer.save(folder / TOKENIZER)
    files[TOKENIZER] = write_file(folder / TOKENIZER, (folder / TOKENIZER).read_bytes())
    manifest = Manifest(
        dtype="uint16", settings_hash="0" * 32, tokenizer_name="byte", tokenizer_hash="0" * 32,
        vocab_size=VOCABULARY, separator_id=VOCABULARY - 1, splits={"train": shards}, files=files,
    )  # fmt: skip
    write_file(folder / MANIFEST, json_bytes(manifest.to_json()))
    return folder


def _lengths(rng: np.random.Generator, tokens: int) -> npt.NDArray[np.int64]:
    drawn = rng.lognormal(np.log(MEDIAN_LENGTH), 1.0, size=tokens // MEDIAN_LENGTH * 2)
    lengths = np.maximum(2, drawn).astype(np.int64)
    return lengths[: int(np.searchsorted(np.cumsum(lengths), tokens))]


def _blocks(
    rng: np.random.Generator, lengths: npt.NDArray[np.int64]
) -> Iterator[npt.NDArray[np.uint16]]:
    tokens = rng.integers(0, VOCABULARY - 1, size=int(lengths.sum()), dtype=np.uint16)
    tokens[np.cumsum(lengths) - 1] = VOCABULARY - 1
    yield tokens


def tokens_per_s(loader: Loader, case: Case, first: int, steps: int) -> tuple[float, float]:
    """Return the rows' positions a second, and of those the share that is counted in the loss."""
    counted = 0
    started = time.perf_counter()
    for step in range(steps):
        batches = loader.load(first + step * loader.global_batch_size)
        counted += sum(batch.counted_tokens for batch in batches)
    seconds = time.perf_counter() - started
    positions = steps * loader.global_batch_size * case.seq_len
    return positions / seconds, counted / positions


def measure_loading(folder: Path, rounds: int, steps: int) -> list[dict[str, float | str]]:
    """Return a row for each of `CASES`: median tokens/s of `rounds` interleaved rounds."""
    dataset = TokenDataset(folder, "train", verify=False)
    loaders = {}
    for case in CASES:
        rows = GLOBAL_BATCH_TOKENS // case.seq_len
        loaders[case] = Loader(
            dataset, seq_len=case.seq_len, samples=case.samples, seed=1, global_batch_size=rows,
            micro_batch_size=rows // 4, dp_rank=0, dp_size=1,
        )  # fmt: skip
    rates: dict[Case, list[float]] = {case: [] for case in CASES}
    shares: dict[Case, float] = {}
    for number in range(rounds + 1):
        for case, loader in loaders.items():
            first = number * steps * loader.global_batch_size
            rate, shares[case] = tokens_per_s(loader, case, first, steps)
            if number:  # the first round warms caches up
                rates[case].append(rate)
    return [
        {
            "samples": case.samples, "seq_len": case.seq_len,
            "tokens_per_s": statistics.median(rates[case]), "lowest": min(rates[case]),
            "counted_share": shares[case],
            "enough": _word(statistics.median(rates[case]) >= LEAST_TOKENS_PER_S),
        }
        for case in CASES
    ]  # fmt: skip


def measure_waiting(folder: Path) -> dict[str, float | str]:
    """Return the share of a short run's step time that waits for data, without its first lines."""
    run_dir = freeze_run(folder / "run", *TRAINED)
    train_frozen(run_dir)
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "data_time_s" in line][1:]
    shares = [line["data_time_s"] / line["step_time_s"] for line in steps]
    share = statistics.median(shares)
    return {
        "run": "gpt_tiny", "step_time_s": statistics.median(s["step_time_s"] for s in steps),
        "data_share": share, "highest": max(shares), "enough": _word(share < MOST_DATA_SHARE),
    }  # fmt: skip


def _word(is_enough: bool) -> str:
    return "yes" if is_enough else "no"


def main() -> None:
    """Measure, and print one JSON object a line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loader", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--steps", type=int, default=STEPS, help="steps of 65,536 tokens in a round"
    )
    parser.add_argument("--tokens", type=int, default=TOKENS, help="in the folder")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="llmtrain-loader-") as name:
        folder = make_folder(Path(name), args.tokens)
        for row in measure_loading(folder, args.rounds, args.steps):
            print(json.dumps(row), flush=True)
        print(json.dumps(measure_waiting(Path(name))), flush=True)


if __name__ == "__main__":
    main()
