"""How a person is told that something went wrong: one rich panel on stderr."""

import re
import sys

from llmtrain.console import make_console
from llmtrain.errors import CheckpointError, ConfigError, DataError, UserError
from llmtrain.secret import masked

TITLES: dict[type, str] = {
    ConfigError: "configuration",
    DataError: "data",
    CheckpointError: "checkpoint",
}
"""What a user's mistake is about, for the panel's title."""


def show_error(title: str, body: str, footer: str = "") -> None:
    """Print one red panel on stderr.

    Args:
        title: A few words on the frame.
        body: What happened, where and how to mend it; taken literally, no markup.
        footer: A dim line on the lower frame, such as the path of a log.
    """
    from rich.panel import Panel
    from rich.text import Text

    text = Text(masked(body.strip()))
    console = make_console(stderr=True)
    if not console.is_terminal:
        # A log or a pipe has no width to respect: wrapped paths could not be searched or copied.
        longest = max(len(line) for line in [*body.splitlines(), footer, title])
        console.width = min(max(longest + 4, 80), 140)
    # What to type stands out: 'quoted words' and key=value.
    text.highlight_regex(re.compile(r"'[^'\n]+'|[\w.+~]*\w=\S*[^\s;,.:)]"), "bold")
    panel = Panel(
        text,
        title=Text(title, "bold red"),
        subtitle=Text(footer, "dim") if footer else None,
        title_align="left",
        subtitle_align="left",
        border_style="red",
    )
    sys.stdout.flush()
    console.print(panel)


def show_user_error(error: UserError) -> None:
    """Print the panel of a user's mistake; its exit code is `EXIT_USER`."""
    kind = next((TITLES[cls] for cls in type(error).__mro__ if cls in TITLES), "")
    show_error(f"error: {kind}" if kind else "error", str(error))


def show_note(message: str) -> None:
    """Print one dim line on stderr."""
    from rich.text import Text

    make_console(stderr=True).print(Text(masked(message), "dim"))
