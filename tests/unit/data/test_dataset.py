"""Windows and documents hold the tokens they should, across shards and at the ends."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmtrain.data.dataset import IGNORED, TokenDataset
from llmtrain.errors import ConfigError, DataError
from tests.unit.data.conftest import Prepare, many_texts

TEXTS = many_texts(30)


@pytest.fixture(params=[100_000, 700], ids=["one shard", "many shards"])
def dataset(prepare_texts: Prepare, request: pytest.FixtureRequest) -> TokenDataset:
    return TokenDataset(prepare_texts(TEXTS, shard_tokens=request.param), "train")


def test_counts(dataset: TokenDataset) -> None:
    assert dataset.vocab_size == dataset.tokenizer().vocab_size == 257
    assert dataset.tokenizer_hash == dataset.tokenizer().hash()
    assert dataset.n_samples(16) == (dataset.n_tokens - 1) // 16
    assert dataset.n_samples(16, drop_last=False) == -(-(dataset.n_tokens - 1) // 16)
    assert dataset.n_samples(16, "documents") == dataset.n_documents


def test_windows_are_the_stream(dataset: TokenDataset) -> None:
    stream = dataset.tokens(0, dataset.n_tokens)
    assert np.count_nonzero(stream == dataset.separator_id) == dataset.n_documents
    rows = np.random.default_rng(0).permutation(dataset.n_samples(33))
    inputs, labels, _ = dataset.fill(rows, 33)
    assert inputs.dtype == labels.dtype == np.int64
    for row, number in enumerate(rows):
        assert np.array_equal(inputs[row], stream[number * 33 : number * 33 + 33])
        assert np.array_equal(labels[row], stream[number * 33 + 1 : number * 33 + 34])


def test_the_last_window_is_padded_with_ignored_labels(dataset: TokenDataset) -> None:
    seq_len = 1000
    count = dataset.n_samples(seq_len, drop_last=False)
    stream = dataset.tokens(0, dataset.n_tokens)
    _, labels, _ = dataset.fill(np.arange(count), seq_len)
    assert np.array_equal(labels[labels != IGNORED], stream[1:])
    inputs, labels, _ = dataset.fill([count, -1], seq_len)
    assert (inputs == dataset.separator_id).all()
    assert (labels == IGNORED).all()


def test_documents_start_at_their_start(dataset: TokenDataset) -> None:
    inputs, labels, _ = dataset.fill(np.arange(dataset.n_documents), 400, "documents")
    found = set()
    for row in range(dataset.n_documents):
        counted = labels[row] != IGNORED
        assert counted[: counted.sum()].all()  # padding comes last
        assert labels[row][counted][-1] == dataset.separator_id
        assert (inputs[row][~counted] == dataset.separator_id).all()
        found.add(dataset.tokenizer().decode(inputs[row][counted]))
    assert found <= {text.strip() for text in TEXTS.values()}
    assert len(found) == dataset.n_documents


def test_long_documents_are_cut(dataset: TokenDataset) -> None:
    short = dataset.fill(np.arange(5), 20, "documents")
    long = dataset.fill(np.arange(5), 400, "documents")
    for part, whole in zip(short[:2], long[:2], strict=True):
        assert part.shape == (5, 20)
        assert np.array_equal(part, whole[:, :20])


def test_too_few_tokens(dataset: TokenDataset) -> None:
    with pytest.raises(DataError) as caught:
        dataset.n_samples(dataset.n_tokens)
    for part in (str(dataset.n_tokens), "model.seq_len", "more text", "data.samples=documents"):
        assert part in str(caught.value)
    assert dataset.n_samples(dataset.n_tokens - 1) == 1


def test_wrong_names(dataset: TokenDataset) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'windows'"):
        dataset.n_samples(8, "window")
    with pytest.raises(ConfigError, match="split=val "):
        TokenDataset(dataset.folder, "val")


def test_a_shard_without_documents(prepare_texts: Prepare) -> None:
    folder = prepare_texts(many_texts(6), shard_mode="hash", shard_tokens=100)
    sizes = [path.stat().st_size for path in folder.glob("train-*.bin")]
    assert 0 in sizes
    dataset = TokenDataset(folder, "train")
    inputs, _, _ = dataset.fill(np.arange(dataset.n_samples(50)), 50)
    assert np.array_equal(inputs.ravel(), dataset.tokens(0, inputs.size))


@given(seq_len=st.integers(1, 300), shard_tokens=st.integers(1, 900))
@settings(max_examples=15, deadline=None)
def test_every_token_is_a_label_once(
    tmp_path_factory: pytest.TempPathFactory, seq_len: int, shard_tokens: int
) -> None:
    from llmtrain.config.groups.data import SyntheticDataConfig
    from llmtrain.config.groups.tokenizer import ByteTokenizerConfig
    from llmtrain.data.prepare import prepare

    cache = str(tmp_path_factory.getbasetemp() / "labels")
    config = SyntheticDataConfig(
        documents=6, words_per_document=30, shard_tokens=shard_tokens, cache_dir=cache
    )
    dataset = TokenDataset(prepare(config, ByteTokenizerConfig()), "validation")
    _, labels, _ = dataset.fill(np.arange(dataset.n_samples(seq_len)), seq_len)
    assert np.array_equal(labels[labels != IGNORED], dataset.tokens(1, dataset.n_tokens))
