"""A tokenizer somebody has trained: finding its files, checking them, loading them."""

import json
from pathlib import Path
from typing import Any

import xxhash

from llmtrain.config.groups.tokenizer import (
    AUTO_SEPARATOR,
    PretrainedTokenizerConfig,
    TokenizerConfig,
)
from llmtrain.errors import ConfigError, DataError, did_you_mean
from llmtrain.tokenizer.base import FILE_FORMAT, Tokenizer

VOCAB_NAMES = ("vocab.json", "encoder.json")
MERGES_NAMES = ("merges.txt", "vocab.bpe")
EOS_NAMES = ("tokenizer_config.json", "special_tokens_map.json")
"""Files of a Hugging Face folder that name the token at the end of a text, best first."""


def find_pretrained(path: str | None) -> list[Path]:
    """Return the files of the tokenizer at `path`: one `tokenizer.json`, or vocab and merges.

    Reads folders only; imports nothing heavy.

    Raises:
        ConfigError: no path is given.
        DataError: nothing is there, or not the files that are needed.
    """
    if path is None:
        raise ConfigError(
            "A given tokenizer needs tokenizer.path: a tokenizer.json, a folder that holds one, or "
            "a folder with vocab.json and merges.txt. Names on a hub are not taken: download its "
            "tokenizer.json, and name the file."
        )
    root = Path(path).expanduser()
    if root.is_file():
        return [root]
    if not root.is_dir():
        near = [p.name for p in root.parent.iterdir()] if root.parent.is_dir() else []
        raise DataError(
            f"tokenizer.path={path} does not exist.{did_you_mean(root.name, near)} It is a file or "
            "a folder here; names on a hub are not taken: download its tokenizer.json, and name it."
        )
    if (root / "tokenizer.json").is_file():
        return [root / "tokenizer.json"]
    vocab = [root / name for name in VOCAB_NAMES if (root / name).is_file()]
    merges = [root / name for name in MERGES_NAMES if (root / name).is_file()]
    if vocab and merges:
        return [vocab[0], merges[0]]
    raise DataError(
        f"tokenizer.path={path} holds no tokenizer.json, and no {' or '.join(VOCAB_NAMES)} "
        f"together with {' or '.join(MERGES_NAMES)}."
    )


def named_separator(path: str | None) -> str | None:
    """Return the end-of-text token that the files beside the tokenizer at `path` name, if any.

    That is `eos_token` in one of `EOS_NAMES`, or the separator of a file of our own.

    Raises:
        ConfigError: no path is given.
        DataError: the files are not there, or one is no JSON object.
    """
    files = find_pretrained(path)
    for file in (files[0].with_name(name) for name in EOS_NAMES):
        token = _read_object(file).get("eos_token") if file.is_file() else None
        token = token.get("content") if isinstance(token, dict) else token
        if token:
            return str(token)
    own = _read_object(files[0]) if len(files) == 1 else {}
    return own["separator"] if own.get("format") == FILE_FORMAT else None


def _read_object(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: not a tokenizer that can be read ({error}).") from error
    if not isinstance(content, dict):
        raise DataError(f"{file}: not a tokenizer that can be read (it is no JSON object).")
    return content


def check_tokenizer(config: TokenizerConfig) -> None:
    """Refuse a tokenizer whose files are not there. Cheap: looks at folders only.

    Raises:
        ConfigError: no path is given.
        DataError: the files are not there.
    """
    if isinstance(config, PretrainedTokenizerConfig):
        find_pretrained(config.path)


def hash_pretrained(path: str | None) -> str:
    """Return 32 hex digits of the bytes of the files at `path`, and of the separator they name.

    Raises:
        ConfigError: no path is given.
        DataError: the files are not there.
    """
    digest = xxhash.xxh3_128()
    for file in find_pretrained(path):
        digest.update(file.read_bytes())
    digest.update((named_separator(path) or "").encode("utf-8"))
    return digest.hexdigest()


def load_pretrained(config: PretrainedTokenizerConfig) -> Tokenizer:
    """Return the tokenizer at `config.path`, with its separator added where it is missing.

    `config.separator=auto` is the end-of-text token that its folder names, where the vocabulary
    has it, else <|endoftext|>.

    Raises:
        ConfigError: no path is given.
        DataError: the files are not there or cannot be read.
    """
    import tokenizers
    from tokenizers import models

    from llmtrain.tokenizer.byte_level import make_byte_level
    from llmtrain.tokenizer.library import LibraryTokenizer

    files = find_pretrained(config.path)
    try:
        if len(files) == 2:
            backend = make_byte_level(models.BPE.from_file(str(files[0]), str(files[1])))
        else:
            content = _read_object(files[0])
            # A file of our own keeps the library's content under one key.
            content = content.get("tokenizer", content)
            backend = tokenizers.Tokenizer.from_str(json.dumps(content))
    except DataError:
        raise
    except Exception as error:  # the library raises bare Exception
        names = " and ".join(str(f) for f in files)
        raise DataError(f"{names}: not a tokenizer that can be read ({error}).") from error
    separator = config.separator
    if separator == AUTO_SEPARATOR:
        named = named_separator(config.path)
        known = named is not None and backend.token_to_id(named) is not None
        separator = named if named and known else TokenizerConfig.separator
    return LibraryTokenizer(backend, separator, "pretrained")
