"""Tables of what preparing did, for a person."""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from llmtrain.config.groups.data import DataConfig
from llmtrain.config.groups.mixture import sources_of

FIT = {
    "tokens": "tokens",
    "bytes_per_token": "bytes/token",
    "characters_per_token": "chars/token",
    "tokens_per_word": "tokens/word",
    "unknown_ratio": "unknown",
    "vocabulary_used": "ids used",
}
"""What is shown of a tokenizer's report, and its heading."""


TEXT_OF = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "csv"}
"""Endings of files whose lines are records, and the choice of `data` that reads their fields."""


def data_notes(report: dict[str, Any], data: DataConfig) -> list[str]:
    """Return what a person should know of data that is about to be trained on.

    Args:
        report: What `prepare` counted.
        data: Where it comes from.
    """
    found = [report["note"]] if report.get("note") else []
    sources = report.get("sources", {"": report})
    for name, source in sources.items():
        before = f"{name}: " if name else ""
        skipped, replaced = source.get("skipped", {}), source.get("replaced", 0)
        if left := skipped.get("documents", 0):
            read = source.get("documents", {}).get("read", 0)
            example = skipped["examples"][0]["text"] if skipped.get("examples") else ""
            found.append(f"{before}{left} of {read + left} documents were left out. {example}")
        if replaced:
            found.append(f"{before}{replaced} bytes that were no UTF-8 are U+FFFD now.")
    for source_data in sources_of(data).values():
        path = getattr(source_data, "path", None) or ""
        better = TEXT_OF.get(Path(path).suffix) if source_data.name == "text" else None
        if better:
            found.append(
                f"data.path={path} is read as plain text, markup and all: data={better} reads its "
                "fields."
            )
    return [" ".join(note.split()) for note in found]


def make_table(*columns: str) -> Table:
    """Return a table of words in its first column and numbers in the others."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    return table


def print_fit(console: Console, report: dict[str, Any]) -> None:
    """Print how the tokenizer fits the text: in all, and of each script."""
    table = make_table("script", *FIT.values())
    for script, counts in {"all": report, **report.get("scripts", {})}.items():
        table.add_row(script, *(_number(counts.get(name, "")) for name in FIT))
    console.print(table)


def _number(value: float | str) -> str:
    if isinstance(value, str):
        return value
    return f"{value:,}" if isinstance(value, int) else f"{value:.3f}"


def print_cleaning(console: Console, cleaning: dict[str, dict[str, Any]]) -> None:
    """Print what each rule did, in the order they ran, and some of what was dropped."""
    columns = ("documents", "dropped", "lines", "masked", "characters")
    table = make_table("clean", *columns)
    for rule, counts in cleaning.items():
        table.add_row(f"[bold]{rule}[/]", *(f"{counts.get(name, 0):,}" for name in columns))
    console.print(table)
    for rule, counts in cleaning.items():
        for example in counts.get("examples", ()):
            # repr: a newline in a text must not break the list.
            shown = f"dropped by {rule}: {example['id']} {example['text']!r}"
            console.print(shown, soft_wrap=True, highlight=False, markup=False)
