"""`llmtrain --help` and `llmtrain <command> [KEY=VALUE ...] --help`.

Imports neither hydra nor torch where nothing is typed; else the settings are those composed.
"""

import dataclasses
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from llmtrain.commands.groups import Group, groups
from llmtrain.commands.options import COMMANDS, FLAGS, MODES, SHORT, VALUE_FLAGS, Options
from llmtrain.console import make_console
from llmtrain.units import as_typed

if TYPE_CHECKING:
    from rich.console import Console

    from llmtrain.commands.settings import Key

PLAIN_WIDTH = 110
"""Columns where stdout is no terminal."""


def show_help(options: Options, *, stderr: bool = False) -> None:
    """Print the help of the command in `options`, or of the whole program."""
    console = make_console(stderr=stderr, width=PLAIN_WIDTH)
    sys.stdout.flush()
    if options.command is None:
        _show_program(console, options.config_dirs)
    else:
        _show_command(console, options)


def _show_program(console: "Console", config_dirs: Sequence[Path]) -> None:
    console.print(
        "Train language models over many processes from one composable command.\n\n"
        "[bold]llmtrain[/] COMMAND [FLAGS] [KEY=VALUE ...]"
    )
    _section(console, "Commands")
    _print_rows(console, [(name, command.purpose) for name, command in COMMANDS.items()])
    _section(console, "Flags")
    _print_rows(console, _flag_rows(FLAGS))
    _section(console, "Groups of llmtrain train: GROUP=CHOICE (* is chosen where you choose none)")
    _print_groups(console, groups("train", config_dirs).values())
    _section(console, "Examples")
    for command in COMMANDS.values():
        console.print(f"  llmtrain {command.examples[0]}", markup=False)
    console.print(
        "\nllmtrain COMMAND --help lists a command's settings. A run's folder holds config.yaml, "
        "metrics.jsonl, checkpoints/ and result.json; the same run_dir resumes it. Exit codes: "
        "0 done, 2 a mistake of yours, 1 one of ours, 130 and 143 after a signal."
    )


def _show_command(console: "Console", options: Options) -> None:
    name = options.command
    assert name is not None
    command = COMMANDS[name]
    mode = "".join(f" {flag}" for flag in MODES if options.has(flag))
    mode += f" {options.inspected}" if options.inspected else ""
    typed = options.overrides if command.overrides else []
    # Composed before anything is printed: what is typed may be refused.
    known, found = _looked_up(options) if typed else _defaults(options)
    usage = "[FLAGS] [KEY=VALUE ...]" if command.overrides else "[FLAGS]"
    first = "|".join(command.actions) or command.folders
    usage = f"{first} {usage}" if first else usage
    console.print(f"llmtrain {name}{mode} {usage}\n\n{command.purpose}", markup=False)
    _section(console, "Examples")
    for example in command.examples:
        console.print(f"  llmtrain {example}", markup=False)
    _section(console, "Flags")
    _print_rows(console, _flag_rows(f for f in FLAGS if f in {*command.flags, "--help"}))
    if not command.overrides:
        return
    if known:
        chosen = "is chosen" if typed else "is chosen where you choose none"
        _section(console, f"Groups: GROUP=CHOICE (* {chosen})")
        for group in known.values():
            console.print(f"  [bold]{group.name}[/]")
            rows = [
                (f"  {'*' if choice == group.default else ' '} {choice}", comment)
                for choice, comment in group.choices.items()
            ]
            _print_rows(console, rows)
    values = f"with the values of {' '.join(typed)}" if typed else "with the default choices'"
    _section(console, f"Settings: KEY=VALUE, {values}{'' if typed else ' defaults'}")
    _print_keys(console, found)
    if known and not typed:
        console.print(
            f"\nOther choices have settings of their own: llmtrain {name} {_other(known)} --help",
            markup=False,
        )


def _defaults(options: Options) -> tuple[dict[str, Group], "Iterable[Key]"]:
    """Return the groups and settings of a command where nothing is typed, without composing."""
    from llmtrain.commands.settings import keys

    assert options.command is not None and options.root is not None
    known = groups(options.root, options.config_dirs)
    takes = COMMANDS[options.command].overrides
    return known, keys(options.root, config_dirs=options.config_dirs) if takes else ()


def _looked_up(options: Options) -> tuple[dict[str, Group], "Iterable[Key]"]:
    """Return the groups, their chosen choices as defaults, and the settings as composed.

    Raises:
        ConfigError: when what is typed cannot be composed.
    """
    from llmtrain.commands.compose import composer
    from llmtrain.commands.refuse import check_words
    from llmtrain.commands.settings import keys_of

    assert options.root is not None
    check_words(options.root, options.overrides, options.config_dirs)
    with composer(options.root, options.config_dirs) as hydra:
        survey = hydra.survey(options.overrides, multirun=options.has("--multirun"))
        known = {
            name: dataclasses.replace(group, default=survey.choices.get(name))
            for name, group in hydra.groups.items()
        }
    return known, keys_of(survey.found)


def _other(known: Mapping[str, Group]) -> str:
    """Return choices that are no command's defaults, of the groups that this one has."""
    wanted = [("data", "text"), ("optimizer", "momentum")]
    return " ".join(f"{name}={choice}" for name, choice in wanted if name in known)


def _section(console: "Console", title: str) -> None:
    console.print(Text(f"\n{title}", "bold cyan"))


def _rows() -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column(no_wrap=True, style="bold")
    table.add_column()
    return table


def _print_rows(console: "Console", rows: Iterable[tuple[str, str]]) -> None:
    table = _rows()
    for left, right in rows:
        table.add_row(Text(f"  {left}"), Text(right))
    console.print(table)


def _print_groups(console: "Console", known: Iterable[Group]) -> None:
    table = _rows()
    for group in known:
        choices = Text()
        for number, choice in enumerate(group.choices):
            star = "*" if choice == group.default else ""
            choices.append(f"{' ' if number else ''}{choice}{star}", "bold" if star else "")
        table.add_row(Text(f"  {group.name}"), choices)
    console.print(table)


def _print_keys(console: "Console", found: Iterable["Key"]) -> None:
    table = _rows()
    previous = ""
    for key in found:
        if key.name.endswith(".name"):
            continue  # the group's choice says it
        group = key.name.partition(".")[0] if "." in key.name else ""
        if group != previous:
            table.add_row("", "")
        previous = group
        table.add_row(
            Text(f"  {key.name}={_shown(key.default)}"), Text(_first_sentence(key.doc), "dim")
        )
    console.print(table)


def _shown(value: object) -> str:
    if isinstance(value, str):
        return repr(value) if value != value.strip() or "\n" in value else value
    return as_typed(value)


def _first_sentence(doc: str) -> str:
    # A sentence begins with a capital or a quoted word: "et al. 2019" is no end of one.
    head, *more = re.split(r"\.\s+(?=[A-Z`])", doc, maxsplit=1)
    rest = more[0] if more else ""
    # What null means is worth a second sentence.
    return doc.rstrip(".") if rest.startswith("`null`") else head.rstrip(".")


def _flag_rows(flags: Iterable[str]) -> list[tuple[str, str]]:
    short = {flag: f"{letter}, " for letter, flag in SHORT.items()}
    values = {flag: f" {value}" for flag, value in VALUE_FLAGS.items()}
    return [
        (f"{short.get(flag, '    ')}{flag}{values.get(flag, '')}", FLAGS[flag]) for flag in flags
    ]
