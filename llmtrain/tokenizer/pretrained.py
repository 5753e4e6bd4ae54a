"""A tokenizer somebody has trained: finding its files, checking them, loading them."""

import json
from pathlib import Path

import xxhash

from llmtrain.config.groups.tokenizer import PretrainedTokenizerConfig, TokenizerConfig
from llmtrain.errors import ConfigError, DataError, did_you_mean
from llmtrain.tokenizer.base import Tokenizer

VOCAB_NAMES = ("vocab.json", "encoder.json")
MERGES_NAMES = ("merges.txt", "vocab.bpe")


def find_pretrained(path: str | None) -> list[Path]:
    """Return the files of the tokenizer at `path`: one `tokenizer.json`, or vocab and merges.

    Reads folders only; imports nothing heavy.

    Raises:
        ConfigError: no path is given.
        DataError: nothing is there, or not the files that are needed.
    """
    if path is None:
        raise ConfigError(
            "tokenizer=pretrained needs tokenizer.path: a tokenizer.json, a folder that holds one, "
            "or a folder with vocab.json and merges.txt."
        )
    root = Path(path).expanduser()
    if root.is_file():
        return [root]
    if not root.is_dir():
        near = [p.name for p in root.parent.iterdir()] if root.parent.is_dir() else []
        raise DataError(f"tokenizer.path={path} does not exist.{did_you_mean(root.name, near)}")
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


def check_tokenizer(config: TokenizerConfig) -> None:
    """Refuse a tokenizer whose files are not there. Cheap: looks at folders only.

    Raises:
        ConfigError: no path is given.
        DataError: the files are not there.
    """
    if isinstance(config, PretrainedTokenizerConfig):
        find_pretrained(config.path)


def hash_pretrained(path: str | None) -> str:
    """Return 32 hex digits of the bytes of the files at `path`.

    Raises:
        ConfigError: no path is given.
        DataError: the files are not there.
    """
    digest = xxhash.xxh3_128()
    for file in find_pretrained(path):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def load_pretrained(config: PretrainedTokenizerConfig) -> Tokenizer:
    """Return the tokenizer at `config.path`, with `config.separator` added where it is missing.

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
            content = json.loads(files[0].read_text(encoding="utf-8"))
            # A file of our own keeps the library's content under one key.
            content = content.get("tokenizer", content)
            backend = tokenizers.Tokenizer.from_str(json.dumps(content))
    except Exception as error:  # the library raises bare Exception
        names = " and ".join(str(f) for f in files)
        raise DataError(f"{names}: not a tokenizer that can be read ({error}).") from error
    return LibraryTokenizer(backend, config.separator, "pretrained")
