"""The tokenizer learned from what was chosen: of each source its share."""

from collections.abc import Iterator, Mapping

import numpy as np

from llmtrain.config.groups.tokenizer import TokenizerConfig
from llmtrain.data.choose import Choice
from llmtrain.data.corpus import Numbers
from llmtrain.tokenizer.base import Tokenizer
from llmtrain.tokenizer.build import train_tokenizer
from llmtrain.tokenizer.threads import threads


def learn_tokenizer(
    config: TokenizerConfig, choices: Mapping[str, Choice], weights: Mapping[str, float]
) -> Tokenizer:
    """Return the tokenizer that `config` names, learned from the training split of `choices`.

    `char` learns from validation too, for it has no id for what is new.

    Args:
        config: One of the group `tokenizer`.
        choices: By source.
        weights: Of the sources, where they have any: the text of one is taken in these proportions,
            the same share of each of its documents.

    Raises:
        ConfigError, DataError: as `train_tokenizer`.
    """
    splits = ("train", "validation") if config.name == "char" else ("train",)
    numbers = {
        name: np.concatenate([choice.orders[split] for split in splits])
        for name, choice in choices.items()
    }
    sizes = {n: int(choice.corpus.sizes()[numbers[n]].sum()) for n, choice in choices.items()}
    limit = getattr(config, "train_bytes", None)
    shares = dict.fromkeys(choices, 1.0)
    if weights and limit is not None:
        scale = limit / sum(weights.values())
        shares = {n: min(1.0, scale * weights[n] / max(1, sizes[n])) for n in choices}
    total = round(sum(shares[name] * sizes[name] for name in choices))
    with threads(True):  # the other processes of the crew are waiting
        return train_tokenizer(config, _texts(choices, numbers, shares), total)


def _texts(
    choices: Mapping[str, Choice], numbers: Mapping[str, Numbers], shares: Mapping[str, float]
) -> Iterator[str]:
    for name, choice in choices.items():
        for text in choice.corpus.texts(numbers[name]):
            yield text if shares[name] == 1 else text[: max(1, round(len(text) * shares[name]))]
