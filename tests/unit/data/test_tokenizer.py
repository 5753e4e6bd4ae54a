"""Every tokenizer gives back what it was given, and no text can spell the separator."""

import json
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers

from llmtrain.config.groups.tokenizer import (
    BPETokenizerConfig,
    ByteTokenizerConfig,
    CharTokenizerConfig,
    PretrainedTokenizerConfig,
    TokenizerConfig,
    UnigramTokenizerConfig,
    WordPieceTokenizerConfig,
)
from llmtrain.errors import ConfigError, DataError
from llmtrain.tokenizer import sample
from llmtrain.tokenizer.base import Tokenizer
from llmtrain.tokenizer.build import load_tokenizer, train_tokenizer
from llmtrain.tokenizer.huggingface import save_huggingface
from llmtrain.tokenizer.library import LibraryTokenizer
from llmtrain.tokenizer.pretrained import hash_pretrained

CORPUS = ["the cat sat on the mat\nthe dog sat on the log\n" * 20, "naïve 世界 🎉 <|endoftext|>"]
SEPARATOR = "<|endoftext|>"

UNICODE = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


def make(name: str) -> Tokenizer:
    configs: dict[str, TokenizerConfig] = {
        "byte": ByteTokenizerConfig(),
        "char": CharTokenizerConfig(),
        "bpe": BPETokenizerConfig(vocab_size=300),
        "unigram": UnigramTokenizerConfig(vocab_size=300),
        "wordpiece": WordPieceTokenizerConfig(vocab_size=560),
    }
    return train_tokenizer(configs[name], CORPUS)


BYTE, CHAR, BPE, UNIGRAM, WORDPIECE = map(make, ["byte", "char", "bpe", "unigram", "wordpiece"])
EVERY = [BYTE, CHAR, BPE, UNIGRAM, WORDPIECE]
ALL = pytest.mark.parametrize("tokenizer", EVERY, ids=[t.name for t in EVERY])


@given(text=UNICODE)
@settings(max_examples=150, deadline=None)
def test_round_trip_over_unicode(text: str) -> None:
    for tokenizer in (
        BYTE,
        BPE,
        UNIGRAM,
        WORDPIECE,
        train_tokenizer(CharTokenizerConfig(), [text, "x"]),
    ):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert tokenizer.separator_id not in ids
        assert ids.dtype == np.int32
        stream = tokenizer.stream_decoder()
        parts = [stream.feed(int(i)) for i in ids]
        assert "".join(parts) + stream.finish() == text
        # A piece shows U+FFFD only where the text itself has it: never half a character.
        assert sum(p.count("\ufffd") for p in parts) == text.count("\ufffd")


@given(ids=st.lists(st.integers(-3, 600), max_size=30))
@settings(max_examples=100, deadline=None)
def test_any_ids_decode_and_stream_alike(ids: list[int]) -> None:
    for tokenizer in EVERY:
        stream = tokenizer.stream_decoder()
        text = "".join([stream.feed(i) for i in ids]) + stream.finish()
        assert text == tokenizer.decode(ids)


@ALL
def test_text_cannot_spell_the_separator(tokenizer: Tokenizer) -> None:
    text = f"the{SEPARATOR} cat{SEPARATOR}"
    ids = tokenizer.encode(text)
    assert tokenizer.separator_id not in ids
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode([tokenizer.separator_id]) == SEPARATOR


@ALL
def test_saved_and_loaded_is_the_same(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "tokenizer.json")
    again = load_tokenizer(tmp_path)
    assert (again.name, again.hash()) == (tokenizer.name, tokenizer.hash())
    assert (again.vocab_size, again.separator_id) == (tokenizer.vocab_size, tokenizer.separator_id)
    text = f"the mat {SEPARATOR}"
    assert np.array_equal(again.encode(text), tokenizer.encode(text))


