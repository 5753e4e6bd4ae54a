"""Rules whose package is missing are refused before anything starts."""

import importlib.metadata
import importlib.util
from pathlib import Path
from typing import Any

import pytest

from llmtrain.config.groups.clean import CleanConfig
from llmtrain.config.groups.data import ShakespeareDataConfig, TextDataConfig
from llmtrain.data.library import CLEANING, SKETCHES, check_libraries, library_versions
from llmtrain.data.locate import check_source
from llmtrain.data.prepare import Preparation
from llmtrain.errors import ConfigError, DataError
from tests.unit.data.conftest import Prepare

RULES: dict[str, Any] = {"html": True, "mojibake": True, "mask_phone": True, "scripts": ["han"]}


@pytest.mark.parametrize("rule", CLEANING)
def test_a_missing_package_is_refused(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    check_libraries(ShakespeareDataConfig())
    clean = CleanConfig(**{rule: RULES[rule]})
    with pytest.raises(
        ConfigError, match=rf"data\.clean\.{rule} needs .*pip install 'llmtrain\[cl"
    ):
        check_source(ShakespeareDataConfig(clean=clean))


def test_the_packages_are_there() -> None:
    everything = ShakespeareDataConfig(clean=CleanConfig(**RULES), dedup="near")
    check_libraries(everything)
    known = {library.package for library in (*CLEANING.values(), SKETCHES)}
    assert set(library_versions(everything)) == known
    assert library_versions(ShakespeareDataConfig()) == {}


def test_a_country_without_telephones_is_refused() -> None:
    with pytest.raises(ConfigError, match="phone_regions has XQ"):
        clean = CleanConfig(mask_phone=True, phone_regions=["US", "XQ"])
        check_libraries(ShakespeareDataConfig(clean=clean))


def test_other_versions_prepare_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from llmtrain.config.groups.tokenizer import ByteTokenizerConfig

    (tmp_path / "a.txt").write_text("text")
    mended = TextDataConfig(path=str(tmp_path), clean=CleanConfig(mojibake=True))
    near = TextDataConfig(path=str(tmp_path), dedup="near")
    plain = TextDataConfig(path=str(tmp_path))
    cases = (mended, near, plain)
    before = [Preparation.plan(data, ByteTokenizerConfig()).digest for data in cases]
    monkeypatch.setattr(importlib.metadata, "version", lambda package: "0")
    after = [Preparation.plan(data, ByteTokenizerConfig()).digest for data in cases]
    assert [one == other for one, other in zip(before, after, strict=True)] == [False, False, True]


def test_all_that_was_dropped_is_told_with_the_rules(prepare_texts: Prepare) -> None:
    with pytest.raises(DataError, match=r"drops all of 2 documents .*min_words 1.*scripts 1"):
        prepare_texts(
            {"a.txt": "too short", "b.txt": "long enough, but of a wrong script"},
            clean=CleanConfig(min_words=5, scripts=["han"]),
        )
