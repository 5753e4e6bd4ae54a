"""A packed row computes what its documents compute one by one; padding computes nothing."""

import dataclasses
from collections.abc import Callable

import pytest
import torch

from llmtrain.config.groups.data import SyntheticDataConfig
from llmtrain.config.groups.model import GPTConfig, LlamaConfig, ModelConfig
from llmtrain.config.groups.tokenizer import ByteTokenizerConfig
from llmtrain.data.dataset import IGNORED, TokenDataset
from llmtrain.data.prepare import prepare
from llmtrain.models.attention import document_mask
from llmtrain.models.build import build_model
from llmtrain.models.init import init_weights, seed_dropout
from llmtrain.models.transformer import Transformer
from llmtrain.train.loss import token_loss_sum

RTOL = 1e-12
"""fp64 sums over the same positions in another order; measured 2e-15."""

SEQ_LEN = 64

MODELS: dict[str, ModelConfig] = {
    "gpt": GPTConfig(n_layers=2, n_heads=4, dim=32, seq_len=SEQ_LEN, bias=True, init_std=0.2),
    "llama": LlamaConfig(
        n_layers=2, n_heads=4, n_kv_heads=2, dim=32, seq_len=SEQ_LEN, init_std=0.2
    ),
}

Samples = dict[str, torch.Tensor]


def make(config: ModelConfig) -> Transformer:
    model = build_model(config, 257, device="cpu").double()
    init_weights(model, config, prefix="", residual=model.RESIDUAL, seed=3)
    seed_dropout(model, 3)
    return model.train()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> TokenDataset:
    config = SyntheticDataConfig(
        documents=200, words_per_document=6, cache_dir=str(tmp_path_factory.mktemp("cache"))
    )
    return TokenDataset(prepare(config, ByteTokenizerConfig()), "train")


@pytest.fixture(params=["packed", "masked_windows"])
def rows(dataset: TokenDataset, request: pytest.FixtureRequest) -> Samples:
    filled = dataset.fill(range(12), SEQ_LEN, request.param)
    assert filled.document_positions is not None
    return {name: torch.from_numpy(array) for name, array in filled._asdict().items()}


def computed(
    model: Transformer, loss_of: Callable[[], torch.Tensor]
) -> tuple[float, dict[str, torch.Tensor]]:
    """Return a loss and its gradients."""
    model.zero_grad()
    loss = loss_of()
    loss.backward()
    return loss.item(), {
        name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None
    }


def loss_of_rows(model: Transformer, rows: Samples) -> torch.Tensor:
    names = torch.arange(len(rows["labels"]))
    return token_loss_sum(
        model(rows["input_ids"], names, rows["document_positions"]), rows["labels"]
    )


def loss_of_documents(model: Transformer, rows: Samples) -> torch.Tensor:
    """Each document alone, from its first position, in a row of its own without a mask."""
    total = torch.zeros((), dtype=torch.float64)
    for ids, labels, positions in zip(*rows.values(), strict=True):
        first = torch.nonzero(positions == 0).flatten().tolist()
        for a, b in zip(first, [*first[1:], len(ids)], strict=True):
            if (labels[a:b] != IGNORED).any():
                total = total + token_loss_sum(model(ids[None, a:b]), labels[None, a:b])
    return total


@pytest.mark.parametrize("family", MODELS)
def test_a_row_computes_what_its_documents_compute_alone(family: str, rows: Samples) -> None:
    model = make(MODELS[family])
    together, gradients = computed(model, lambda: loss_of_rows(model, rows))
    alone, expected = computed(model, lambda: loss_of_documents(model, rows))
    assert together == pytest.approx(alone, rel=RTOL)
    assert gradients.keys() == expected.keys() == dict(model.named_parameters()).keys()
    rms = float(torch.cat([g.flatten() for g in expected.values()]).square().mean().sqrt())
    for name, gradient in gradients.items():
        # The gradient of a key's bias is 0 but for rounding: it has no relative error of its own.
        scale = max(float(expected[name].abs().max()), rms)
        assert float((gradient - expected[name]).abs().max()) <= RTOL * scale, name


@pytest.mark.parametrize("family", MODELS)
def test_documents_do_not_see_each_other(family: str, rows: Samples) -> None:
    """Another first document in each row changes nothing in the others, to the last bit."""
    model = make(MODELS[family]).eval()
    first = (rows["document_positions"] == 0).cumsum(1) == 1
    other = torch.where(first, (rows["input_ids"] + 1) % 257, rows["input_ids"])
    within = rows["document_positions"]
    before = model(rows["input_ids"], document_positions_BT=within)
    after = model(other, document_positions_BT=within)
    assert torch.equal(before[~first], after[~first])
    assert not torch.equal(before[first], after[first])


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("family", MODELS)
def test_padding_computes_nothing(family: str, dropout: float, dataset: TokenDataset) -> None:
    """Other tokens there change neither the loss nor a gradient, to the last bit."""
    filled = dataset.fill(range(12), SEQ_LEN, "packed")._asdict()
    rows = {name: torch.from_numpy(array) for name, array in filled.items()}
    padding = rows["labels"] == IGNORED
    assert 0.01 < padding.double().mean() < 0.5
    noise = torch.randint(257, padding.shape, generator=torch.Generator().manual_seed(0))
    other = rows | {"input_ids": torch.where(padding, noise, rows["input_ids"])}
    model = make(dataclasses.replace(MODELS[family], dropout=dropout))
    loss, gradients = computed(model, lambda: loss_of_rows(model, rows))
    same, unchanged = computed(model, lambda: loss_of_rows(model, other))
    assert loss == same
    for name, gradient in gradients.items():
        assert torch.equal(gradient, unchanged[name]), name


@pytest.mark.parametrize("where", ["embed_dropout", "blocks"])
def test_dropout_is_keyed_by_the_place_in_the_row(where: str) -> None:
    """Two equal documents in one row are dropped differently."""
    model = make(dataclasses.replace(MODELS["gpt"], dropout=0.3)).eval()
    model.get_submodule(where).train()
    ids = torch.tensor([[5, 6, 7, 5, 6, 7]])
    within = torch.tensor([[0, 1, 2, 0, 1, 2]])
    logits = model(ids, torch.tensor([4]), within)
    assert not torch.allclose(logits[:, :3], logits[:, 3:])
    logits = model.eval()(ids, document_positions_BT=within)
    assert torch.allclose(logits[:, :3], logits[:, 3:], rtol=0, atol=1e-12)


def test_the_mask_is_causal_within_documents() -> None:
    mask = document_mask(torch.tensor([[0, 1, 0, 0, 1], [0, 1, 2, 3, 0]]), torch.float64)
    assert mask.shape == (2, 1, 5, 5)
    seen = [[[int(x == 0) for x in row] for row in each[0]] for each in mask.tolist()]
    assert seen[0] == [
        [1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 1, 1],
    ]  # fmt: skip
    assert seen[1] == [
        [1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [0, 0, 0, 0, 1],
    ]  # fmt: skip


def test_a_row_of_one_document_is_a_row_without_a_mask() -> None:
    for config in MODELS.values():
        model = make(config).eval()
        ids = torch.randint(257, (2, SEQ_LEN), generator=torch.Generator().manual_seed(1))
        within = torch.arange(SEQ_LEN).expand(2, -1)
        masked = model(ids, document_positions_BT=within)
        assert torch.allclose(masked, model(ids), rtol=0, atol=1e-12)
