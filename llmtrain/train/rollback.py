"""Back to a checkpoint without a restart, and on from there with other samples."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from llmtrain.checkpoint.manifest import NAME, Manifest, read_manifest
from llmtrain.durable import replace_text
from llmtrain.train.resume import load_training
from llmtrain.train.state import TrainState

if TYPE_CHECKING:
    from llmtrain.train.trainer import Parts, S


def roll_back(parts: "Parts[S]", folder: Path) -> Manifest:
    """Go back to the checkpoint `folder`; samples seen since are not seen again.

    Collective over the world. What the run remembers of bad steps stays. The checkpoint's manifest
    gets the new state, so that a run which is killed before its next checkpoint goes on as this
    one does.

    Returns:
        The manifest as it is now.
    """
    manifest = read_manifest(folder)
    load_training(folder, manifest, parts.model.module, parts.optimizers, parts.sync)
    state, saved = parts.state, TrainState.from_dict(manifest.train_state)
    bad = replace(state.bad, in_row=0, loss_mean=saved.bad.loss_mean, losses=saved.bad.losses)
    # In place: the loop holds this state.
    vars(state).update(vars(replace(saved, samples=state.samples, bad=bad)))
    manifest.train_state = state.to_dict()
    if parts.info.is_main:
        replace_text(folder / NAME, manifest.to_json())
    parts.loader.start(state.samples)
    for writer in parts.writers:
        writer.rewind(after_step=state.step, evaluated_step=state.evaluated_step)
    parts.progress.step(state.step)
    return manifest
