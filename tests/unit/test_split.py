"""Strategies that cannot be: refused with the keys, the values and a fix that works."""

import copy
import functools
import itertools
import re

import pytest

from llmtrain.config.cut import balanced_cut, fill, uniform_cut
from llmtrain.config.footprint import Footprint
from llmtrain.config.plan import Plan, make_plan
from llmtrain.config.schema import RunConfig
from llmtrain.errors import ConfigError
from tests.support.runs import compose_run

MODEL = ("model.n_layers=6", "model.n_heads=6", "model.dim=48", "model.seq_len=48")


def plan(*overrides: str, world_size: int | None = None) -> Plan:
    return make_plan(compose_run("train.steps=500", *overrides), gpus=0, world_size=world_size)


@pytest.mark.parametrize(
    ("words", "world_size", "said"),
    [
        ("strategy=model", 4, ["strategy.tp=4", "model.n_heads=6", "try 1, 2, 3, 6"]),
        ("model=llama_tiny strategy=model model.n_kv_heads=2 model.n_heads=6 model.dim=96", 3,
         ["strategy.tp=3", "model.n_kv_heads=2", "try 1, 2"]),
        ("strategy=model model.ffn_dim=99", 2, ["feed-forward width 99", "model.ffn_dim=100"]),
        ("strategy=model model.seq_len=47", 2,
         ["model.seq_len=47", "model.seq_len=48", "strategy.sequence_parallel=false"]),
        ("strategy=hybrid strategy.tp=1 strategy.cp=4", 4, ["strategy.cp=4", "= 6", "1, 2, 3, 6"]),
        ("strategy=hybrid strategy.tp=3 strategy.cp=4", 12, ["strategy.cp=4", "= 2", "try 1, 2"]),
        ("strategy=hybrid strategy.tp=1 strategy.cp=3 model.seq_len=47", 3, ["model.seq_len=48"]),
        ("strategy=pipeline train.global_batch_size=8", 8,
         ["strategy.pp=8", "8 stages", "model.n_layers=6", "strategy.pp=6"]),
        ("strategy=pipeline strategy.schedule=Interleaved1F1B train.global_batch_size=8", 4,
         ["strategy.pp=4", "8 stages", "strategy.pp=3"]),
        ("strategy=pipeline train.global_batch_size=8 train.micro_batch_size=4", 4,
         ["1F1B needs 4 micro-batches", "has 2", "train.micro_batch_size=2"]),
        ("strategy=pipeline strategy.schedule=DualPipeV train.global_batch_size=3", 2,
         ["DualPipeV needs 4 micro-batches", "train.global_batch_size"]),
        ("strategy=pipeline strategy.schedule=Interleaved1F1B train.global_batch_size=6"
         " train.micro_batch_size=2", 2,
         ["multiple of strategy.pp=2", "has 3", "train.micro_batch_size=3"]),
        ("strategy=pipeline strategy.schedule=1f1b", 2, ["strategy.schedule=1f1b", "1F1B"]),
        ("strategy=pipeline strategy.cut=even", 2,
         ["strategy.cut=even", "uniform, balanced, graph"]),
        ("strategy=hybrid strategy.tp=2 strategy.pp=2 strategy.cut=graph", 4,
         ["strategy.cut=graph", "strategy.tp=2", "strategy.tp=1", "strategy.cut=balanced"]),
        ("strategy=hybrid strategy.tp=1 strategy.cp=2 strategy.pp=2 strategy.cut=graph", 4,
         ["strategy.cut=graph", "strategy.cp=2", "strategy.cp=1"]),
        ("strategy=hybrid strategy.tp=1 strategy.pp=2 strategy.cut=graph strategy.zero=1"
         " strategy.dp_shard=2", 4, ["strategy.cut=graph", "strategy.zero=1", "strategy.zero=0"]),
        ("strategy=pipeline strategy.cut=graph train.activation_checkpointing=full", 2,
         ["strategy.cut=graph", "activation_checkpointing=full", "activation_checkpointing=none"]),
        ("strategy=pipeline strategy.cut=graph train.compile=true", 2,
         ["strategy.cut=graph", "train.compile=true", "train.compile=false"]),
        ("strategy=pipeline strategy.stage_memory_gib=-1", 2, ["must be positive"]),
        ("strategy=pipeline strategy.stage_memory_gib=8 strategy.cut=uniform", 2,
         ["strategy.stage_memory_gib=8", "strategy.cut=uniform", "strategy.cut=balanced"]),
        ("strategy=hybrid strategy.tp=2 strategy.stage_memory_gib=8", 2,
         ["strategy.stage_memory_gib=8", "strategy.pp=1", "strategy.stage_memory_gib=null"]),
        ("strategy=pipeline strategy.stage_memory_gib=0.001", 2,
         ["strategy.stage_memory_gib=0.001", "2 stages", "GiB on a process", "vocabulary"]),
        ("strategy=pipeline strategy.stages_per_rank=2", 2, ["1F1B takes 1 stage a process"]),
        ("strategy=hybrid strategy.tp=1 strategy.pp=2 strategy.zero=3 strategy.dp_shard=2"
         " strategy.schedule=ZBVZeroBubble", 4, ["strategy.zero=3", "strategy.zero=2", "1F1B"]),
        ("strategy=hybrid strategy.tp=1 strategy.pp=2 strategy.zero=1 strategy.dp_shard=2"
         " strategy.schedule=ZBVZeroBubble model.tie_embeddings=true", 4, ["tie_embeddings=false"]),
        ("strategy=hybrid strategy.tp=2 strategy.pp=2 strategy.dp_replicate=2", 4,
         ["4 processes", "makes 8", "start 8"]),
        ("strategy=model strategy.pp=2", 4, ["strategy.pp=2", "strategy=hybrid"]),
        ("strategy=model strategy.zero=3", 2, ["strategy.zero=3", "strategy=hybrid"]),
        ("strategy=single strategy.dp_replicate=2", 2, ["dp_replicate=2", "strategy=data"]),
        ("strategy=pipeline strategy.schedule=Interleaved1F1B train.global_batch_size=18"
         " model.n_layers=12", 4, ["multiple of strategy.pp=4", "has 18"]),
        ("strategy=hybrid strategy.tp=1 strategy.pp=2 strategy.dp_replicate=-1 strategy.zero=3"
         " strategy.dp_shard=1", 4, ["strategy.zero=3", "strategy.dp_shard=2", "strategy.zero=0"]),
        ("strategy=hybrid strategy.tp=2 strategy.zero=3", 2, ["= 1 process", "strategy.zero=0"]),
        ("strategy=hybrid strategy.tp=2 strategy.cp=2 strategy.zero=1 strategy.dp_shard=2"
         " model.vocab_size=257 model.n_heads=8", 8, ["257", "over 4", "model.vocab_size=258"]),
        ("train.compile=true train.activation_checkpointing=full model.dropout=0.1", 1,
         ["train.compile=true", "activation_checkpointing=full", "set model.dropout=0"]),
        ("strategy=model model.vocab_size=9 model.n_heads=8", 4,
         ["strategy.tp=4", "without a row", "model.vocab_size=12"]),
        ("metrics.trace=true train.steps=4 scheduler.warmup_steps=1", 1,
         ["metrics.trace_after_steps=3", "metrics.trace_steps=2", "train.steps=4"]),
        ("strategy=hybrid strategy.tp=-1 strategy.pp=-1", 4, ["only one axis can take the rest"]),
    ],
)  # fmt: skip
def test_refused(words: str, world_size: int, said: list[str]) -> None:
    model = () if "model=llama" in words else MODEL
    with pytest.raises(ConfigError) as refusal:
        plan(*model, *words.split(), world_size=world_size)
    for part in said:
        assert part in str(refusal.value)


