"""Losses over tokens as a picture, a line a mode. SVG, so that it needs no library.

`python -m benchmarks.curves OUT.svg < ROWS` draws what `benchmarks.modes` printed, all at once or
in several goes.
"""

import json
import math
import sys
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 620.0, 420.0, 64.0, 44.0, 520.0, 52.0
"""Of the drawing, in pixels: what the axes span, and what stands around it."""

COLOURS = (
    "#000000", "#4c78a8", "#f58518", "#e45756", "#72b7b2", "#54a24b", "#b79a20", "#b279a2",
    "#ff9da6", "#9d755d", "#7f7f7f",
)  # fmt: skip
DASHES = ("", "7 3", "2 3")
"""Lines beyond as many as there are colours are dashed."""

HIGHEST = 3.0
"""Loss at which the picture ends above: what is over it is the first steps, the same for all."""


def draw(rows: Sequence[dict[str, Any]]) -> str:
    """Return the SVG.

    Args:
        rows: Of each mode, "mode", and "curve": [tokens, loss] of every evaluation.
    """
    most_tokens = max(tokens for row in rows for tokens, _ in row["curve"])
    low = math.floor(min(loss for row in rows for _, loss in row["curve"]) * 10) / 10

    def place(tokens: float, loss: float) -> tuple[float, float]:
        across = tokens / most_tokens * WIDTH
        return LEFT + across, TOP + (HIGHEST - loss) / (HIGHEST - low) * HEIGHT

    body = [_text(LEFT, 26, "Validation loss at equal tokens", 16)]
    for i in range(round((HIGHEST - low) / 0.2) + 1):
        loss = low + 0.2 * i
        if loss <= HIGHEST + 1e-9:
            y = place(0, loss)[1]
            body.append(_line(LEFT, y, LEFT + WIDTH, y, "#dddddd"))
            body.append(_text(LEFT - 8, y + 4, f"{loss:.1f}", 12, "end"))
    for i in range(5):
        x, y = place(most_tokens * i / 4, low)
        body.append(_line(x, y, x, y + 5, "black"))
        body.append(_text(x, y + 20, f"{most_tokens * i / 4 / 1e6:.2f}", 12, "middle"))
    body.append(_line(LEFT, TOP, LEFT, TOP + HEIGHT, "black"))
    body.append(_line(LEFT, TOP + HEIGHT, LEFT + WIDTH, TOP + HEIGHT, "black"))
    below = TOP + HEIGHT + 42
    body.append(
        _text(LEFT + WIDTH / 2, below, "tokens read by all replicas, millions", 13, "middle")
    )
    middle = TOP + HEIGHT / 2
    body.append(
        f'<g transform="rotate(-90 18 {middle:.0f})">'
        f"{_text(18, middle, 'validation loss, nats a token', 13, 'middle')}</g>"
    )
    order = sorted(rows, key=lambda row: -row["curve"][-1][1])
    for number, row in enumerate(rows):
        colour = COLOURS[number % len(COLOURS)]
        style = f'stroke="{colour}" stroke-width="2" '
        style += f'stroke-dasharray="{DASHES[number // len(COLOURS) % len(DASHES)]}"'
        seen = [place(tokens, loss) for tokens, loss in row["curve"] if loss <= HIGHEST]
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in seen)
        body.append(f'<polyline points="{points}" fill="none" {style}/>')
        y, x = TOP + 10 + 21 * order.index(row), LEFT + WIDTH + 24
        body.append(f'<line x1="{x:.0f}" y1="{y:.0f}" x2="{x + 26:.0f}" y2="{y:.0f}" {style}/>')
        body.append(_text(x + 34, y + 4, f"{row['curve'][-1][1]:.3f}  {row['mode']}", 12))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{LEFT + WIDTH + RIGHT:.0f}" '
        f'height="{TOP + HEIGHT + BOTTOM:.0f}" font-family="sans-serif">\n'
        '<rect width="100%" height="100%" fill="white"/>\n' + "\n".join(body) + "\n</svg>\n"
    )


def _line(x1: float, y1: float, x2: float, y2: float, colour: str) -> str:
    at = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line {at} stroke="{colour}"/>'


def _text(x: float, y: float, text: str, size: int, anchor: str = "start") -> str:
    where = f'x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}"'
    return f"<text {where}>{escape(text)}</text>"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(draw([json.loads(line) for line in sys.stdin]))
