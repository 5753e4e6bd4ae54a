"""`llmtrain prepare` beside bare encoders that give the same ids, in one run.

    python -m benchmarks.prepare [--text FILE.jsonl] [--megabytes 50] [--rounds 5]

A byte-level BPE of 32k entries is learned first. Then, in interleaved rounds: the library's
encoders over the same texts in memory, on as many cores as `prepare` uses, and `prepare` from a
file on disk to a finished folder: reading, cleaning, exact dedup, encoding, shards, hashes, fsync.
The peers get the pattern of the tokenizer as it is; `prepare` groups it, see `tiktoken_encoder`.
Medians, in MB of text a second, and as ratios to the fastest bare encoder and to tiktoken's
threads.
"""

import argparse
import json
import multiprocessing
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import tiktoken
import tokenizers
from rich.console import Console
from rich.table import Table

from llmtrain.config.groups.data import JsonlDataConfig
from llmtrain.config.groups.tokenizer import BPETokenizerConfig, PretrainedTokenizerConfig
from llmtrain.console import make_console
from llmtrain.data.locate import SHAKESPEARE
from llmtrain.data.prepare import load_report
from llmtrain.tasks.assist import prepare_with_help
from llmtrain.tokenizer.bpe import train_bpe
from llmtrain.tokenizer.byte_level import GPT2_PATTERN, gpt2_bytes

PROCESSES = 2

THREADS = f"tiktoken, {PROCESSES} threads"
"""The library's own way to use several cores."""

CHANGED_WORDS = 0.1
"""Share of the words that differ in each copy of the shipped text."""


class Bare:
    """tiktoken in processes of its own, each with its share of the texts in memory already."""

    def __init__(self, encoding: tiktoken.Encoding, texts: Sequence[str]) -> None:
        context = multiprocessing.get_context("fork")
        self._lines: list[Connection] = []
        for number in range(PROCESSES):
            here, there = context.Pipe()
            own = texts[number::PROCESSES]
            context.Process(target=_serve, args=(there, encoding, own), daemon=True).start()
            self._lines.append(here)

    def __call__(self) -> int:
        """Encode all texts once; return the tokens."""
        for line in self._lines:
            line.send(None)
        return sum(line.recv() for line in self._lines)


def _serve(line: Connection, encoding: tiktoken.Encoding, texts: Sequence[str]) -> None:
    while True:
        line.recv()
        line.send(sum(encoding.encode_to_numpy(text, disallowed_special=()).size for text in texts))


def make_texts(path: Path | None, megabytes: float) -> list[str]:
    """Return documents of about `megabytes` in all: of a file, or of the shipped text, varied."""
    if path is not None:
        found = [json.loads(line)["text"] for line in path.open(encoding="utf-8")]
    else:
        rng = random.Random(0)
        plays = [file.read_text(encoding="utf-8") for file in sorted(SHAKESPEARE.glob("*.txt"))]
        words = sorted({word for play in plays for word in play.split()})
        pieces = [play[at : at + 5000] for play in plays for at in range(0, len(play), 5000)]
        found, size = [], 0
        while size < megabytes * 1e6:
            for piece in pieces:
                kept = (rng.random() > CHANGED_WORDS for _ in iter(int, 1))
                text = " ".join(w if next(kept) else rng.choice(words) for w in piece.split(" "))
                found.append(text)
                size += len(text)
    texts, size = [], 0
    for text in found:
        if size >= megabytes * 1e6:
            break
        texts.append(text)
        size += len(text.encode("utf-8"))
    return texts


def encoders(file: Path, texts: Sequence[str]) -> dict[str, Callable[[], int]]:
    """Return what encodes `texts` once and gives the number of tokens, by name."""
    backend = tokenizers.Tokenizer.from_str(json.dumps(json.loads(file.read_text())["tokenizer"]))
    backend.encode_special_tokens = True
    byte_of = gpt2_bytes()
    vocab = backend.get_vocab(with_added_tokens=False)
    plain = {token: i for token, i in vocab.items() if all(c in byte_of for c in token)}
    ranks = {bytes(byte_of[c] for c in token): i for token, i in plain.items()}
    encoding = tiktoken.Encoding(
        "bench", pat_str=GPT2_PATTERN, mergeable_ranks=ranks, special_tokens={"<|none|>": 1 << 20}
    )
    batch = list(texts)
    bare = Bare(encoding, batch)
    return {
        f"tiktoken, {PROCESSES} processes": bare,
        THREADS: lambda: sum(
            map(len, encoding.encode_ordinary_batch(batch, num_threads=PROCESSES))
        ),
        "tokenizers, encode_batch_fast": lambda: sum(
            len(e.ids) for e in backend.encode_batch_fast(batch, add_special_tokens=False)
        ),
    }


def measure(texts: Sequence[str], rounds: int, folder: Path) -> list[dict[str, Any]]:
    """Return a row each of `prepare` and of the bare encoders."""
    source = folder / "text.jsonl"
    source.write_text("\n".join(json.dumps({"text": text}) for text in texts) + "\n")
    tokenizer = train_bpe(BPETokenizerConfig(vocab_size=32_768, train_bytes=20_000_000), texts)
    tokenizer.save(folder / "tokenizer.json")
    size = sum(len(text.encode("utf-8")) for text in texts)
    sides = encoders(folder / "tokenizer.json", texts)
    tokens = {name: side() for name, side in sides.items()}  # once to warm up
    seconds: dict[str, list[float]] = {name: [] for name in ("prepare", *sides)}
    for number in range(rounds):
        cache = folder / f"cache_{number}"
        start = time.perf_counter()
        made = prepare_with_help(
            JsonlDataConfig(path=str(source), cache_dir=str(cache), processes=PROCESSES),
            PretrainedTokenizerConfig(path=str(folder / "tokenizer.json")),
            make_console(stderr=True),
        )
        seconds["prepare"].append(time.perf_counter() - start)
        report = load_report(made)
        documents = report["documents"]["train"] + report["documents"]["validation"]
        tokens["prepare"] = sum(report["tokens"].values()) - documents
        for name, side in sides.items():
            start = time.perf_counter()
            side()
            seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    fastest = min(sides, key=lambda name: medians[name])
    return [
        {
            "side": name,
            "MB_per_s": size / 1e6 / medians[name],
            "tokens": tokens[name],
            "ratio_to_fastest": _ratio(seconds[fastest], seconds[name]),
            "ratio_to_threads": _ratio(seconds[THREADS], seconds[name]),
        }
        for name in seconds
    ]


def _ratio(peer: Sequence[float], own: Sequence[float]) -> float:
    """Return the median over rounds of how many times as fast as `peer` a side was."""
    return statistics.median(b / a for a, b in zip(own, peer, strict=True))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.prepare", description=__doc__)
    parser.add_argument("--text", type=Path, help="JSON lines with `text`; else the shipped plays")
    parser.add_argument("--megabytes", type=float, default=50)
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds")
    options = parser.parse_args()
    texts = make_texts(options.text, options.megabytes)
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(texts, options.rounds, Path(folder))
    table = Table(*rows[0], title=f"{options.megabytes:g} MB of text, {PROCESSES} processes")
    for row in rows:
        table.add_row(*(v if isinstance(v, str) else f"{v:,.4g}" for v in row.values()))
    Console().print(table)


if __name__ == "__main__":
    main()
