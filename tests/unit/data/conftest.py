"""Small prepared folders."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmtrain.config.groups.data import DataConfig, TextDataConfig
from llmtrain.config.groups.tokenizer import ByteTokenizerConfig, TokenizerConfig
from llmtrain.data.locate import check_source
from llmtrain.data.prepare import prepare
from llmtrain.data.source import iter_documents
from llmtrain.errors import DataError

Prepare = Callable[..., Path]


@pytest.fixture
def prepare_texts(tmp_path: Path) -> Prepare:
    """Return a function that writes texts to files and prepares them."""

    def run(
        texts: dict[str, str | bytes],
        tokenizer: TokenizerConfig | None = None,
        folder: str = "corpus",
        **settings: Any,
    ) -> Path:
        source = tmp_path / folder
        source.mkdir(exist_ok=True)
        for name, text in texts.items():
            raw = text if isinstance(text, bytes) else text.encode("utf-8")
            (source / name).write_bytes(raw)
        settings = {"path": str(source), "cache_dir": str(tmp_path / "cache")} | settings
        return prepare(TextDataConfig(**settings), tokenizer or ByteTokenizerConfig())

    return run


def many_texts(count: int, words: int = 30) -> dict[str, str]:
    """Return `count` different texts by file name."""
    return {
        f"{i:03d}.txt": " ".join(f"word{i * 7919 % 1000}x{j}" for j in range(words)) + "\n"
        for i in range(count)
    }


def refusal(config: DataConfig, *, cheap: bool = False) -> str:
    """Return the message with which a source is refused; a `cheap` mistake shows before anything
    is read."""
    with pytest.raises(DataError) as caught:
        check_source(config) if cheap else list(iter_documents(config))
    return str(caught.value)


def unsaid(message: str, *parts: str) -> list[str]:
    """Return those of `parts` that `message` lacks, and the message itself where there are any."""
    missing = [part for part in parts if part not in message]
    return [*missing, message] if missing else []
