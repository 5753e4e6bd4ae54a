"""Optimizers, gradient norm and clipping on sharded models, against one process.

Real gloo processes, started here; the sizes do not divide, so that no shard is like its
neighbour and some ranks hold none of a parameter.
"""

import warnings
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
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
from llmtrain.distributed.shards import reduce_partial_grads
from llmtrain.optim.clip import clip_grads, grad_norm
from llmtrain.optim.optimizer import build_optimizers

pytestmark = pytest.mark.multiprocess

TOLERANCE = 1e-10
"""fp64: sums are added in another order, 1e-16 each, and five steps pass it on."""

MAX_NORM = 0.3
STEPS = 5
BATCH, SEQ, VOCAB, DIM, FFN = 4, 3, 11, 7, 10
"""FFN is even because torch's tensor parallelism needs it; half of it is odd again for FSDP."""

CONFIGS: list[OptimizerConfig] = [
    SGDConfig(lr=0.05, weight_decay=0.1),
    MomentumConfig(lr=0.02),
    AdamConfig(lr=0.01, weight_decay=0.1),
    AdamWConfig(lr=0.01),
    AdafactorConfig(lr=0.05, weight_decay=0.1),
    LionConfig(lr=0.003),
    MuonConfig(lr=0.02),
]
Cut = Callable[[nn.Module, DeviceMesh], None]


class Model(nn.Module):
    """Embedding, norm, two matrices, a head with one row (its second shard is empty)."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCAB, DIM)
        self.norm = nn.LayerNorm(DIM)
        self.up = nn.Linear(DIM, FFN)
        self.down = nn.Linear(FFN, DIM, bias=False)
        self.head = nn.Linear(DIM, 1)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.tokens(ids)
        return self.head(x + self.down(torch.tanh(self.up(self.norm(x)))))


def build() -> Model:
    """Return the model that every layout starts from."""
    torch.manual_seed(0)
    return Model().double()


def cut_fsdp(model: nn.Module, mesh: DeviceMesh) -> None:
    """FSDP2 over the whole mesh: HSDP where it has two axes."""
    fully_shard(model, mesh=mesh)


def cut_tp(model: nn.Module, mesh: DeviceMesh) -> None:
    """Tensor and sequence parallel on some modules; the rest stay plain tensors."""
    cut_input = PrepareModuleInput(input_layouts=Replicate(), desired_input_layouts=Shard(0))
    parallelize_module(model, mesh, {"norm": cut_input})
    plan = {
        "norm": SequenceParallel(sequence_dim=0),
        "up": ColwiseParallel(input_layouts=Shard(0)),
        "down": RowwiseParallel(output_layouts=Replicate()),
    }
    parallelize_module(model, mesh, plan)


def cut_tp_fsdp(model: nn.Module, mesh: DeviceMesh) -> None:
    """FSDP2 over the first axis of what tensor parallelism cut over the second."""
    cut_tp(model, mesh["tp"])
    fully_shard(model, mesh=mesh["dp"])


def optimizers_of(config: OptimizerConfig, model: nn.Module) -> list[torch.optim.Optimizer]:
    """Build with this file's patterns."""
    patterns = {"no_decay": ["*norm*", "*.bias"], "hidden": ["up.weight", "down.weight"]}
    return build_optimizers(config, model, **patterns)


def train(
    model: nn.Module, optimizers: list[torch.optim.Optimizer], first: int, last: int
) -> list[float]:
    """Take steps `first` to `last`, clipped; every rank sees the same batch. Return the norms."""
    norms = []
    for step in range(first, last):
        generator = torch.Generator().manual_seed(step)
        ids = torch.randint(0, VOCAB, (BATCH, SEQ), generator=generator)
        for optimizer in optimizers:
            optimizer.zero_grad()
        out = model(ids)
        (10 * out.square().mean() + out.mean()).backward()
        reduce_partial_grads(model.parameters())
        norms.append(clip_grads(model.parameters(), MAX_NORM).item())
        for optimizer in optimizers:
            optimizer.step()
    return norms


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Gather a DTensor."""
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach()


def check_training(mesh: DeviceMesh, cut: Cut) -> None:
    """Five clipped steps of every optimizer equal those of one process.

    On two axes only of those with sums inside, and one elementwise: four ranks are slow.
    """
    some = [config for config in CONFIGS if config.name in {"adamw", "adafactor", "muon"}]
    for config in CONFIGS if mesh.ndim == 1 else some:
        one, many = build(), build()
        cut(many, mesh)
        wanted = train(one, optimizers_of(config, one), 0, STEPS)
        norms = train(many, optimizers_of(config, many), 0, STEPS)
        assert max(wanted) > MAX_NORM, "nothing was clipped"
        assert norms == pytest.approx(wanted, rel=TOLERANCE), config.name
        for (name, a), b in zip(one.named_parameters(), many.parameters(), strict=True):
            gap = (whole(b) - a).abs().max() / a.abs().max()
            assert gap < TOLERANCE, f"{config.name}: {name} is {gap:.1e} off"


def check_fsdp(mesh: DeviceMesh) -> None:
    check_training(mesh, cut_fsdp)


def check_tp(mesh: DeviceMesh) -> None:
    check_training(mesh, cut_tp)


def check_tp_fsdp(mesh: DeviceMesh) -> None:
    check_training(mesh, cut_tp_fsdp)


def check_state_moves_between_layouts(mesh: DeviceMesh) -> None:
    """Three steps sharded, the state gathered, two steps whole: as five steps whole."""
    options = StateDictOptions(full_state_dict=True)
    for config in CONFIGS[1:]:  # sgd has no state, and torch's full_state_dict load needs some
        straight, many, resumed = build(), build(), build()
        train(straight, optimizers_of(config, straight), 0, STEPS)
        cut_fsdp(many, mesh)
        optimizers = optimizers_of(config, many)
        train(many, optimizers, 0, 3)
        weights = get_model_state_dict(many, options=options)
        state = get_optimizer_state_dict(many, optimizers, options=options)
        resumed.load_state_dict(weights)
        again = optimizers_of(config, resumed)
        # deepcopy: torch takes in the tensors themselves, and `back` needs them unchanged
        set_optimizer_state_dict(resumed, again, deepcopy(state), options=options)
        train(resumed, again, 3, STEPS)
        # and back: the whole state onto shards
        back = build()
        back.load_state_dict(weights)
        cut_fsdp(back, mesh)
        sharded = optimizers_of(config, back)
        set_optimizer_state_dict(back, sharded, state, options=options)
        train(back, sharded, 3, STEPS)
        models = zip(straight.parameters(), resumed.parameters(), back.parameters(), strict=True)
        for a, b, c in models:
            torch.testing.assert_close(b, a, rtol=TOLERANCE, atol=TOLERANCE)
            torch.testing.assert_close(whole(c), a.detach(), rtol=TOLERANCE, atol=TOLERANCE)


def check_state_is_dtensors(mesh: DeviceMesh) -> None:
    """What the checkpoint writes has the parameters' mesh, and its global shapes."""
    for config in CONFIGS[1:]:
        model = build()
        cut_fsdp(model, mesh)
        optimizers = optimizers_of(config, model)
        train(model, optimizers, 0, 1)
        held = [p for o in optimizers for p in o.state]
        own = {id(p) for p in model.parameters()}
        assert {id(p) for p in held} == own, f"{config.name}: keys that are no parameters"
        state = get_optimizer_state_dict(model, optimizers)["state"]
        for name, p in model.named_parameters():
            for key, value in state[name].items():
                if key != "step":
                    assert isinstance(value, DTensor), f"{config.name}: {name}.{key}"
                    kept = {"row_var": p.shape[:-1], "col_var": p.shape[1:]}
                    assert value.shape == kept.get(key, p.shape)


