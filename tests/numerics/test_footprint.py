"""What is modelled of a pipeline's stages, against the models and schedules themselves."""

import copy
import functools

import pytest
import torch
from torch.distributed.pipelining._schedule_visualizer import get_schedule_ops
from torch.distributed.pipelining.schedules import _Action

from llmtrain.config.footprint import Footprint, in_flight
from llmtrain.config.groups.strategy import SCHEDULES
from llmtrain.config.plan import make_plan
from llmtrain.errors import ConfigError
from llmtrain.models.build import build_model, count_parameters
from llmtrain.models.init import seed_dropout
from llmtrain.models.transformer import Transformer
from llmtrain.parallel.precision import Precision
from llmtrain.parallel.stages import cut_stages
from tests.support.runs import compose_run

SHAPE = (
    "model.dim=64", "model.n_heads=4", "model.seq_len=64", "model.n_layers=4",
    "model.vocab_size=300", "train.global_batch_size=4",
)  # fmt: skip

MODELS = {
    "gpt": ("model=gpt_tiny", "model.bias=true"),
    "gpt untied": (
        "model=gpt_tiny",
        "model.bias=false",
        "model.dropout=0.1",
        "model.tie_embeddings=false",
    ),
    "llama": ("model=llama_tiny", "model.n_kv_heads=2"),
}


compose_once = functools.cache(compose_run)


def _footprint(
    words: tuple[str, ...], *, precision: str = "fp32", optimizer: str = "sgd"
) -> tuple[Footprint, Transformer]:
    run = copy.deepcopy(compose_once(*SHAPE, "train.steps=9", *words))
    run.train.precision, run.optimizer.name = precision, optimizer
    model = build_model(run.model, 300, "cpu").to(Precision(run.train.precision).parameter_dtype)
    seed_dropout(model, 1)
    model.tie()
    return make_plan(run, gpus=0).footprint(run), model


@pytest.mark.parametrize("words", MODELS.values(), ids=MODELS)
def test_every_weight_is_counted(words: tuple[str, ...]) -> None:
    """Adam keeps two numbers of every weight that SGD does not, and nothing else differs."""
    plain, model = _footprint(words, optimizer="sgd")
    adam, _ = _footprint(words, optimizer="adamw")
    assert adam.bytes_of(0, 4) - plain.bytes_of(0, 4) == 2 * 4 * count_parameters(model)
    block = adam.bytes_of(0, 4) - adam.bytes_of(0, 3) - adam.kept_bytes("none")
    assert block == (1 + 1 + 2) * 4 * count_parameters(model.blocks["0"])


@pytest.mark.parametrize("words", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("samples", ["windows", "packed"])
@pytest.mark.parametrize(("precision", "tolerance"), [("fp64", 0.01), ("bf16", 0.02)])
def test_what_a_block_keeps_for_its_backward(
    words: tuple[str, ...], precision: str, tolerance: float, samples: str
) -> None:
    """Against the tensors that autograd saves in a real forward.

    Not modelled are a norm's statistics and attention's log-sum-exp. A mask of documents is kept
    once for all blocks.
    """
    footprint, model = _footprint((*words, f"data.samples={samples}"), precision=precision)
    documents = torch.arange(64).remainder(20).expand(4, -1) if samples == "packed" else None
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    blocks = list(model.blocks.items())
    saved: dict[int, torch.UntypedStorage] = {}

    def save(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    def measure(n_blocks: int) -> int:
        model.blocks = torch.nn.ModuleDict(dict(blocks[:n_blocks]))
        saved.clear()
        hooks = torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor)
        with hooks, Precision(precision).autocast(torch.device("cpu")):
            output = model(torch.zeros((4, 64), dtype=torch.int64), torch.arange(4), documents)
        assert output.requires_grad
        return sum(storage.nbytes() for storage in saved.values())

    measured = measure(4) - measure(3)
    modelled = footprint.kept_bytes("none") + footprint.cast_bytes(footprint.matrices)
    assert modelled == pytest.approx(measured, rel=tolerance)
    plain, _ = _footprint(words, precision=precision)
    mask = footprint.bytes_of(0, 4) - plain.bytes_of(0, 4)
    assert mask == footprint.mask_bytes
    masked, documents = measure(4), None
    # Beside it: the samples' own positions and rotary tables, 8 + 2 * 4 * 16 / 2 bytes a token.
    assert 0 <= masked - measure(4) - mask <= 4 * 64 * (8 + 64) * (samples == "packed")


def test_a_model_without_an_order_of_its_parts_is_traced_instead() -> None:
    run = compose_run(*SHAPE, "train.steps=9", "strategy=pipeline", "launcher.nproc_per_node=2")
    plan, model = make_plan(run, gpus=0), build_model(run.model, 300)
    model.PP_ORDER = ()  # type: ignore[misc, assignment]
    with pytest.raises(ConfigError, match=r"strategy\.cut=balanced.*strategy\.cut=graph"):
        cut_stages(run, plan, model)
    run.strategy.cut = "graph"
    assert [place.index for place in cut_stages(run, plan, model)] == [0, 1]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_micro_batches_in_flight_are_those_of_torch_s_schedules(schedule: str) -> None:
    """Forwards minus backwards of every rank's list of actions, at its highest."""
    pp, stages = 4, SCHEDULES[schedule][0]
    for rank, actions in enumerate(get_schedule_ops(schedule, pp, 4 * pp, stages)):
        alive = most = 0
        for action in actions:
            for part in _parts(action):
                kind = part.computation_type.name
                alive += (kind == "FORWARD") - (kind in ("FULL_BACKWARD", "BACKWARD_WEIGHT"))
                most = max(most, alive)
        ours = in_flight(schedule, pp=pp, rank=rank, stages=stages, micro_batches=4 * pp)
        assert ours == most / stages


def _parts(action: _Action | None) -> list[_Action]:
    if action is None:
        return []
    return list(action.sub_actions or [action])
