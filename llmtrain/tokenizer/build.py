"""Which tokenizer a configuration means, and how one comes back from its file."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from llmtrain.config.groups.tokenizer import TokenizerConfig
from llmtrain.errors import DataError, require_choice
from llmtrain.tokenizer.base import FILE_FORMAT, FILE_VERSION, Tokenizer
from llmtrain.tokenizer.byte import ByteTokenizer
from llmtrain.tokenizer.char import CharTokenizer
from llmtrain.tokenizer.pretrained import load_pretrained


def train_tokenizer(
    config: TokenizerConfig, documents: Iterable[str], total_bytes: int | None = None
) -> Tokenizer:
    """Return the tokenizer that `config` names, learned from `documents` where it learns.

    Args:
        config: One of the group `tokenizer`.
        documents: Texts; read at most once, and not at all by `byte` and `pretrained`.
        total_bytes: UTF-8 size of them all, where known.

    Raises:
        ConfigError: `config.name` is no tokenizer, or a setting is missing.
        DataError: a pretrained tokenizer cannot be read.
    """
    trainers: dict[str, Callable[[Any], Tokenizer]] = {
        "byte": lambda c: ByteTokenizer(c.separator),
        "char": lambda c: CharTokenizer.train(documents, c.separator),
        "bpe": lambda c: _train_bpe(c, documents, total_bytes),
        "unigram": lambda c: _train_unigram(c, documents, total_bytes),
        "wordpiece": lambda c: _train_wordpiece(c, documents, total_bytes),
        "pretrained": load_pretrained,
    }
    require_choice("tokenizer.name", config.name, trainers)
    return trainers[config.name](config)


def load_tokenizer(path: Path) -> Tokenizer:
    """Return the tokenizer that `save` wrote to the file `path`, or to `path`/tokenizer.json.

    Raises:
        DataError: no such file, or not one that `save` wrote.
    """
    file = path / "tokenizer.json" if path.is_dir() else path
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{file}: there is no tokenizer here.") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: the tokenizer cannot be read ({error}).") from error
    if not isinstance(content, dict) or content.get("format") != FILE_FORMAT:
        raise DataError(
            f"{file} was not written by llmtrain; use it with tokenizer=pretrained "
            f"tokenizer.path={file}."
        )
    if content["version"] > FILE_VERSION:
        raise DataError(
            f"{file} has format version {content['version']}, this llmtrain reads up to "
            f"{FILE_VERSION}: upgrade llmtrain or prepare the data again."
        )
    loaders: dict[str, Callable[[dict[str, Any]], Tokenizer]] = {
        "byte": lambda c: ByteTokenizer(c["separator"]),
        "char": lambda c: CharTokenizer(c["characters"], c["separator"]),
        "bpe": _load_library,
        "unigram": _load_library,
        "wordpiece": _load_library,
        "pretrained": _load_library,
    }
    try:
        return loaders[content["name"]](content)
    except Exception as error:  # `tokenizers` raises bare Exception
        raise DataError(f"{file}: the tokenizer cannot be read ({error}).") from error


def _train_bpe(config: Any, documents: Iterable[str], total_bytes: int | None) -> Tokenizer:
    from llmtrain.tokenizer.bpe import train_bpe

    return train_bpe(config, documents, total_bytes)


def _train_unigram(config: Any, documents: Iterable[str], total_bytes: int | None) -> Tokenizer:
    from llmtrain.tokenizer.unigram import train_unigram

    return train_unigram(config, documents, total_bytes)


def _train_wordpiece(config: Any, documents: Iterable[str], total_bytes: int | None) -> Tokenizer:
    from llmtrain.tokenizer.wordpiece import train_wordpiece

    return train_wordpiece(config, documents, total_bytes)


def _load_library(content: dict[str, Any]) -> Tokenizer:
    import tokenizers

    from llmtrain.tokenizer.library import LibraryTokenizer

    backend = tokenizers.Tokenizer.from_str(json.dumps(content["tokenizer"]))
    return LibraryTokenizer(backend, content["separator"], content["name"])