def check_norm_of_every_placement(mesh: DeviceMesh) -> None:
    """Shards count once whatever cuts them, copies count once, Partial is refused."""
    torch.manual_seed(1)
    grads = [torch.randn(5, 7, dtype=torch.float64) for _ in range(5)]
    places = [(Replicate(), Replicate()), (Shard(0), Replicate()), (Shard(1), Shard(0))]
    places += [(Replicate(), Shard(1))]
    parameters = []
    for grad, place in zip(grads, places, strict=False):
        p = nn.Parameter(distribute_tensor(torch.zeros_like(grad), mesh, place))
        p.grad = distribute_tensor(grad, mesh, place)
        parameters.append(p)
    plain = nn.Parameter(torch.zeros_like(grads[4]))
    plain.grad = grads[4].clone()
    parameters.append(plain)
    wanted = torch.cat([g.flatten() for g in grads]).norm()
    torch.testing.assert_close(grad_norm(parameters), wanted, rtol=1e-13, atol=0)
    # pipeline stages hold different parameters: here two stages, each with the same ones
    stages = grad_norm(parameters, extra_axes=[mesh.get_group(0)])
    torch.testing.assert_close(stages, wanted * 2**0.5, rtol=1e-13, atol=0)
    norm = clip_grads(parameters, wanted.item() / 2)
    torch.testing.assert_close(norm, wanted, rtol=1e-13, atol=0)
    torch.testing.assert_close(grad_norm(parameters), wanted / 2, rtol=1e-6, atol=0)


def check_partial_is_refused_until_reduced(mesh: DeviceMesh) -> None:
    """SequenceParallel leaves Partial gradients: an error, until they are added up."""
    model = build()
    cut_tp(model, mesh)
    optimizers = optimizers_of(AdamWConfig(), model)
    model(torch.arange(SEQ).expand(BATCH, SEQ)).square().mean().backward()
    with pytest.raises(ValueError, match="Partial"):
        grad_norm(model.parameters())
    with pytest.raises(ValueError, match="reduce or redistribute"):
        optimizers[0].step()
    reduce_partial_grads(model.parameters())
    assert grad_norm(model.parameters()) > 0
    optimizers[0].step()


def run_rank(
    rank: int,
    shape: tuple[int, ...],
    axes: tuple[str, ...],
    checks: list[Callable[[DeviceMesh], None]],
    store: str,
) -> None:
    """Be one rank of a mesh of `shape` and run every check on it."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    size = torch.Size(shape).numel()
    dist.init_process_group("gloo", rank=rank, world_size=size, store=dist.FileStore(store, size))
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=axes)
    try:
        for check in checks:
            check(mesh)
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
def test_two_ranks(tmp_path: Path) -> None:
    checks = [check_fsdp, check_tp, check_state_is_dtensors, check_state_moves_between_layouts]
    checks.append(check_partial_is_refused_until_reduced)
    mp.spawn(run_rank, ((2,), ("dp",), checks, str(tmp_path / "store")), nprocs=2)


def test_four_ranks(tmp_path: Path) -> None:
    # one start for HSDP (the first axis replicates) and for tensor parallelism beside FSDP
    checks = [check_fsdp, check_norm_of_every_placement, check_tp_fsdp]
    mp.spawn(run_rank, ((2, 2), ("dp", "tp"), checks, str(tmp_path / "store")), nprocs=4)