@ALL
def test_batch_is_encode_of_each(tokenizer: Tokenizer) -> None:
    texts = ["the cat", "", "on the log\n"]
    for ids, text in zip(tokenizer.encode_batch(texts), texts, strict=True):
        assert np.array_equal(ids, tokenizer.encode(text))


@ALL
def test_huggingface_file_encodes_alike(tokenizer: Tokenizer, tmp_path: Path) -> None:
    save_huggingface(tokenizer, tmp_path / "t.json")
    plain = tokenizers.Tokenizer.from_file(str(tmp_path / "t.json"))
    text = "the cat sat 世界\non  the log\n"
    text = text if tokenizer.name != "char" else "the cat sat 世界\non the log\n"
    ids = plain.encode(text).ids
    assert ids == tokenizer.encode(text).tolist()
    assert plain.decode(ids) == text
    assert plain.token_to_id(SEPARATOR) == tokenizer.separator_id


def test_sizes_and_ids_of_byte_and_char() -> None:
    assert (BYTE.vocab_size, BYTE.separator_id) == (257, 256)
    assert BYTE.encode("é").tolist() == [0xC3, 0xA9]
    small = train_tokenizer(CharTokenizerConfig(), ["ba", "cb"])
    assert (small.vocab_size, small.separator_id) == (4, 3)
    assert small.encode("abc").tolist() == [0, 1, 2]


@pytest.mark.parametrize("text", ["the ✗ cat", "\U0010ffff", "Z"])
def test_char_names_what_it_does_not_know(text: str) -> None:
    unknown = next(c for c in text if c not in "the cat")
    with pytest.raises(DataError, match=f"U\\+{ord(unknown):04X}"):
        CHAR.encode(text)


def test_hash_tells_tokenizers_apart() -> None:
    others = [
        BYTE,
        CHAR,
        BPE,
        train_tokenizer(ByteTokenizerConfig(separator="<eos>"), []),
        train_tokenizer(CharTokenizerConfig(), ["abc"]),
        train_tokenizer(BPETokenizerConfig(vocab_size=265), CORPUS),
    ]
    assert len({t.hash() for t in others}) == len(others)
    assert make("bpe").hash() == BPE.hash()


def test_bpe_learns_from_every_document_alike() -> None:
    documents = ["aaaa " * 1000, "zqzq " * 1000]
    config = BPETokenizerConfig(vocab_size=265, train_bytes=200)
    tokenizer = train_tokenizer(config, documents, total_bytes=10_000)
    assert len(tokenizer.encode("zqzq")) == 1  # the second document was not cut off
    limited = train_tokenizer(config, documents)
    assert len(limited.encode("zqzq")) == 4  # without a total, the first fills the limit


def test_long_texts_are_cut_without_changing_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "the cat\n\n  sat\non the\tmat\n\nlog\n" * 300
    tokenizer = train_tokenizer(BPETokenizerConfig(vocab_size=300), [text])
    whole = tokenizer.encode(text)
    assert tokenizer.encode("\n\n").size == 1  # so a cut between the two would show
    monkeypatch.setattr(sample, "CHUNK_CHARS", 100)
    assert len(list(sample.cut_text(text))) > 50
    assert np.array_equal(tokenizer.encode(text), whole)


