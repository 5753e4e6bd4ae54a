"""Modes that a layout does not allow: refused with a fix. Modes set up to lose: told."""

import pytest

from llmtrain.config.meetings import advice
from llmtrain.config.plan import make_plan
from llmtrain.errors import ConfigError
from tests.support.runs import compose_run


@pytest.mark.parametrize(
    ("words", "world_size", "said", "mended"),
    [
        ("sync=diloco strategy=data strategy.zero=3", 2,
         ["dp_shard=2", "one replica"], "sync=allreduce strategy=data strategy.zero=3"),
        ("sync.compression=fp16 strategy=data strategy.zero=2", 2,
         ["strategy.zero=2", "sync.compression=none"], "sync.compression=fp16 strategy=data"),
        ("sync.compression=powersgd sync.powersgd_start_step=9 strategy=model", 2,
         ["strategy.tp=2", "DDP"],
         "sync.compression=powersgd sync.powersgd_start_step=9 strategy=data"),
        ("sync=gossip strategy=model", 2,
         ["sync=gossip", "tp=2", "strategy.dp_replicate=2"], "sync=gossip strategy=data"),
        ("sync=local_sgd strategy=model", 2,
         ["tp=2", "strategy.dp_replicate=2"], "sync=allreduce strategy=model"),
        ("sync=local_sgd strategy=data sync.warmup_sync_steps=500", 2,
         ["sync.warmup_sync_steps=500", "train.steps=500"],
         "sync=local_sgd strategy=data sync.warmup_sync_steps=499"),
        ("sync=diloco strategy=data sync.fragments=10", 2,
         ["sync.fragments=10", "model.n_layers=4", "try sync.fragments=5"],
         "sync=diloco strategy=data sync.fragments=5"),
        ("sync=hierarchical strategy=data", 6,
         ["sync.levels.0.replicas=4", "must divide strategy.dp_replicate=6", "2, 3, 6"],
         "sync=hierarchical strategy=data sync.levels.0.replicas=3"),
        ("sync=hierarchical strategy=data sync.levels.1.replicas=2", 4,
         ["averages 2 of strategy.dp_replicate=4", "-1"],
         "sync=hierarchical strategy=data sync.levels.0.replicas=2"),
        ("sync=ssp strategy=data optimizer=muon", 2,
         ["optimizer=muon", "optimizer=adamw", "sync=async_local_sgd"],
         "sync=async_local_sgd strategy=data optimizer=muon"),
        ("sync=quorum_diloco strategy=data sync.quorum=3", 2,
         ["sync.quorum=3 of 2", "raise strategy.dp_replicate"],
         "sync=quorum_diloco strategy=data sync.quorum=2"),
        ("sync=async_ps strategy=data sync.min_replicas=3", 2,
         ["sync.min_replicas=3 of 2"], "sync=async_ps strategy=data sync.min_replicas=2"),
        ("sync=async_ps strategy=data metrics.trace=true", 2,
         ["metrics.trace=true", "sync=async_ps"], "sync=async_ps strategy=data"),
        ("sync=async_ps strategy=data metrics.record=true", 2,
         ["metrics.record=true", "sync=async_ps"], "sync=async_ps strategy=data"),
        ("sync=async_ps strategy=data sync.servers=5", 2,
         ["sync.servers=5", "sync.servers=4 or fewer"],
         "sync=async_ps strategy=data sync.servers=4"),
        ("sync=async_ps strategy=pipeline sync.servers=3", 2,
         ["sync.servers=3", "sync.servers=2 or fewer"],
         "sync=async_ps strategy=pipeline sync.servers=2"),
        ("sync=quorum_diloco strategy=single sync.simulate.workers=2 sync.quorum=3", 1,
         ["sync.quorum=3 of 2", "raise sync.simulate.workers"],
         "sync=quorum_diloco strategy=single sync.simulate.workers=3 sync.quorum=3"),
        ("sync.compression=powersgd strategy=data", 2,
         ["sync.powersgd_start_step=1000", "train.steps=500", "try sync.powersgd_start_step=50"],
         "sync.compression=powersgd strategy=data sync.powersgd_start_step=50"),
        ("sync=allreduce strategy=single sync.simulate.workers=2 metrics.record=true", 1,
         ["metrics.record=true", "a simulation"],
         "sync=allreduce strategy=single sync.simulate.workers=2"),
    ],
)  # fmt: skip
def test_a_refusal_names_a_fix_that_works(
    words: str, world_size: int, said: list[str], mended: str
) -> None:
    common = ["train.steps=500", "train.global_batch_size=12", "model.n_layers=4"]
    if "levels.0" not in words:
        common += ["sync.levels.0.replicas=4"] * ("hierarchical" in words)
    with pytest.raises(ConfigError) as refused:
        make_plan(compose_run(*common, *words.split()), gpus=0, world_size=world_size)
    for word in said:
        assert word in str(refused.value)
    make_plan(compose_run(*common, *mended.split()), gpus=0, world_size=world_size)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("sync.sync_every_steps=0", "sync.sync_every_steps=0"),
        ("sync.fragments=3", "try 102"),
        ("sync.overlap_steps=100", "sync.overlap_steps=100"),
        ("sync.fragments=4 sync.overlap_steps=25", "= 25"),
        ("sync.wire_dtype=int3", "Did you mean 'int"),
        ("sync.mix_alpha=1.0", "sync.mix_alpha=1.0"),
        ("sync.outer_momentum=1.0", "sync.outer_momentum=1.0"),
        ("sync.outer_lr=0", "sync.outer_lr=0"),
        ("sync.warmup_sync_steps=-1", "sync.warmup_sync_steps=-1"),
    ],
)
def test_values_that_make_no_sense_are_refused(words: str, said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        compose_run("sync=diloco", *words.split())
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("words", "said", "mended"),
    [
        ("sync.graph=ring", ["sync.graph=ring", "use sync.algorithm=dpsgd", "exponential or"],
         "sync.graph=ring sync.algorithm=dpsgd"),
        ("sync.algorithm=dpsgd sync.graph=random_peer",
         ["use sync.algorithm=push_sum", "sync.graph=ring or"],
         "sync.algorithm=push_sum sync.graph=random_peer"),
        ("sync.algorithm=dpsgd sync.graph=star", ["sync.graph=star", "complete"],
         "sync.algorithm=dpsgd sync.graph=complete"),
        ("sync.algorithm=sgp", ["sync.algorithm=sgp", "push_sum"], "sync.algorithm=push_sum"),
        ("sync.sync_every_steps=0", ["sync.sync_every_steps=0"], "sync.sync_every_steps=1"),
        ("sync.warmup_sync_steps=-1", ["sync.warmup_sync_steps=-1"], "sync.warmup_sync_steps=0"),
    ],
)  # fmt: skip
def test_gossip_of_no_sense_is_refused_with_a_fix(words: str, said: list[str], mended: str) -> None:
    with pytest.raises(ConfigError) as refused:
        compose_run("sync=gossip", *words.split())
    for word in said:
        assert word in str(refused.value)
    compose_run("sync=gossip", *mended.split())


