"""What `llmtrain prepare` tells of cleaning."""

import json
from pathlib import Path

import pytest

from llmtrain.config.groups.clean import CleanConfig
from llmtrain.config.groups.data import TextDataConfig
from llmtrain.config.groups.tokenizer import ByteTokenizerConfig
from llmtrain.config.schema import PrepareConfig
from llmtrain.tasks.prepare import run_prepare

TEXTS = {
    "a.txt": "Write to bob@example.com or ann@example.org.\nRead more...\nBye.",
    "b.txt": "too\n[red]short",
    "c.txt": "Another text, so that there are two that stay.",
}


def test_counts_are_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "texts").mkdir()
    for name, text in TEXTS.items():
        (tmp_path / "texts" / name).write_text(text)
    clean = CleanConfig(mask_email=True, boilerplate_lines=True, min_words=5)
    data = TextDataConfig(
        path=str(tmp_path / "texts"), cache_dir=str(tmp_path / "cache"), clean=clean
    )
    config = PrepareConfig(data=data, tokenizer=ByteTokenizerConfig())
    assert run_prepare(config) == 0
    out = capsys.readouterr().out
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line.strip()}
    assert rows["clean"] == ["documents", "dropped", "lines", "masked", "characters"]
    assert rows["mask_email"] == ["1", "0", "0", "2", "16"]
    assert rows["boilerplate_lines"] == ["1", "0", "1", "0", "13"]
    assert rows["min_words"] == ["1", "1", "0", "0", "14"]
    assert f"dropped by min_words: {tmp_path / 'texts' / 'b.txt'} 'too\\n[red]short'" in out
    config.json = True
    assert run_prepare(config) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["clean"]["min_words"]["dropped"] == 1
    assert report["clean"]["min_words"]["examples"][0]["text"] == TEXTS["b.txt"]
