"""The task `prepare`: raw text to shards, nothing more."""

import json
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from llmtrain.config.schema import PrepareConfig
from llmtrain.console import make_console
from llmtrain.data.prepare import load_report
from llmtrain.errors import EXIT_OK
from llmtrain.tasks.assist import prepare_with_help
from llmtrain.tasks.report import print_cleaning, print_fit

FIRST = ("documents", "tokens", "bytes", "bytes_per_token")
"""What is shown first of a report: the rest may be long."""


def run_prepare(config: PrepareConfig) -> int:
    """Prepare the data and print its report; return the exit code.

    Raises:
        UserError: when an input cannot be used.
    """
    folder = prepare_with_help(config.data, config.tokenizer, make_console(stderr=True))
    report = load_report(folder)
    if config.json:
        print(json.dumps({"folder": str(folder), **report}))
        return EXIT_OK
    console = make_console()
    for name, source in report.pop("sources", {}).items():
        console.print(f"[bold underline]{escape(name)}[/]")
        _print_report(console, source)
    if "clean" not in report:
        console.print("[bold underline]all sources[/]")
    _print_report(console, report)
    # Not in the table, which would cut a path that is wider than the terminal.
    console.print(f"folder: {folder}", soft_wrap=True, highlight=False, markup=False)
    return EXIT_OK


def _print_report(console: Console, report: dict[str, Any]) -> None:
    cleaning, fit = report.pop("clean", {}), report.pop("tokenizer_report", {})
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    _add_rows(table, {key: report[key] for key in FIRST if key in report}, "")
    _add_rows(table, {key: value for key, value in report.items() if key not in FIRST}, "")
    console.print(table)
    if fit:
        print_fit(console, fit)
    if cleaning:
        print_cleaning(console, cleaning)


def _add_rows(table: Table, values: dict[str, object], prefix: str) -> None:
    for name, value in values.items():
        if isinstance(value, dict):
            _add_rows(table, value, f"{prefix}{name}.")
        elif isinstance(value, list):
            numbered = {str(number): item for number, item in enumerate(value, start=1)}
            _add_rows(table, numbered, f"{prefix}{name}.")
        elif value != "":
            # A line each, whatever a document holds.
            text = escape(" ".join(str(value).split()))
            shown = f"{value:,.3f}" if isinstance(value, float) else text
            table.add_row(f"[bold]{prefix}{name}[/]", shown)
