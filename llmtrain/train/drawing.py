"""A timeline as a picture: a row a rank, time to the right. SVG, so that it needs no library."""

from collections.abc import Iterator, Sequence
from html import escape

from llmtrain.train.timeline import Interval, StepTimeline

WIDTH, ROW, LEFT, TOP = 1400.0, 34.0, 70.0, 64.0
"""Of the drawing, in pixels: the time axis, a rank's row, and what stands left and above."""

COLOURS = {
    "F": ("#4c78a8", "forward"),
    "B": ("#59a14f", "backward"),
    "I": ("#8cd17d", "backward of inputs"),
    "W": ("#b6992d", "backward of weights"),
    "L": ("#b07aa1", "loss"),
    "compute": ("#4c78a8", "compute"),
    "communication": ("#e15759", "communication, not hidden"),
}
"""Of each kind of block, and what the legend calls it; idle time is left white."""


def draw(steps: Sequence[StepTimeline], title: str) -> str:
    """Return the SVG of one step.

    A pipeline's blocks are its computations, with the micro-batch where there is room; without a
    pipeline they are what the rank computed and communicated.

    Args:
        steps: The same step of every rank.
        title: What stands above.
    """
    begin, end = min(s.at[0] for s in steps), max(s.at[1] for s in steps)
    scale = WIDTH / (end - begin)
    height = TOP + ROW * len(steps) + 34
    body = [_text(LEFT, 20, title, 16)]
    kinds: dict[str, None] = {}
    for row, step in enumerate(sorted(steps, key=lambda s: s.rank)):
        y = TOP + row * ROW
        body.append(_text(6, y + 21, f"rank {step.rank}", 13))
        for kind, interval, label in _blocks(step, 1.0 / scale):
            kinds[kind] = None
            x, width = LEFT + (interval[0] - begin) * scale, (interval[1] - interval[0]) * scale
            body.append(
                f'<rect x="{x:.2f}" y="{y + 3:.0f}" width="{width:.2f}" height="{ROW - 6:.0f}" '
                f'fill="{COLOURS[kind][0]}"><title>{escape(label)}</title></rect>'
            )
            if kind in "FBIW" and width > 16:
                short = label.split("micro-batch ")[1].split(",")[0]
                body.append(_text(x + 3, y + 21, short, 11, "white"))
    body += _legend(list(kinds)) + _axis(end - begin, scale, height)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{LEFT + WIDTH + 60:.0f}" '
        f'height="{height:.0f}" font-family="sans-serif">\n'
        '<rect width="100%" height="100%" fill="white"/>\n' + "\n".join(body) + "\n</svg>\n"
    )


def _blocks(step: StepTimeline, pixel_s: float) -> Iterator[tuple[str, Interval, str]]:
    """Yield (kind, interval, label) of what a row shows; gaps under a pixel are closed."""
    for action in step.actions:
        name = COLOURS[action.kind][1]
        where = f", stage {action.stage}, micro-batch {action.micro_batch}"
        label = name + (where if action.kind != "L" else "")
        yield action.kind, action.at, f"{label}, {_ms(action.at)}"
    if step.actions:
        return
    for kind in ("compute", "communication"):
        joined: list[Interval] = []
        for begin, end in getattr(step, kind):
            if joined and begin - joined[-1][1] < pixel_s / 2:
                joined[-1] = (joined[-1][0], end)
            else:
                joined.append((begin, end))
        for interval in joined:
            yield kind, interval, f"{COLOURS[kind][1]}, {_ms(interval)}"


def _legend(kinds: Sequence[str]) -> list[str]:
    parts, x = [], LEFT
    for kind in kinds:
        colour, name = COLOURS[kind]
        parts.append(f'<rect x="{x:.0f}" y="34" width="14" height="14" fill="{colour}"/>')
        parts.append(_text(x + 19, 46, name, 13))
        x += 40 + 7.5 * len(name)
    return parts


def _axis(seconds: float, scale: float, height: float) -> list[str]:
    """Return ten ticks in milliseconds."""
    parts = []
    for tick in range(11):
        at = seconds * tick / 10
        parts.append(_text(LEFT + at * scale, height - 12, f"{at * 1e3:.3g} ms", 11))
    return parts


def _text(x: float, y: float, text: str, size: int, colour: str = "black") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{colour}">{escape(text)}</text>'


def _ms(interval: Interval) -> str:
    return f"{(interval[1] - interval[0]) * 1e3:.3g} ms"
