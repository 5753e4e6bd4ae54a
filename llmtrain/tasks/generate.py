"""The task `generate`: text from a checkpoint, streamed to the terminal."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from llmtrain.config.groups.inference import GenerateConfig
from llmtrain.distributed.env import rank_info
from llmtrain.errors import EXIT_OK, ConfigError
from llmtrain.models.generate import generate
from llmtrain.tasks.inference import TrainedModel, load_trained


def run_generate(config: GenerateConfig) -> int:
    """Print text that goes on from `config.prompt`; return the exit code.

    Raises:
        UserError: when the run or the prompt cannot be used.
    """
    assert config.run is not None
    trained = load_trained(Path(config.run), config.step, rank_info(config.device).device)
    streams = config.stream and not config.json and config.n == 1
    if streams:
        encode_prompt(trained, config.prompt)  # refused before a word of it is printed
        sys.stdout.write(config.prompt)
    texts = generate_texts(trained, config, on_text=_print_now if streams else None)
    if config.json:
        answer = {
            "prompt": config.prompt, "texts": texts, "step": trained.manifest.step,
            "checkpoint": str(trained.folder),
        }  # fmt: skip
        print(json.dumps(answer, ensure_ascii=False))
    elif streams:
        print()
    else:
        print("\n\n".join(config.prompt + text for text in texts))
    return EXIT_OK


def encode_prompt(trained: TrainedModel, prompt: str) -> list[int]:
    """Return the ids of `prompt`: the separator where it has none.

    Raises:
        ConfigError: when it is too long.
        DataError: when the tokenizer does not know a character of it.
    """
    ids = trained.tokenizer.encode(prompt).tolist() or [trained.tokenizer.separator_id]
    if len(ids) > trained.model.seq_len * 64:
        raise ConfigError(f"prompt has {len(ids)} tokens; shorten it.")
    return ids


def generate_texts(
    trained: TrainedModel, config: GenerateConfig, *, on_text: Callable[[str], None] | None = None
) -> list[str]:
    """Return `config.n` texts that go on from the prompt, without it.

    A text ends early where the model draws the separator.

    Args:
        trained: The model.
        config: What to draw and how.
        on_text: Called with each piece of the first text as it comes.

    Raises:
        UserError: when the prompt cannot be used.
    """
    tokenizer = trained.tokenizer
    ids = encode_prompt(trained, config.prompt)
    device = trained.model.embed.weight.device
    decoders = [tokenizer.stream_decoder() for _ in range(config.n)]
    texts, done = [""] * config.n, [False] * config.n
    tokens = generate(
        trained.model,
        torch.tensor([ids] * config.n, device=device),
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        top_k=config.top_k,
        top_p=config.top_p,
        generator=torch.Generator().manual_seed(config.seed),
    )
    for next_B in tokens:
        for i, token in enumerate(next_B.tolist()):
            if done[i]:
                continue
            done[i] = token == tokenizer.separator_id
            piece = decoders[i].finish() if done[i] else decoders[i].feed(token)
            texts[i] += piece
            if i == 0 and on_text is not None:
                on_text(piece)
        if all(done):
            break
    for i in range(config.n):
        if not done[i]:
            piece = decoders[i].finish()
            texts[i] += piece
            if i == 0 and on_text is not None:
                on_text(piece)
    return texts


def _print_now(piece: str) -> None:
    sys.stdout.write(piece)
    sys.stdout.flush()
