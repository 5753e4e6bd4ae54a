"""The table of `llmtrain verify`, in a wide and in a narrow terminal."""

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from llmtrain.config.verify import Verification
from llmtrain.tasks import verify

PARAMETER = "blocks.0.attention.wv.bias"


def row(name: str) -> dict[str, Any]:
    worst = {"error": 2.1e-16, "share": 0.25, "parameter": PARAMETER}
    quantities = dict.fromkeys({*verify.SPOKEN, verify.GRADIENT, verify.WEIGHT}, worst)
    return {
        "name": name, "processes": 2, "passed": True, "error": None, "wall_s": 10.0,
        "divergence": None, **quantities,
    }  # fmt: skip


@pytest.mark.parametrize(("width", "parameters"), [(160, True), (80, False)])
def test_nothing_is_cut_at(width: int, parameters: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    said = io.StringIO()
    monkeypatch.setattr(verify, "make_console", lambda: Console(file=said, width=width))
    verification = Verification(
        steps=5, comparisons=[row("zero3xtp2"), row("pp2_interleaved")],
        tolerance={"gradients": [1e-12, 2e-12], "weights": [3e-12]},
    )  # fmt: skip
    verify.show(verification, Path("root"))
    lines = said.getvalue().splitlines()
    rows = [line.split() for line in lines if line.startswith(("zero3xtp2", "pp2_interleaved"))]
    assert [len(words) for words in rows] == [11 if parameters else 9] * 2
    assert all(words.count(PARAMETER) == (2 if parameters else 0) for words in rows)
    assert all(words.count("2.1e-16") == 4 and words[-2:] == ["pass", "10s"] for words in rows)
