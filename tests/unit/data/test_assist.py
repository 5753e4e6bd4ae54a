"""How many processes prepare."""

from pathlib import Path
from typing import Any

import pytest

from llmtrain.config.groups.data import SyntheticDataConfig, TextDataConfig
from llmtrain.config.groups.mixture import MixedSource, MixtureDataConfig
from llmtrain.config.groups.tokenizer import ByteTokenizerConfig
from llmtrain.console import make_console
from llmtrain.data.prepare import Preparation
from llmtrain.tasks import assist


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many helpers each preparation starts, on a machine of eight cores; none are started."""
    counts: list[int] = []
    helpers = assist._helpers

    def note(preparation: Preparation, count: int) -> Any:
        counts.append(count)
        return helpers(preparation, 0)

    monkeypatch.setattr(assist, "_helpers", note)
    monkeypatch.setattr(assist, "usable_cores", lambda: 8)
    return counts


def test_as_many_as_there_is_work_for(tmp_path: Path, started: list[int]) -> None:
    cache = str(tmp_path / "cache")

    def prepare(data: Any) -> int:
        preparation = Preparation.plan(data, ByteTokenizerConfig())
        assist.run_with_help(preparation, make_console(stderr=True))
        return started[-1]

    for name, megabytes in (("small", 1), ("large", 20)):
        (tmp_path / name).mkdir()
        line = f"{name} text of sixty-four bytes, a line and a newline at its end. \n"
        (tmp_path / name / "a.txt").write_text(line * (megabytes * 16_000))
    small = TextDataConfig(path=str(tmp_path / "small"), cache_dir=cache)
    large = TextDataConfig(path=str(tmp_path / "large"), cache_dir=cache)
    assert prepare(SyntheticDataConfig(documents=20, cache_dir=cache)) == 0
    assert prepare(small) == 0
    assert prepare(large) == 2
    asked = TextDataConfig(path=str(tmp_path / "small"), cache_dir=cache, processes=3, seed=2)
    assert prepare(asked) == 2
    sources = {
        name: MixedSource(kind="text", path=str(tmp_path / name)) for name in ("small", "large")
    }
    assert prepare(MixtureDataConfig(sources=sources, cache_dir=cache, seed=3)) == 2
