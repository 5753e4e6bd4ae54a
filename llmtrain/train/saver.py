"""Saver: what the loop saves, and what becomes of a save that fails."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from llmtrain.checkpoint.tensors import model_tensors, optimizer_tensors, sync_tensors
from llmtrain.sync.interface import SyncStrategy

if TYPE_CHECKING:
    from llmtrain.train.trainer import Parts

log = logging.getLogger(__name__)


class Saver:
    """Saves the state of a run, by `checkpoint.async_save` while training goes on."""

    def __init__(self, parts: "Parts[SyncStrategy]") -> None:
        """Save what is in `parts`."""
        self._p = parts
        self._saved: tuple[int, float | None] | None = None
        """Step and validation loss of the last save that has not failed."""

    def save(self, val_loss: float | None, *, last: bool = False) -> None:
        """Save a checkpoint. Collective over the world.

        Args:
            val_loss: Of these weights; None: not evaluated.
            last: Training ends with it: it is there when this returns.

        Raises:
            OSError: on every rank: it could not be saved, and that ends the run.
        """
        p = self._p
        self.wait()
        if last and self._saved == (p.state.step, val_loss):
            return
        described = p.sync.describe()
        tensors = sync_tensors(p.sync.state_dict())
        tensors |= optimizer_tensors(p.model.module, p.optimizers, p.sync.replica)
        later = p.run.checkpoint.async_save and not last
        save = p.checkpoints.save_later if later else p.checkpoints.save
        for writer in p.writers:
            writer.sync()  # what a checkpoint is behind must not be lost without it
        with p.sync.eval_context(), self._may_fail(last):
            tensors |= model_tensors(p.model.module)
            self._saved = p.state.step, val_loss
            save(tensors, p.manifest(p.state, val_loss, described))
            folder = p.checkpoints.collection.step_folder(p.state.step)
            log.info("checkpoint %s%s", folder, " is being written" if later else "")

    def look(self) -> None:
        """Take note of a save that has failed while training went on.

        Raises:
            OSError: that ends the run.
        """
        if self._p.checkpoints.failed():
            self.wait()

    def wait(self) -> None:
        """Wait for the save that is in flight, if any.

        Raises:
            OSError: on every rank: it could not be saved, and that ends the run.
        """
        with self._may_fail(last=False):
            self._p.checkpoints.wait()

    @contextmanager
    def _may_fail(self, last: bool) -> Iterator[None]:
        """Let a save fail, where `checkpoint.on_error` has training go on."""
        try:
            yield
        except OSError as error:
            step = self._saved[0] if self._saved else self._p.state.step
            self._saved = None
            why = error.strerror or str(error)
            if last or self._p.run.checkpoint.on_error == "stop":
                raise OSError(
                    error.errno, f"no checkpoint of step {step} was saved: {why}. "
                    "Free some space there: the same run_dir goes on from its newest checkpoint.",
                ) from error  # fmt: skip
            if self._p.info.is_main:
                self._p.checkpoints.collection.warn(
                    f"no checkpoint was saved, training goes on: {why}"
                )
