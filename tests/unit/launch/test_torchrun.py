"""Ranks that an existing torchrun has started."""

import pytest

from llmtrain import cli
from llmtrain.errors import EXIT_USER
from llmtrain.launch import torchrun


@pytest.mark.parametrize(("rank", "waits"), [("0", []), ("1", [torchrun.SILENCE_S])])
def test_a_refused_rank_lets_rank_0_speak_first(
    rank: str,
    waits: list[float],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # torchrun ends every rank as soon as one has ended: rank 0 would be cut off before its message.
    for name, value in {"RANK": rank, "WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "x"}.items():
        monkeypatch.setenv(name, value)
    slept: list[float] = []
    monkeypatch.setattr(torchrun.time, "sleep", slept.append)
    assert cli.main(["train", "nosuch=1"]) == EXIT_USER
    assert slept == waits
    # Nobody ended this rank: rank 0 has no such error, so it must be told here.
    assert "nosuch" in capsys.readouterr().err
