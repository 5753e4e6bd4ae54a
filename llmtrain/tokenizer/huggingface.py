"""Any tokenizer as a plain `tokenizer.json` of the Hugging Face `tokenizers` library."""

from pathlib import Path

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers

from llmtrain.tokenizer.base import Tokenizer
from llmtrain.tokenizer.byte import ByteTokenizer
from llmtrain.tokenizer.byte_level import gpt2_bytes
from llmtrain.tokenizer.char import CharTokenizer
from llmtrain.tokenizer.library import LibraryTokenizer


def save_huggingface(tokenizer: Tokenizer, path: Path) -> None:
    """Write `tokenizer` to the file `path` so that other programs encode and decode as it does.

    One difference stays: other programs read the separator's text as the separator.

    Raises:
        TypeError: a tokenizer of another project.
    """
    if isinstance(tokenizer, LibraryTokenizer):
        tokenizer.save_huggingface(path)
        return
    if isinstance(tokenizer, ByteTokenizer):
        backend = tokenizers.Tokenizer(models.BPE(vocab=gpt2_bytes(), merges=[]))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.decoder = decoders.ByteLevel()
    elif isinstance(tokenizer, CharTokenizer):
        vocab = {character: index for index, character in enumerate(tokenizer.characters)}
        backend = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token=tokenizer.characters[0]))
        backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
        backend.decoder = decoders.Fuse()
    else:
        raise TypeError(f"{type(tokenizer).__name__} has no Hugging Face form")
    backend.add_special_tokens([AddedToken(tokenizer.separator, normalized=False, special=True)])
    path.write_text(backend.to_str(), encoding="utf-8")
