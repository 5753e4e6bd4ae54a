"""Frame: one message as bytes. A header of integers, JSON for what is small, tensors as they are.

    int64: magic, protocol, bytes of JSON, bytes of tensors | JSON (UTF-8) | tensors, 16-aligned

Nothing is ever unpickled: a frame from a stranger is at worst refused.
"""

import json
import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from llmtrain.sync.server.tensors import Tensors

MAGIC = 0x6C6C6D7472616E73
PROTOCOL = 1
HEADER = 4
"""Integers in a header."""
ALIGNMENT = 16
"""Bytes; no dtype needs more."""
MOST_JSON_BYTES = 1 << 28
DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.int32,
        torch.uint8, torch.bool,
    )
}  # fmt: skip


class FrameError(Exception):
    """What arrived is not a frame of this protocol."""


@dataclass(frozen=True)
class Frame:
    """One message."""

    kind: str
    """hello, push, ...: what the two ends have agreed on."""
    fields: dict[str, Any] = field(default_factory=dict)
    """What JSON can say."""
    tensors: Tensors = field(default_factory=dict, repr=False)
    """On the CPU."""


def encode(frame: Frame) -> tuple[Tensor, Tensor, Tensor]:
    """Return header (HEADER,) int64, JSON and tensors, both flat uint8."""
    layout, flat, offset = [], [], 0
    for name, tensor in frame.tensors.items():
        held = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        dtype = str(tensor.dtype).removeprefix("torch.")
        layout.append([name, dtype, list(tensor.shape), offset])
        padding = -held.numel() % ALIGNMENT
        flat += [held, torch.zeros(padding, dtype=torch.uint8)] if padding else [held]
        offset += held.numel() + padding
    words = {"kind": frame.kind, "fields": frame.fields, "layout": layout}
    text = torch.frombuffer(bytearray(json.dumps(words).encode()), dtype=torch.uint8)
    body = torch.cat(flat) if flat else torch.empty(0, dtype=torch.uint8)
    header = torch.tensor([MAGIC, PROTOCOL, text.numel(), body.numel()])
    return header, text, body


def sizes(header: Tensor) -> tuple[int, int]:
    """Return the bytes of JSON and of tensors that follow `header`.

    Raises:
        FrameError: when it is no header of this protocol.
    """
    magic, protocol, text, body = header.tolist()
    if magic != MAGIC or not 0 < text <= MOST_JSON_BYTES or body < 0:
        raise FrameError(f"what arrived is no frame: {header.tolist()}")
    if protocol != PROTOCOL:
        raise FrameError(f"a frame of protocol {protocol} arrived, and {PROTOCOL} is spoken here")
    return text, body


def decode(text: Tensor, body: Tensor) -> Frame:
    """Return the frame; its tensors are views of `body`.

    Raises:
        FrameError: when the JSON does not describe `body`.
    """
    try:
        words = json.loads(bytes(text.numpy()))
        tensors = {}
        for name, dtype, shape, offset in words["layout"]:
            count = math.prod(shape)
            end = offset + count * DTYPES[dtype].itemsize
            if offset < 0 or end > body.numel():
                raise FrameError(f"{name} lies outside its frame")
            tensors[name] = body[offset:end].view(DTYPES[dtype]).reshape(shape)
        return Frame(words["kind"], words["fields"], tensors)
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise FrameError(f"a frame cannot be read: {error}") from error
