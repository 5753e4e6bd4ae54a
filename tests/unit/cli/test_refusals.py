"""Whatever is wrong with a setting: one message with the key, the value and a fix."""

import json
import re
from pathlib import Path

import pytest

from llmtrain.commands.compose import Composer, composer
from llmtrain.commands.refuse import check_words
from llmtrain.commands.show import describe_sync, print_plan
from llmtrain.commands.train import plan_run
from llmtrain.config.plan import make_plan
from llmtrain.errors import ConfigError
from llmtrain.train.push_log import read_pushes
from tests.support.runs import compose_run


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("modle=gpt_tiny", ["modle", "Did you mean 'model'?"]),
        ("model=gpt_tny", ["model=gpt_tny", "Did you mean 'gpt_tiny'?", "llama_tiny"]),
        ("model=schema_gpt", ["there is no such model"]),
        ("model=null", ["model=null", "Choices"]),
        ("train=5", ["train=5", "Choices: default, smoke"]),
        ("model=[gpt_tiny,llama_tiny]", ["one is chosen"]),
        ("model={dim: 3}", ["model.KEY=VALUE"]),
        ("experiment=nope", ["experiment=nope", "shakespeare_char_cpu"]),
        ("model.dimm=3", ["Did you mean 'model.dim'?", "Settings of model"]),
        ("data.clean.htm=true", ["Did you mean 'data.clean.html'?"]),
        ("data.clean.deep.er=1", ["data.clean.deep.er", "'data.clean.deep'"]),
        ("+model.foo=1", ["'model.foo'", "Settings of model"]),
        ("++model.foo=1", ["'model.foo'"]),
        ("+data.clean.foo=1", ["'data.clean.foo'"]),
        ("+foo=1", ["'foo'", "experiment_name"]),
        ("foo.bar=1", ["foo.bar", "'foo'"]),
        ("lr=1e-3", ["Did you mean 'optimizer.lr'?"]),
        ("steps=3", ["Did you mean 'train.steps'?"]),  # and not sweep
        ("optimiser.lr=1", ["Did you mean 'optimizer'?"]),
        ("model.n_kv_heads=2", ["model.name is llama", "choose another model"]),
        ("data.path=books", ["add data=text."]),
        ("data.path=a/b.jsonl.gz", ["add data=jsonl."]),
        ("data.path=b.parquet", ["add data=parquet."]),
        ("optimizer.nesterov=true", ["add optimizer=momentum"]),
        ("model.dim=abc", ["model.dim=abc", "must be a whole number", "residual stream"]),
        ("model.dim.x=3", ["model.dim.x=3", "whole number"]),
        ("model.dim=null", ["model.dim=null", "whole number"]),
        ("train.steps=1.5", ["train.steps=1.5", "whole number or null"]),
        ("metrics.tensorboard=maybe", ["true or false"]),
        ("optimizer.lr=fast", ["optimizer.lr=fast", "a number"]),
        ("experiment_name=[a]", ["experiment_name=[a]", "text"]),
        ("data.clean=3", ["data.clean.KEY=VALUE", "html"]),
        ("model.dim=[1", ["model.dim=[1", "cannot be read"]),
        ("model.dim", ["'model.dim'", "key=value"]),
        ("=3", ["'=3'", "key=value"]),
        ("~model", ["~model"]),
        ("model.dim=${nope}", ["model.dim=${nope}", "'nope' not found"]),
        ("optimizer=adam,lion", ["put -m first"]),
        ("train.steps=range(1,3)", ["put -m first"]),
        ("hydra.run.dir=x", ["run_dir=DIR"]),
        ("model.n_heads=3", ["model.n_heads=3", "model.dim=128", "try 1, 2, 4"]),
        ("train.precision=fp16", ["train.precision=fp16", "bf16, fp32, fp64"]),
        ("model@other=gpt_tiny", ["model@other"]),
    ],
)
def test_refused(train: Composer, override: str, said: list[str]) -> None:
    with pytest.raises(ConfigError) as refusal:
        train.compose([override])
    message = str(refusal.value)
    for part in said:
        assert part in message, message
    assert "schema_" not in message.replace(override, "")
    assert "hydra.cc" not in message


def test_a_missing_value_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "bare.yaml").write_text("defaults:\n  - schema_gpt\n  - _self_\nn_heads: 2\n")
    with composer("train", [tmp_path]) as hydra, pytest.raises(ConfigError) as refusal:
        hydra.compose(["model=bare"])
    assert "model.n_layers has no value" in str(refusal.value)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("sync=async_ps sync.server=2", ["Did you mean 'sync.servers'?", "max_restarts"]),
        ("sync.grph=ring sync=gossip", ["Did you mean 'sync.graph'?", "sync_every_steps"]),
        ("sync=diloco sync.mode=x", ["Settings of sync here:", "outer_momentum"]),
        ("sync.name=diloco", ["sync.name=diloco", "use sync=diloco"]),
        ("optimizer=momentum optimizer.momentun=0.9", ["Did you mean 'optimizer.momentum'?"]),
        ("sync=nonsense sync.grph=ring", ["there is no such sync"]),
    ],
)
def test_a_slip_is_judged_by_what_is_chosen(words: str, said: list[str]) -> None:
    with pytest.raises(ConfigError) as refused:
        check_words("train", words.split(), [])
    for word in said:
        assert word in str(refused.value)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("sync=diloco", "diloco, 2 replicas, every 100 steps"),
        ("sync=local_sgd sync.warmup_sync_steps=9",
         "local_sgd, 2 replicas, every 8 steps, after 9 synchronous steps"),
        ("sync=hierarchical sync.levels=[{replicas:-1,every_steps:4}]",
         "hierarchical, 2 replicas, all every 4 steps"),
        ("sync=async_ps sync.servers=2", "async_ps, 2 replicas, 2 servers"),
    ],
)  # fmt: skip
def test_a_plan_tells_when_replicas_exchange_what(words: str, said: str) -> None:
    run = compose_run("strategy=data", "train.steps=500", *words.split())
    assert describe_sync(run, make_plan(run, gpus=0, world_size=2)) == said


def test_a_dry_run_tells_what_is_unwise(capsys: pytest.CaptureFixture[str]) -> None:
    run = compose_run("strategy=data", "train.steps=50", "sync=diloco")
    print_plan(run, make_plan(run, gpus=0, world_size=2))
    assert "try sync.sync_every_steps=5" in " ".join(capsys.readouterr().out.split())


def test_a_log_to_replay_is_looked_at_before_the_start(tmp_path: Path) -> None:
    other = tmp_path / "metrics.jsonl"
    other.write_text('{"step": 1, "loss": 2.0}\n')
    push = {"now": 1.0, "kind": "push", "worker": 0, "ticket": 1, "base_version": 0}
    log = tmp_path / "pushes.jsonl"
    log.write_text(json.dumps(push) + "\n")
    assert read_pushes(log, 1) == [push]
    for path, workers, said in (
        (tmp_path, 1, f"try {log}"),
        (tmp_path / "nope", 1, "is no file"),
        (other, 1, "is no log of pushes"),
        (log, 2, "set it to 1"),
    ):
        with pytest.raises(ConfigError, match=re.escape(said)):
            read_pushes(path, workers)
        run = compose_run("sync.simulate.schedule=replay", f"sync.simulate.log={path}",
                          f"sync.simulate.workers={workers}", "strategy=single")  # fmt: skip
        with pytest.raises(ConfigError, match=re.escape(said)):
            plan_run(run)
