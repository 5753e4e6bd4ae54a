"""What a thread is doing: its Python calls, and whether it waits for other ranks."""

import sys
import threading
import traceback
from pathlib import Path

import torch

from llmtrain.distributed.pending import Traffic

MOST_CALLS = 20
"""The innermost calls that are kept."""

_TORCH = str(Path(torch.__file__).parent)
_OURS = str(Path(__file__).parents[1])
_DISTRIBUTED = f"{_TORCH}/distributed/"


def main_calls() -> list[traceback.FrameSummary]:
    """Return the calls of the main thread, innermost last."""
    ident = threading.main_thread().ident
    frame = sys._current_frames().get(ident or 0)
    calls = list(traceback.extract_stack(frame)) if frame is not None else []
    # How a Python program starts tells nothing.
    first = next((i for i, call in enumerate(calls) if call.filename.startswith(_OURS)), 0)
    return calls[first:]


def told(calls: list[traceback.FrameSummary]) -> tuple[str, ...]:
    """Return the innermost of `calls` as text: place and function, then the line's own text."""
    texts = []
    for call in calls[-MOST_CALLS:]:
        place = f"{_short(call.filename)}:{call.lineno} {call.name}"
        texts.append(f"{place}\n  {call.line}" if call.line else place)
    return tuple(texts)


def waits_in(calls: list[traceback.FrameSummary], traffic: Traffic, *, on_cuda: bool) -> str:
    """Return what a thread with `calls` waits in for other ranks; "" where it does not.

    On a GPU any call may be where it waits: collectives are queued, and waited for later.
    """
    innermost = calls[-1].filename if calls else ""
    if traffic.pending and (on_cuda or innermost.startswith(_TORCH)):
        return str(traffic.pending[0])
    if not innermost.startswith(_DISTRIBUTED):
        return ""
    names = []
    for call in reversed(calls):
        if not call.filename.startswith(_DISTRIBUTED):
            break
        if call.name != "wrapper":
            names.append(call.name)
    return f"{names[-1]} ({names[0]})" if len(names) > 1 else "".join(names)


def _short(filename: str) -> str:
    """Return a file's path from its package on."""
    _, found, inside = filename.rpartition("/site-packages/")
    if found:
        return inside
    return filename.removeprefix(_OURS.removesuffix("llmtrain"))
