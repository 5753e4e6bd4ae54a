"""Runs on a virtual clock: equal bits, the numbers of real runs, the times of their machines."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from rich.console import Console

from llmtrain.config import paths, store
from llmtrain.config.plan import make_plan
from llmtrain.errors import ConfigError
from tests.support.runs import SYNTHETIC, TINY, compose_run, metric_lines, tiny_run, train_frozen

STEPS, EVERY, WORKERS = 12, 4, 2
EQUAL = 1e-10
"""fp64: gradients added in another order, through 12 steps of AdamW."""
WORDS = (f"train.steps={STEPS}", f"checkpoint.every_steps={EVERY}", "train.max_grad_norm=0")
MODES = {
    "allreduce": "sync=allreduce",
    "local_sgd": "sync=local_sgd sync.sync_every_steps=2",
    "diloco": "sync=diloco sync.sync_every_steps=2",
    "ssp": "sync=ssp sync.max_staleness=1",
    "async_ps": "sync=async_ps",
    "dc_asgd": "sync=async_ps sync.compensation=dc_asgd_adaptive",
    "async_local_sgd": "sync=async_local_sgd sync.sync_every_steps=2 sync.outer_momentum=0.5",
    "easgd": "sync=easgd sync.sync_every_steps=2",
    "quorum": "sync=quorum_diloco sync.sync_every_steps=2 sync.quorum=1 sync.grace_s=0.5",
}


def simulate(run_dir: Path, *words: str, workers: int = WORKERS, stop_after: int = 0) -> Any:
    """Simulate a run in this process; return its conductor's virtual seconds.

    Args:
        run_dir: Where; one that exists is gone on with.
        words: Overrides.
        workers: Virtual replicas.
        stop_after: Ask to stop when this many pushes were seen; 0: never.
    """
    from llmtrain.config.plan import load_plan
    from llmtrain.data.prepare import prepare
    from llmtrain.distributed.env import rank_info
    from llmtrain.tasks.simulate import run_simulated
    from llmtrain.train.stop import StopRequest

    tiny_run(run_dir, f"sync.simulate.workers={workers}", *WORDS, *words)
    run = store.load_run_config(run_dir / paths.CONFIG)

    class Asking(StopRequest):
        @property
        def asked(self) -> bool:
            log = run_dir / "pushes.jsonl"
            seen = log.read_text().count('"push"') if log.exists() else 0
            return bool(stop_after) and seen >= stop_after

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        with Console(stderr=True, quiet=True) as console:
            prepared = prepare(run.data, run.tokenizer, console=console)
            run_simulated(
                run, load_plan(run_dir), run_dir, prepared, rank_info("cpu"), console, Asking()
            )
    finally:
        dist.destroy_process_group()
    return json.loads((run_dir / "result.json").read_text())


def saved(run_dir: Path, step: int | None = None) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    folders = sorted((run_dir / "checkpoints").glob("step_*"))
    folder = folders[-1] if step is None else run_dir / "checkpoints" / f"step_{step:08d}"
    tensors: dict[str, torch.Tensor] = {}
    for file in folder.glob("*.safetensors"):
        tensors |= load_file(file)
    return tensors


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def numbers(run_dir: Path) -> list[list[float]]:
    keys = ("step", "loss", "grad_norm", "lr", "tokens", "virtual_s", "staleness_max")
    return [[line[key] for key in keys] for line in metric_lines(run_dir)]


QUICK = ("ssp", "async_local_sgd", "easgd", "quorum")


@pytest.mark.parametrize(
    "mode", [pytest.param(m, marks=[] if m in QUICK else pytest.mark.slow) for m in MODES]
)
def test_equal_runs_have_equal_bits_and_a_cut_one_goes_on_exactly(
    mode: str, tmp_path: Path
) -> None:
    words = (*MODES[mode].split(), "sync.simulate.schedule=transient",
             "sync.simulate.probability=0.3", "model.dropout=0.1")  # fmt: skip
    first, second, cut = tmp_path / "first", tmp_path / "second", tmp_path / "cut"
    assert simulate(first, *words)["status"] == "completed"
    simulate(second, *words)
    assert equal(saved(first), saved(second))
    assert numbers(first) == numbers(second)
    # A run that goes on from a checkpoint that the first one has too, whole but for its end.
    simulate(cut, *words, "checkpoint.keep_last=100")
    later = [p for p in (cut / "checkpoints").glob("step_*") if int(p.name[5:]) > EVERY]
    for folder in later:
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    assert len(later) >= 2
    simulate(cut, *words)
    assert equal(saved(first), saved(cut))
    assert numbers(first) == numbers(cut)


def test_a_stop_is_a_rest(tmp_path: Path) -> None:
    told = simulate(tmp_path / "run", *MODES["allreduce"].split(), stop_after=5)
    assert told["status"] == "preempted" and 0 < told["step"] < STEPS
    assert simulate(tmp_path / "run", *MODES["allreduce"].split())["status"] == "completed"
    simulate(tmp_path / "straight", *MODES["allreduce"].split())
    assert equal(saved(tmp_path / "straight"), saved(tmp_path / "run"))


@pytest.mark.parametrize("optimizer", ["adamw", "momentum"])
def test_simulated_allreduce_is_one_process(optimizer: str, tmp_path: Path) -> None:
    simulate(tmp_path / "virtual", "sync=allreduce", f"optimizer={optimizer}")
    real = tiny_run(tmp_path / "real", *WORDS, f"optimizer={optimizer}")
    weights = train_frozen(real)
    virtual = saved(tmp_path / "virtual")
    for name, weight in weights.items():
        torch.testing.assert_close(virtual[f"model.{name}"], weight, rtol=EQUAL, atol=EQUAL)
    losses = [[line["loss"] for line in metric_lines(tmp_path / n)] for n in ("virtual", "real")]
    assert losses[0] == pytest.approx(losses[1], rel=EQUAL)


def seconds(run_dir: Path, words: str, schedule: str) -> float:
    long = ("train.steps=48", "train.global_batch_size=4", "checkpoint.every_steps=null",
            "model.n_layers=1", "model.dim=16")  # fmt: skip
    given = [word for word in TINY if word.split("=")[0] not in {w.split("=")[0] for w in long}]
    assert len(given) < len(TINY)
    simulate(run_dir, *words.split(), f"sync.simulate.schedule={schedule}", *long, workers=4)
    return float(metric_lines(run_dir)[-1]["virtual_s"])


@pytest.mark.parametrize(
    ("words", "least", "most"),
    [
        ("sync=allreduce", 3.0, 3.0),
        pytest.param("sync=local_sgd sync.sync_every_steps=8", 3.0, 3.0, marks=pytest.mark.slow),
        ("sync=ssp sync.max_staleness=3", 2.5, 3.0),
        ("sync=async_ps", 1.1, 1.3),
        pytest.param(
            "sync=async_local_sgd sync.sync_every_steps=4", 1.1, 1.5, marks=pytest.mark.slow
        ),
    ],
)
def test_a_straggler_costs_what_it_must(
    words: str, least: float, most: float, tmp_path: Path
) -> None:
    plain = seconds(tmp_path / "plain", words, "constant")
    slow = seconds(tmp_path / "slow", words, "straggler")
    assert least <= slow / plain <= most


@pytest.mark.parametrize("mode", ["async_ps", "async_local_sgd"])
def test_a_log_replays(mode: str, tmp_path: Path) -> None:
    words = (*MODES[mode].split(), "sync.simulate.schedule=straggler")
    simulate(tmp_path / "run", *words)
    log = tmp_path / "run" / "pushes.jsonl"
    replay = ("sync.simulate.schedule=replay", f"sync.simulate.log={log}")
    simulate(tmp_path / "again", *MODES[mode].split(), *replay)
    assert equal(saved(tmp_path / "run"), saved(tmp_path / "again"))
    simulate(tmp_path / "other", *MODES[mode].split())
    assert not equal(saved(tmp_path / "run"), saved(tmp_path / "other"))
    with pytest.raises(ConfigError, match="workers=4"):
        simulate(tmp_path / "four", *MODES[mode].split(), *replay, workers=4)
    with pytest.raises(ConfigError, match="another mode or other settings"):
        simulate(tmp_path / "ssp", "sync=ssp", "sync.max_staleness=0", *replay)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("sync=allreduce strategy=data", "strategy=single"),
        ("sync=hierarchical", "sync=hierarchical cannot be simulated"),
        ("sync=gossip", "sync=gossip cannot be simulated"),
        ("sync=streaming_diloco", "set sync.fragments=1"),
        ("sync=allreduce sync.compression=fp16", "set sync.compression=none"),
        ("sync=local_sgd sync.inner_state=average", "set sync.inner_state=keep"),
        ("sync=diloco sync.warmup_sync_steps=2", "set sync.warmup_sync_steps=0"),
        ("sync=diloco sync.mix_alpha=0.5", "sync.mix_alpha=0.5 cannot .* set sync.mix_alpha=0.0"),
        ("sync=async_ps train.global_batch_size=7", "train.global_batch_size=7"),
        ("sync=quorum_diloco sync.quorum=3", "sync.quorum=3"),
    ],
)
def test_what_cannot_be_simulated_is_refused(words: str, said: str) -> None:
    given = [*TINY, *SYNTHETIC, *WORDS, "sync.simulate.workers=2"]
    keys = {word.split("=")[0] for word in words.split()}
    kept = [word for word in given if word.split("=")[0] not in keys]
    with pytest.raises(ConfigError, match=said):
        make_plan(compose_run(*kept, *words.split()), gpus=0)
