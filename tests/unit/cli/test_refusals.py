"""Whatever is wrong with a setting: one message with the key, the value and a fix."""

from pathlib import Path

import pytest

from llmtrain.commands.compose import Composer, composer
from llmtrain.errors import ConfigError


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