@pytest.mark.parametrize(
    ("words", "world_size", "fix"),
    [
        ("strategy=model", 4, r"try .*\b(2)\b"),
        ("strategy=pipeline train.global_batch_size=8 train.micro_batch_size=4", 4,
         r"(train\.\S+)\."),
        ("strategy=model model.seq_len=47", 2, r"(model\.seq_len=48)"),
        ("strategy=model model.ffn_dim=99", 2, r"(model\.ffn_dim=100)"),
        ("strategy=pipeline strategy.schedule=Interleaved1F1B train.global_batch_size=18"
         " model.n_layers=12", 4, r"(train\.global_batch_size=20)\."),
        ("strategy=hybrid strategy.tp=2 strategy.cp=2 strategy.zero=1 strategy.dp_shard=2"
         " model.vocab_size=257 model.n_heads=8", 8, r"(model\.vocab_size=\d+)"),
        ("strategy=model model.vocab_size=9 model.n_heads=8", 4, r"(model\.vocab_size=\d+)"),
        ("strategy=hybrid strategy.tp=1 strategy.pp=2 strategy.dp_replicate=-1 strategy.zero=3"
         " strategy.dp_shard=1", 4, r"(strategy\.dp_shard=2)"),
        ("strategy=pipeline strategy.stage_memory_gib=0.001 model.vocab_size=999", 3,
         r"(strategy\.stage_memory_gib=[0-9.]*[0-9])"),
        ("strategy=pipeline strategy.cut=graph train.compile=true", 2, r"(train\.compile=false)"),
    ],
)  # fmt: skip
def test_the_fix_works(words: str, world_size: int, fix: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        plan(*MODEL, *words.split(), world_size=world_size)
    found = re.findall(fix, str(refusal.value))
    assert found
    if found[-1].isdigit():
        assert plan(*MODEL, *words.split(), world_size=int(found[-1])).tp == int(found[-1])
    else:
        assert plan(*MODEL, *words.split(), found[-1], world_size=world_size)


@pytest.mark.parametrize(
    ("words", "world_size", "axes"),
    [
        ("strategy=model", None, {"tp": 2}),
        ("strategy=pipeline", None, {"pp": 2}),
        ("strategy=hybrid", None, {"tp": 2, "dp_replicate": 2}),
        ("strategy=hybrid strategy.zero=3", 8, {"tp": 2, "dp_shard": 4}),
        ("strategy=hybrid strategy.tp=-1 strategy.pp=2 strategy.dp_replicate=1", 4,
         {"tp": 2, "pp": 2}),
        ("strategy=hybrid strategy.tp=1 strategy.cp=2 strategy.dp_replicate=-1", 6,
         {"cp": 2, "dp_replicate": 3}),
    ],
)  # fmt: skip
def test_the_rest_of_the_processes(
    words: str, world_size: int | None, axes: dict[str, int]
) -> None:
    found = plan(*MODEL, "train.global_batch_size=24", *words.split(), world_size=world_size)
    whole = {"pp": 1, "dp_replicate": 1, "dp_shard": 1, "cp": 1, "tp": 1} | axes
    assert {axis: found.axis(axis) for axis in whole} == whole


@pytest.mark.parametrize(
    ("batch", "pp", "schedule", "micro"),
    [(64, 2, "1F1B", 8), (8, 2, "1F1B", 1), (4, 2, "1F1B", 1), (12, 2, "1F1B", 1),
     (36, 4, "1F1B", 2), (36, 4, "Interleaved1F1B", 1)],
)  # fmt: skip
def test_a_pipeline_gets_micro_batches(batch: int, pp: int, schedule: str, micro: int) -> None:
    words = (f"train.global_batch_size={batch}", f"strategy.schedule={schedule}")
    found = plan(*MODEL, "strategy=pipeline", "model.n_layers=8", *words, world_size=pp)
    assert found.micro_batch_size == micro


def test_cuts() -> None:
    assert uniform_cut(7, 3) == [range(3), range(3, 5), range(5, 7)]
    assert balanced_cut([1.0] * 7, 3) == [range(2), range(2, 4), range(4, 7)]
    # A head worth two blocks: the last stage holds one.
    assert balanced_cut([1.0] * 6 + [3.0], 3)[-1] == range(6, 7)
    assert balanced_cut([5.0, 1.0, 1.0, 1.0, 1.0, 1.0], 2) == [range(1), range(1, 6)]
    # A block more costs 1 here and 3 there: what counts is the cost after it.
    steps = ((2, 1), (0, 3))
    more = fill(3, [1, 1], lambda i, n: steps[i][0] + n * steps[i][1], group=[0, 1], room=[9, 9])
    assert more == [2, 1]


def test_no_cut_is_better_than_the_balanced_one() -> None:
    """Against every possible cut."""
    costs = [3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0]
    for stages in range(1, 6):
        cut = balanced_cut([costs[0] + 2.0, *costs[1:-1], costs[-1] + 3.0], stages)
        best = min(
            _largest([range(a, b) for a, b in itertools.pairwise((0, *inner, len(costs)))], costs)
            for inner in itertools.combinations(range(1, len(costs)), stages - 1)
        )
        assert _largest(cut, costs) == best
        assert [i for blocks in cut for i in blocks] == list(range(len(costs)))


@functools.cache
def _base() -> RunConfig:
    words = "model.n_heads=6 model.dim=48 model.seq_len=48 model.vocab_size=200"
    return compose_run("train.steps=9", "strategy=hybrid", "model.n_layers=7", *words.split())


def _footprint(pp: int, settings: dict[str, object], micro_batches: int = 12) -> Footprint:
    run = copy.deepcopy(_base())
    for key, value in settings.items():
        group, _, name = key.partition(".")
        setattr(getattr(run, group), name, value)
    shards = 2 if run.strategy.zero else 1
    axes = {"pp": pp, "dp_replicate": 1, "dp_shard": shards, "cp": 1, "tp": 1}
    return Footprint(run, axes, 2, micro_batches)


@pytest.mark.parametrize(
    ("pp", "settings"),
    [
        (3, {"strategy.schedule": "1F1B"}),
        (4, {"strategy.schedule": "1F1B", "model.seq_len": 480, "optimizer.name": "sgd"}),
        (3, {"strategy.schedule": "GPipe", "optimizer.name": "sgd"}),
        (2, {"strategy.schedule": "Interleaved1F1B", "model.seq_len": 480}),
        (3, {"strategy.schedule": "ZBVZeroBubble", "model.tie_embeddings": False}),
        (2, {"train.activation_checkpointing": "full", "train.precision": "bf16"}),
    ],
)
def test_no_cut_that_fits_is_better_than_the_chosen_one(
    pp: int, settings: dict[str, object]
) -> None:
    """Against every possible cut, under every bound that makes a difference."""
    footprint = _footprint(pp, settings)
    strategy, layers = footprint.run.strategy, footprint.run.model.n_layers

    def bytes_and_cost(cut: list[range]) -> tuple[float, float]:
        held = [0] * pp
        for process, blocks in zip(footprint.process_of, cut, strict=True):
            held[process] += len(blocks)
        costs = [len(blocks) * footprint.block_cost for blocks in cut]
        costs[-1] += footprint.head_cost
        return max(footprint.bytes_of(rank, n) for rank, n in enumerate(held)), max(costs)

    every = [
        bytes_and_cost([range(a, b) for a, b in itertools.pairwise((0, *inner, layers))])
        for inner in itertools.combinations(range(1, layers), footprint.n_stages - 1)
    ]
    assert footprint.least_bytes() == min(held for held, _ in every)
    for limit in {held for held, _ in every}:
        strategy.stage_memory_gib = limit * (1 + 1e-9) / 2**30
        held, cost = bytes_and_cost(footprint.stages())
        assert held <= limit
        assert cost == min(c for h, c in every if h <= limit)
    strategy.stage_memory_gib = 0.999 * footprint.least_bytes() / 2**30
    with pytest.raises(ConfigError, match=f"{footprint.least_bytes() / 2**30:.3g} GiB"):
        footprint.stages()


@pytest.mark.parametrize(
    ("key", "value", "less"),
    [
        ("strategy.zero", 1, 2 / 4 / 2), ("strategy.zero", 2, 3 / 4 / 2),
        ("strategy.zero", 3, 1 / 2), ("optimizer.name", "sgd", 1 / 2),
        ("optimizer.name", "lion", 1 / 4),
    ],
)  # fmt: skip
def test_what_is_sharded_or_not_kept_is_not_counted(key: str, value: object, less: float) -> None:
    """Of weights, gradients and two states of AdamW, over two processes."""

    def weights(settings: dict[str, object]) -> float:
        footprint = _footprint(2, settings)
        block = footprint.bytes_of(0, 3) - footprint.bytes_of(0, 2)
        return block - 2 * footprint.kept_bytes("none")  # 1F1B: two micro-batches alive

    assert 1 - weights({key: value}) / weights({}) == pytest.approx(less)


def _largest(cut: list[range], costs: list[float]) -> float:
    sums = [sum(costs[i] for i in blocks) for blocks in cut]
    sums[0] += 2.0
    sums[-1] += 3.0
    return max(sums)
