"""`llmtrain prepare --inspect DIR`: what a prepared folder holds, on the terminal or as JSON."""

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from llmtrain.config.groups.prepared import InspectConfig
from llmtrain.console import say
from llmtrain.data.inspection import Shown, inspect_folder
from llmtrain.errors import EXIT_OK
from llmtrain.tasks.pieces import show_pieces, visible
from llmtrain.tasks.report import make_table, print_cleaning, print_fit
from llmtrain.units import counted, format_bytes

BAR = 40
"""Width of the longest bar of a histogram."""

SHARDS = 8
"""Shards of a split that are shown; JSON has all."""


def run_inspection(folder: Path, config: InspectConfig, console: Console) -> int:
    """Print what the prepared `folder` holds; return the exit code.

    Raises:
        DataError: it is damaged.
    """
    found = inspect_folder(folder, Shown(config.documents, config.tokens))
    if config.json:
        print(json.dumps(found, ensure_ascii=False))
        return EXIT_OK
    tokenizer = found["tokenizer"]
    say(console, f"{found['kind']} {found['folder']}", "bold")
    say(
        console,
        f"tokenizer {tokenizer['name']}, {tokenizer['vocab_size']:,} ids, "
        f"separator {tokenizer['separator']} = {tokenizer['separator_id']}",
    )
    for source in found.get("sources", [found]):
        if "name" in source:
            weight = "by size" if source["weight"] is None else source["weight"]
            _title(console, f"source {source['name']}, weight {weight}")
        _print_source(console, source, config)
    if found.get("note") and "sources" in found:
        say(console, f"note: {found['note']}")
    return EXIT_OK


def _print_source(console: Console, source: dict[str, Any], config: InspectConfig) -> None:
    _print_counts(console, source)
    _print_shards(console, source)
    for split, found in source["splits"].items():
        _print_histogram(console, split, found["lengths"])
    _print_removed(console, source)
    if source.get("clean"):
        _title(console, "cleaning")
        print_cleaning(console, source["clean"])
    if source.get("tokenizer_report"):
        _title(console, "tokenizer report")
        print_fit(console, source["tokenizer_report"])
    for split, found in source["splits"].items():
        for example in found["examples"]:
            _print_example(console, split, example, ids=config.ids)
    if source.get("note"):
        say(console, f"\nnote: {source['note']}")


def _print_counts(console: Console, source: dict[str, Any]) -> None:
    table = make_table(
        "split", "documents", "tokens", "text", "min", "median", "mean", "p95", "max"
    )
    for split, found in source["splits"].items():
        lengths = found["lengths"]
        shown = [lengths.get(name) for name in ("min", "median", "mean", "p95", "max")]
        table.add_row(
            split, f"{found['documents']:,}", f"{found['tokens']:,}",
            format_bytes(source.get("bytes", {}).get(split, 0)),
            *("" if value is None else f"{value:,}" for value in shown),
        )  # fmt: skip
    console.print(table)
    say(
        console,
        "min to max are tokens of a document without its separator; "
        f"{source.get('bytes_per_token', 0):.3f} bytes of text a token",
    )


def _print_shards(console: Console, source: dict[str, Any]) -> None:
    table = make_table("shard", "documents", "tokens", "on disk")
    for found in source["splits"].values():
        for shard in found["shards"][:SHARDS]:
            table.add_row(
                shard["name"], f"{shard['documents']:,}", f"{shard['tokens']:,}",
                format_bytes(shard["bytes"]),
            )  # fmt: skip
        if len(found["shards"]) > SHARDS:
            table.add_row(f"and {len(found['shards']) - SHARDS} more")
    console.print()
    console.print(table)


def _print_histogram(console: Console, split: str, lengths: dict[str, Any]) -> None:
    if not lengths["documents"]:
        return
    _title(console, f"tokens a document, {split}")
    longest = max(bin["documents"] for bin in lengths["histogram"])
    table = make_table("from", "to", "documents")
    table.columns[1].justify = "right"
    table.columns[0].justify = "right"
    table.add_column()
    for bin in lengths["histogram"]:
        # One that is not empty is seen, however rare.
        width = -(-bin["documents"] * BAR // longest)
        row = (f"{bin['from']:,}", f"{bin['to'] - 1:,}", f"{bin['documents']:,}", "█" * width)
        table.add_row(*row)
    console.print(table)


def _print_removed(console: Console, source: dict[str, Any]) -> None:
    """Print which documents are not there, and why."""
    counts = source.get("documents", {})
    _title(console, "left out")
    words = [
        f"of {counts.get('read', 0):,} documents read",
        f"{counts.get('duplicates', 0):,} exact and {counts.get('near_duplicates', 0):,} near "
        "duplicates",
        f"{sum(r.get('dropped', 0) for r in source.get('clean', {}).values()):,} by cleaning",
    ]
    skipped = source.get("skipped", {})
    unread = f"{skipped.get('documents', 0):,} more could not be read"
    say(console, f"{', '.join(words)}; {unread}")
    for kind, found in source.get("dedup", {}).items():
        for example in found.get("examples", ()):
            say(
                console,
                f"{kind} duplicate {example['dropped']} of {example['kept']} "
                f"({example['similarity']:.2f}): {visible(example['dropped_start'])}",
            )
    for reason, count in skipped.get("reasons", {}).items():
        say(console, f"not read: {reason}, {counted(count, 'document')}")
    for example in skipped.get("examples", ()):
        say(console, f"not read: {visible(example['text'])}")


def _print_example(console: Console, split: str, example: dict[str, Any], *, ids: bool) -> None:
    where = f"{split} document {example['document']:,}, {example['shard']}"
    prompt = example["prompt_tokens"]
    of_prompt = f", the first {prompt} of its prompt" if prompt else ""
    _title(console, f"{where}, {counted(example['tokens'], 'token')}{of_prompt}")
    console.print(show_pieces(console, example["start"], ids=ids), soft_wrap=True)
    if example["end"]:
        shown = sum(len(p["ids"]) for part in ("start", "end") for p in example[part])
        say(console, f"... {example['tokens'] + 1 - shown:,} tokens ...", "dim")
        console.print(show_pieces(console, example["end"], ids=ids), soft_wrap=True)


def _title(console: Console, text: str) -> None:
    console.print(Text(f"\n{text}", "bold cyan"), soft_wrap=True)