def test_no_special_token_of_a_given_tokenizer_is_spelled_by_text(tmp_path: Path) -> None:
    given = make("bpe")
    assert isinstance(given, LibraryTokenizer)
    given.save_huggingface(tmp_path / "tokenizer.json")
    backend = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    backend.add_special_tokens(["<|im_start|>"])
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = train_tokenizer(PretrainedTokenizerConfig(path=str(tmp_path)), [])
    text = "the <|im_start|> cat"
    assert tokenizer.vocab_size == BPE.vocab_size + 1
    assert tokenizer.vocab_size - 1 not in tokenizer.encode(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.decode([tokenizer.vocab_size - 1]) == "<|im_start|>"


def test_half_a_character_waits() -> None:
    stream = BYTE.stream_decoder()
    assert [stream.feed(b) for b in "世".encode()] == ["", "", "世"]
    assert stream.feed([0xF0, 0x9F]) == ""
    assert stream.finish() == "\ufffd"


def write_backend(path: Path, decoder: bool = True) -> None:
    backend = tokenizers.Tokenizer(
        models.WordLevel({"<unk>": 0, "hello": 1, "world": 2, "</s>": 9}, unk_token="<unk>")
    )
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if decoder:
        backend.decoder = decoders.Metaspace()
    path.write_text(backend.to_str())


def test_pretrained_file_folder_and_holes_in_the_ids(tmp_path: Path) -> None:
    write_backend(tmp_path / "tokenizer.json")
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        tokenizer = train_tokenizer(PretrainedTokenizerConfig(path=str(path)), [])
        assert tokenizer.encode("Hello world").tolist() == [1, 2]
        assert tokenizer.separator_id < tokenizer.vocab_size == 10
        assert tokenizer.decode([1, 7]).endswith("\ufffd")


def test_pretrained_that_spells_its_separator(tmp_path: Path) -> None:
    write_backend(tmp_path / "tokenizer.json", decoder=False)
    config = PretrainedTokenizerConfig(path=str(tmp_path), separator="</s>")
    tokenizer = train_tokenizer(config, [])
    assert tokenizer.separator_id == 9
    assert 9 not in tokenizer.encode("hello </s> world")
    assert tokenizer.encode("hello </s> world")[[0, -1]].tolist() == [1, 2]


@pytest.mark.parametrize("names", [("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe")])
def test_pretrained_gpt2_files(tmp_path: Path, names: tuple[str, str]) -> None:
    save_huggingface(BPE, tmp_path / "whole.json")
    model = json.loads((tmp_path / "whole.json").read_text())["model"]
    folder = tmp_path / "gpt2"
    folder.mkdir()
    (folder / names[0]).write_text(json.dumps(model["vocab"]))
    merges = "\n".join(" ".join(pair) for pair in model["merges"])
    (folder / names[1]).write_text("#version: 0.2\n" + merges + "\n")
    tokenizer = train_tokenizer(PretrainedTokenizerConfig(path=str(folder)), [])
    text = f"the cat sat 世界 {SEPARATOR}\n"
    assert np.array_equal(tokenizer.encode(text), BPE.encode(text))
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert (tokenizer.vocab_size, tokenizer.separator_id) == (BPE.vocab_size, BPE.separator_id)


@pytest.mark.parametrize("token", ["</s>", {"content": "</s>", "lstrip": False}])
@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json"])
def test_pretrained_folder_that_names_its_end_of_text(
    tmp_path: Path, name: str, token: object
) -> None:
    write_backend(tmp_path / "tokenizer.json")
    config = PretrainedTokenizerConfig(path=str(tmp_path))
    hashes = [hash_pretrained(config.path)]

    def separator(config: PretrainedTokenizerConfig) -> tuple[str, int]:
        tokenizer = train_tokenizer(config, [])
        return tokenizer.separator, tokenizer.separator_id

    assert separator(config) == (SEPARATOR, 4)
    (tmp_path / name).write_text(json.dumps({"eos_token": token, "bos_token": "hello"}))
    hashes.append(hash_pretrained(config.path))
    assert separator(config) == ("</s>", 9)
    assert separator(PretrainedTokenizerConfig(path=str(tmp_path / "tokenizer.json")))[1] == 9
    asked = PretrainedTokenizerConfig(path=str(tmp_path), separator="world")
    assert separator(asked) == ("world", 2)
    (tmp_path / name).write_text('{"eos_token": "<none>"}')  # not in the vocabulary
    hashes.append(hash_pretrained(config.path))
    assert separator(config) == (SEPARATOR, 4)
    assert len(set(hashes)) == 3
    for broken in ("{", "[]"):
        (tmp_path / name).write_text(broken)
        with pytest.raises(DataError, match=name):
            separator(config)


def test_pretrained_file_of_our_own_keeps_its_separator(tmp_path: Path) -> None:
    made = train_tokenizer(BPETokenizerConfig(vocab_size=300, separator="<end>"), CORPUS)
    made.save(tmp_path / "tokenizer.json")
    tokenizer = train_tokenizer(PretrainedTokenizerConfig(path=str(tmp_path)), [])
    assert (tokenizer.separator, tokenizer.separator_id) == ("<end>", made.separator_id)


def test_pretrained_whose_holes_leave_no_id_for_the_separator(tmp_path: Path) -> None:
    backend = tokenizers.Tokenizer(models.WordLevel({"a": 0, "b": 1, "c": 3}, unk_token="a"))
    (tmp_path / "tokenizer.json").write_text(backend.to_str())
    config = PretrainedTokenizerConfig(path=str(tmp_path))
    with pytest.raises(DataError, match="id 3 of its separator"):
        train_tokenizer(config, [])
    config.separator = "c"
    assert train_tokenizer(config, []).separator_id == 3


def test_pretrained_unknown_id(tmp_path: Path) -> None:
    write_backend(tmp_path / "tokenizer.json")
    tokenizer = train_tokenizer(PretrainedTokenizerConfig(path=str(tmp_path)), [])
    assert tokenizer.unknown_id == 0
    assert tokenizer.encode("hello moon").tolist() == [1, 0]
    assert all(t.unknown_id is None for t in EVERY)


def test_pretrained_mistakes(tmp_path: Path) -> None:
    def load(path: str | None) -> Tokenizer:
        return train_tokenizer(PretrainedTokenizerConfig(path=path), [])

    with pytest.raises(ConfigError, match=r"tokenizer\.path"):
        load(None)
    (tmp_path / "tokenizer").mkdir()
    with pytest.raises(DataError, match="Did you mean 'tokenizer'"):
        load(str(tmp_path / "tokeniser"))
    with pytest.raises(DataError, match=r"no tokenizer\.json"):
        load(str(tmp_path / "tokenizer"))
    (tmp_path / "broken.json").write_text('{"version": "1.0"')
    with pytest.raises(DataError, match=r"broken\.json: not a tokenizer"):
        load(str(tmp_path / "broken.json"))
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(DataError, match=r"list\.json: not a tokenizer"):
        load(str(tmp_path / "list.json"))


def test_loading_mistakes(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no tokenizer here"):
        load_tokenizer(tmp_path)
    file = tmp_path / "tokenizer.json"
    write_backend(file)
    with pytest.raises(DataError, match="tokenizer=pretrained"):
        load_tokenizer(file)
    file.write_text('{"format": "llmtrain-tokenizer", "version": 99, "name": "byte"}')
    with pytest.raises(DataError, match="version 99"):
        load_tokenizer(file)
    file.write_text('{"format": "llmtrain-tokenizer", "version": 1, "name": "byte"}')
    with pytest.raises(DataError, match="cannot be read"):
        load_tokenizer(file)


def test_unknown_name_is_refused() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'byte'"):
        train_tokenizer(TokenizerConfig(name="bytes"), [])


def test_a_decoder_that_sees_whole_texts_streams_alike(tmp_path: Path) -> None:
    vocab = {"<unk>": 0, "▁hello": 1, "▁world": 2, "!": 3}
    backend = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    backend.decoder = decoders.Metaspace()
    (tmp_path / "tokenizer.json").write_text(backend.to_str())
    tokenizer = train_tokenizer(PretrainedTokenizerConfig(path=str(tmp_path)), [])
    ids = [1, 2, 3, 2, 1] * 8
    stream = tokenizer.stream_decoder()
    parts = [stream.feed(i) for i in ids]
    assert "".join(parts) + stream.finish() == tokenizer.decode(ids)
    assert parts[:3] == ["hello", " world", "!"]