@pytest.mark.parametrize(
    ("words", "replicas", "steps", "warned"),
    [
        ("sync=diloco sync.sync_every_steps=10", 2, 999, True),
        ("sync=diloco sync.sync_every_steps=10", 2, 1000, False),
        ("sync=diloco sync.sync_every_steps=10 sync.warmup_sync_steps=10", 2, 100, False),
        ("sync=diloco sync.sync_every_steps=10 sync.outer_momentum=0", 2, 100, False),
        ("sync=quorum_diloco sync.sync_every_steps=10", 2, 999, True),
        ("sync=quorum_diloco sync.sync_every_steps=10", 2, 1000, False),
        ("sync=quorum_diloco sync.sync_every_steps=10 sync.quorum=2", 3, 1000, True),
        ("sync=quorum_diloco sync.sync_every_steps=10 sync.quorum=2", 2, 1000, False),
        (
            "sync=quorum_diloco sync.sync_every_steps=10 sync.quorum=2 sync.grace_s=1",
            3,
            1000,
            False,
        ),
        ("sync=local_sgd sync.sync_every_steps=8", 2, 16, False),
        ("sync=local_sgd sync.sync_every_steps=8", 2, 15, True),
        ("sync=async_local_sgd sync.sync_every_steps=50", 4, 50, True),
        ("sync.compression=fp16", 1, 100, True),
        ("sync.compression=fp16", 2, 100, False),
        ("sync=local_sgd", 2, 100, False),
        ("sync=local_sgd", 1, 100, True),
        ("sync=allreduce", 1, 100, False),
        ("sync=gossip", 3, 100, False),
        ("sync=gossip", 1, 100, True),
        ("sync=gossip sync.algorithm=dpsgd sync.graph=complete", 3, 100, True),
        ("sync=gossip sync.algorithm=dpsgd sync.graph=complete", 2, 100, False),
    ],
)
def test_a_run_set_up_to_lose_is_told(words: str, replicas: int, steps: int, warned: bool) -> None:
    assert (advice(compose_run(*words.split()), steps, replicas) is not None) == warned


def test_a_checkpoint_is_a_start() -> None:
    run = compose_run("sync=quorum_diloco", "sync.sync_every_steps=10")
    assert "same run_dir" in (advice(run, 100, 2) or "")
    assert advice(run, 100, 2, is_continued=True) is None
