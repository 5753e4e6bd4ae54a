"""What `data.mode=streaming` cannot do, told before anything starts."""

from llmtrain.config.groups.data import DataConfig
from llmtrain.config.groups.tokenizer import GIVEN_TOKENIZERS, TokenizerConfig
from llmtrain.config.schema import RunConfig
from llmtrain.errors import require

STREAMED_SAMPLES = ("windows", "masked_windows")
"""Samples that need no more than the tokens in their order."""


def check_streamed(run: RunConfig) -> None:
    """Refuse a run that needs more of its stream than one has.

    Raises:
        ConfigError: names the key and a fix.
    """
    if run.data.mode != "streaming":
        return
    check_stream(run.data, run.tokenizer)
    require(
        run.train.epochs is None,
        f"train.epochs={run.train.epochs}: how long an epoch of data.mode=streaming is shows only "
        "at its end; set train.steps or train.tokens and train.epochs=null.",
    )


def check_stream(data: DataConfig, tokenizer: TokenizerConfig) -> None:
    """Refuse what needs all documents at once, which a stream never has.

    Raises:
        ConfigError: names the key and a fix.
    """
    instead = "or set data.mode=prepared"
    require(
        data.name != "mixture",
        f"data=mixture: data.mode=streaming reads one source; choose one, {instead}.",
    )
    require(
        data.dedup != "near",
        "data.dedup=near compares all documents, and data.mode=streaming has one after another; "
        f"set data.dedup=exact, {instead}.",
    )
    require(
        data.samples in STREAMED_SAMPLES,
        f"data.samples={data.samples} needs the lengths of all documents, and data.mode=streaming "
        f"does not know them; set data.samples=masked_windows, {instead}.",
    )
    target = getattr(data, "target", None)
    require(
        target is None,
        f"data.target={target!r}: data.mode=streaming reads plain text, no prompts and targets; "
        f"set data.text_key, {instead}.",
    )
    require(
        tokenizer.name in GIVEN_TOKENIZERS,
        f"tokenizer={tokenizer.name} learns from the text first, and data.mode=streaming reads it "
        "only as it trains; set tokenizer=byte, or tokenizer=pretrained tokenizer.path=FOLDER with "
        f"one that is there, {instead}.",
    )
