"""Which parameters decay, which go to Muon, which kernels run, and what a checkpoint holds."""

from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from llmtrain.config.groups.optimizer import (
    AdafactorConfig,
    AdamConfig,
    AdamWConfig,
    LionConfig,
    MomentumConfig,
    MuonConfig,
    OptimizerConfig,
    SGDConfig,
)
from llmtrain.errors import ConfigError
from llmtrain.optim.optimizer import build_optimizers, clean_name, matches

NO_DECAY = ("*norm*.weight", "*.bias", "positions.weight")
HIDDEN = ("blocks.*.w*.weight",)
CONFIGS = [
    cls()
    for cls in (
        SGDConfig,
        MomentumConfig,
        AdamConfig,
        AdamWConfig,
        AdafactorConfig,
        LionConfig,
        MuonConfig,
    )
]


class Block(nn.Module):
    """A norm and two matrices, one with a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(6, bias=False)
        self.w_up = nn.Linear(6, 10)
        self.w_down = nn.Linear(10, 6, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.w_down(torch.tanh(self.w_up(self.norm(x))))


class Tiny(nn.Module):
    """A language model in outline, with the head tied to the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(7, 6)
        self.positions = nn.Embedding(5, 6)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.final_norm = nn.LayerNorm(6, bias=False)
        self.head = nn.Linear(6, 7, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.tokens(ids) + self.positions.weight[: ids.shape[-1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.final_norm(x))


def names_in(model: nn.Module, group: dict) -> set[str]:
    """Return the names of the parameters of `group`."""
    by_id = {id(p): name for name, p in model.named_parameters()}
    return {by_id[id(p)] for p in group["params"]}


def train(model: nn.Module, optimizers: list[torch.optim.Optimizer], steps: int) -> None:
    """Take `steps` steps on fixed data."""
    for step in range(steps):
        ids = torch.arange(5).roll(step)
        for optimizer in optimizers:
            optimizer.zero_grad()
        model(ids).square().mean().backward()
        for optimizer in optimizers:
            optimizer.step()


def test_decay_groups_follow_the_models_patterns() -> None:
    model = Tiny()
    (optimizer,) = build_optimizers(AdamWConfig(), model, no_decay=NO_DECAY)
    decay, rest = optimizer.param_groups
    assert decay["weight_decay"] == 0.1
    assert rest["weight_decay"] == 0.0
    assert names_in(model, rest) == {
        "positions.weight",
        "final_norm.weight",
        "blocks.0.norm.weight",
        "blocks.1.norm.weight",
        "blocks.0.w_up.bias",
        "blocks.1.w_up.bias",
    }
    assert "tokens.weight" in names_in(model, decay)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.name)
def test_every_parameter_has_one_home_and_tied_ones_count_once(config: OptimizerConfig) -> None:
    model = Tiny()
    optimizers = build_optimizers(config, model, no_decay=NO_DECAY, hidden=HIDDEN)
    homes = [id(p) for o in optimizers for g in o.param_groups for p in g["params"]]
    assert len(homes) == len(set(homes))
    assert set(homes) == {id(p) for p in model.parameters()}


def test_frozen_parameters_are_left_out() -> None:
    model = Tiny()
    model.positions.weight.requires_grad_(False)
    (optimizer,) = build_optimizers(AdamWConfig(), model, no_decay=NO_DECAY)
    assert not any("positions.weight" in names_in(model, g) for g in optimizer.param_groups)


def test_muon_takes_the_declared_matrices_and_nothing_else() -> None:
    model = Tiny()
    muon, adamw = build_optimizers(MuonConfig(), model, no_decay=NO_DECAY, hidden=HIDDEN)
    hidden = set().union(*(names_in(model, g) for g in muon.param_groups))
    assert hidden == {f"blocks.{i}.{w}.weight" for i in (0, 1) for w in ("w_up", "w_down")}
    rest = set().union(*(names_in(model, g) for g in adamw.param_groups))
    assert rest == {name for name, _ in model.named_parameters()} - hidden


def test_muon_without_declared_matrices_is_the_users_mistake() -> None:
    with pytest.raises(ConfigError, match=r"optimizer=muon.*try optimizer=adamw"):
        build_optimizers(MuonConfig(), Tiny(), no_decay=NO_DECAY)


def test_muon_refuses_vectors() -> None:
    with pytest.raises(ValueError, match="takes matrices"):
        build_optimizers(MuonConfig(), Tiny(), no_decay=(), hidden=("*norm*",))


def test_an_unknown_name_is_refused_with_a_hint() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'adamw'"):
        build_optimizers(OptimizerConfig(name="adamww"), Tiny(), no_decay=())


def test_names_are_matched_as_the_model_wrote_them() -> None:
    wrapped = "module._orig_mod.blocks.0._checkpoint_wrapped_module.w_up.weight"
    assert clean_name(wrapped) == "blocks.0.w_up.weight"
    assert matches("blocks.0.w_up.weight", HIDDEN)
    assert not matches("blocks.0.w_up.bias", HIDDEN)
    assert not matches("Blocks.0.w_up.weight", HIDDEN)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("config", CONFIGS[:4], ids=lambda c: c.name)
def test_the_kernels_move_every_element_as_fp64_would(
    config: OptimizerConfig, dtype: torch.dtype
) -> None:
    # 100 elements reach the vectorised loops: fused SGD in bf16 leaves them as they are
    generator = torch.Generator().manual_seed(9)
    start, grad = (torch.randn(100, generator=generator).to(dtype) for _ in range(2))
    models = [nn.ParameterDict({"w": nn.Parameter(start.clone())}) for _ in range(2)]
    models[1].double()
    for model in models:
        (optimizer,) = build_optimizers(config, model, no_decay=())
        assert bool(optimizer.param_groups[0].get("fused")) == config.name.startswith("adam")
        for _ in range(3):
            model["w"].grad = grad.to(model["w"].dtype)
            optimizer.step()
    # three steps, each rounding a weight of size up to 4 once or twice
    tolerance = 8 * torch.finfo(dtype).eps
    moved = models[0]["w"].detach().double()
    torch.testing.assert_close(moved, models[1]["w"].detach(), rtol=tolerance, atol=tolerance)


def test_a_device_without_fused_kernels_falls_back() -> None:
    with torch.device("meta"):
        model = Tiny()
    (optimizer,) = build_optimizers(AdamWConfig(), model, no_decay=NO_DECAY)
    assert all(not group["fused"] for group in optimizer.param_groups)


@pytest.mark.parametrize("flatten", [False, True])
@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.name)
def test_state_round_trip_by_name_continues_exactly(config: OptimizerConfig, flatten: bool) -> None:
    options = StateDictOptions(flatten_optimizer_state_dict=flatten)
    model = Tiny().double()
    optimizers = build_optimizers(config, model, no_decay=NO_DECAY, hidden=HIDDEN)
    train(model, optimizers, 3)
    saved = get_optimizer_state_dict(model, optimizers, options=options)
    if not flatten and config.name != "sgd":
        assert set(saved["state"]) == {name for name, _ in model.named_parameters()}
    other = Tiny().double()
    other.load_state_dict(model.state_dict())
    again = build_optimizers(config, other, no_decay=NO_DECAY, hidden=HIDDEN)
    # deepcopy: torch hands out and takes in the live tensors, which both would then step
    set_optimizer_state_dict(other, again, deepcopy(saved), options=options)
    train(model, optimizers, 2)
    train(other, again, 2)
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
