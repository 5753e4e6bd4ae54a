"""Frames: what goes in comes out, and nothing else is taken."""

import pytest
import torch

from llmtrain.sync.server.packing import (
    pack,
    parameter_of,
    paths_of,
    place_of,
    unpack,
    with_place,
    without_place,
)
from llmtrain.sync.transport.frame import DTYPES, MAGIC, Frame, FrameError, decode, encode, sizes


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_tensors_of_every_dtype_and_odd_shapes_come_through(dtype: torch.dtype) -> None:
    shapes = [(), (0,), (1,), (3,), (5, 7), (2, 0, 3)]
    tensors = {f"{i}/name": torch.arange(100)[: torch.Size(s).numel()].reshape(s).to(dtype)
               for i, s in enumerate(shapes)}  # fmt: skip
    frame = Frame("push", {"seq": 3, "norm": 0.1, "none": None, "list": [1, "ü"]}, tensors)
    header, text, body = encode(frame)
    assert sizes(header) == (text.numel(), body.numel())
    back = decode(text, body)
    assert (back.kind, back.fields) == (frame.kind, frame.fields)
    assert back.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert back.tensors[name].dtype == dtype
        assert torch.equal(back.tensors[name], tensor)


def test_mixed_dtypes_and_views_come_through() -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    tensors = {"a": torch.tensor([True, False, True]), "b": whole.t(), "c": torch.tensor(2**40)}
    _, text, body = encode(Frame("x", {}, tensors))
    back = decode(text, body).tensors
    assert all(torch.equal(back[name], tensor) for name, tensor in tensors.items())


def test_strangers_are_refused() -> None:
    with pytest.raises(FrameError, match="no frame"):
        sizes(torch.tensor([1, 1, 10, 10]))
    with pytest.raises(FrameError, match="protocol 9"):
        sizes(torch.tensor([MAGIC, 9, 10, 10]))
    with pytest.raises(FrameError, match="no frame"):
        sizes(torch.tensor([MAGIC, 1, 10, -1]))
    _, text, body = encode(Frame("x", {}, {"a": torch.ones(8)}))
    with pytest.raises(FrameError, match="outside"):
        decode(text, body[:16])
    with pytest.raises(FrameError, match="cannot be read"):
        decode(text[:-1], body)


def test_a_state_is_taken_apart_and_put_together() -> None:
    state = {
        "version": 3, "rule": {"weights": {"0/a.b": torch.ones(2), "1/a.b": torch.zeros(2)}},
        "members": [{"base": None, "answer": {"0/a.b": torch.full((2,), 7.0)}}],
    }  # fmt: skip
    plain, tensors = pack(state)
    assert set(paths_of(plain)) == set(tensors)
    assert set(tensors) == {"rule|weights|0/a.b", "rule|weights|1/a.b", "members|0|answer|0/a.b"}
    again, others = pack(unpack(plain, tensors))
    assert again == plain
    assert all(torch.equal(others[path], tensor) for path, tensor in tensors.items())
    with pytest.raises(KeyError):
        unpack(plain, {})


def test_places_in_paths() -> None:
    assert with_place({"a": torch.ones(1)}, 12).keys() == {"12/a"}
    path = "members|0|answer|12/blocks.0.w"
    assert place_of(path) == 12
    assert without_place(path) == "members|0|answer|blocks.0.w"
    assert parameter_of(path) == "blocks.0.w"
    assert without_place("3/a.b") == "a.b"
    with pytest.raises(ValueError, match="no place"):
        place_of("rule|weights|a")
