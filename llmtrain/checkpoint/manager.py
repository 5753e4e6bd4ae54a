"""Saving and loading checkpoints: whole or not at all.

    step_N.tmp/ <- every rank writes its shards (DCP, safetensors: nothing is ever unpickled)
                <- hashes -> manifest.json -> fsync -> rename to step_N/

A crash before the rename leaves a .tmp folder, which the next save removes.
"""

import logging
import shutil
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter

from llmtrain.checkpoint.manifest import (
    NAME,
    Manifest,
    file_record,
    read_manifest,
    step_folders,
    verify,
)
from llmtrain.checkpoint.retention import best_of, expired
from llmtrain.durable import replace_text, sync_folder
from llmtrain.errors import CheckpointError

log = logging.getLogger(__name__)

T = TypeVar("T")


class CheckpointManager:
    """The checkpoints of one run directory."""

    def __init__(
        self, folder: Path, keep_last: int = 2, *, warn: Callable[[str], None] = log.warning
    ) -> None:
        """Set up the manager; touches nothing yet.

        Args:
            folder: RUN_DIR/checkpoints.
            keep_last: Newest checkpoints that are kept, besides the best.
            warn: Told of every damaged checkpoint that is passed over.
        """
        self._warn = warn
        self._folder = folder
        self._keep_last = keep_last

    def save(self, tensors: dict[str, torch.Tensor], manifest: Manifest) -> Path:
        """Save a checkpoint of `manifest.step` and delete those that have expired.

        Collective over the world. A whole checkpoint of this step keeps its tensors, which are the
        same, and gets the new manifest: an evaluation may have come since. A damaged one goes.

        Returns:
            The checkpoint's folder.
        """
        final = self._folder / f"step_{manifest.step:08d}"
        staging = final.with_name(final.name + ".tmp")
        rank = dist.get_rank()
        if _from_main(rank == 0 and _renewed(final, manifest)):
            return final
        if rank == 0:
            self._remove_leftovers()
            shutil.rmtree(final, ignore_errors=True)
            staging.mkdir(parents=True)
        dist.barrier()
        _save_shards(staging, tensors)
        mine = {p.name: file_record(p) for p in staging.glob(f"shard-{rank + 1:05d}-*")}
        everyones: list[dict[str, dict[str, object]]] = [{} for _ in range(dist.get_world_size())]
        dist.all_gather_object(everyones, mine)
        if rank == 0:
            for files in everyones:
                manifest.files.update(files)
            replace_text(staging / NAME, manifest.to_json())
            staging.rename(final)
            sync_folder(self._folder)
            for folder in expired(self.finished(), keep_last=self._keep_last):
                shutil.rmtree(folder)
        dist.barrier()
        return final

    def write_part(self, step: int, part: int, tensors: dict[str, torch.Tensor]) -> None:
        """Write what one of several worlds has of the checkpoint of `step`.

        Collective over this world. It is no checkpoint before `commit`.

        Args:
            step: Steps done.
            part: Which world this is.
            tensors: Whatever the others write besides.
        """
        staging = self._part(step, part)
        if dist.get_rank() == 0:
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir(parents=True)
        dist.barrier()
        if _from_main(bool(tensors)):
            _save_shards(staging, tensors)
        dist.barrier()

    def commit(self, manifest: Manifest, parts: Sequence[int]) -> Path:
        """Make the checkpoint of `manifest.step` of what the worlds `parts` have written.

        Collective over this world; the others are done. One of the same step is replaced.

        Returns:
            The checkpoint's folder.
        """
        final = self._folder / f"step_{manifest.step:08d}"
        staging = final.with_name(final.name + ".tmp")
        if dist.get_rank() == 0:
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir()
            for part in parts:
                written = self._part(manifest.step, part)
                for path in sorted(written.iterdir()):
                    path.rename(staging / f"part{part}-{path.name}")
            manifest.files.update({p.name: file_record(p) for p in staging.iterdir()})
            replace_text(staging / NAME, manifest.to_json())
            shutil.rmtree(final, ignore_errors=True)
            staging.rename(final)
            sync_folder(self._folder)
            for folder in expired(self.finished(), keep_last=self._keep_last):
                shutil.rmtree(folder)
            self._remove_leftovers()
        dist.barrier()
        return final

    def _part(self, step: int, part: int) -> Path:
        return self._folder / f"step_{step:08d}.part{part}.tmp"

    def finished(self) -> list[tuple[Path, Manifest]]:
        """Return the finished checkpoints, oldest first; contents are not verified."""
        found = []
        for folder in step_folders(self._folder):
            try:
                found.append((folder, read_manifest(folder)))
            except CheckpointError as error:
                self._warn(f"passing over a damaged checkpoint: {error}")
        return found

    def newest_valid(self) -> tuple[Path, Manifest] | None:
        """Return the newest checkpoint whose every file verifies; None where there is none at all.

        Warns about newer ones that do not verify.

        Raises:
            CheckpointError: when there are checkpoints but none verifies.
        """
        folders = step_folders(self._folder)
        for folder in reversed(folders):
            try:
                return folder, verify(folder)
            except CheckpointError as error:
                self._warn(f"falling back to an older checkpoint: {error}")
        if folders:
            raise CheckpointError(
                f"none of the {len(folders)} checkpoints in {self._folder} is whole; to start "
                "again, name another folder with run_dir=DIR or delete them."
            )
        return None

    def agree_on_newest(self) -> Path | None:
        """Return rank 0's `newest_valid` on every rank. Collective over the world.

        Raises:
            CheckpointError: on every rank, when there are checkpoints but none verifies.
        """
        answer: dict[str, str | None] = {}
        if dist.get_rank() == 0:
            try:
                newest = self.newest_valid()
                answer = {"folder": str(newest[0]) if newest else None}
            except CheckpointError as error:
                answer = {"error": str(error)}
        answer = _from_main(answer)
        if answer.get("error"):
            raise CheckpointError(str(answer["error"]))
        return Path(answer["folder"]) if answer["folder"] else None

    def find(self, which: str) -> tuple[Path, Manifest]:
        """Return the checkpoint that `which` names, verified.

        Args:
            which: best (lowest validation loss; the newest where none was evaluated) | latest | a
                step.

        Raises:
            CheckpointError: when there is none such, or it is damaged.
        """
        known = self.finished()
        if not known:
            raise CheckpointError(f"{self._folder} has no checkpoint; train the run first.")
        if which == "latest":
            newest = self.newest_valid()
            assert newest is not None
            return newest
        if which == "best":
            folder, _ = best_of(known) or known[-1]
            return folder, verify(folder)
        for folder, manifest in known:
            if manifest.step == int(which):
                return folder, verify(folder)
        steps = ", ".join(str(manifest.step) for _, manifest in known)
        raise CheckpointError(f"{self._folder} has no checkpoint of step {which}; it has {steps}.")

    def _remove_leftovers(self) -> None:
        for leftover in self._folder.glob("step_*.tmp"):
            shutil.rmtree(leftover)


def _save_shards(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write every rank's shards into `folder`. Collective over the world.

    Raises:
        OSError: on every rank, when one could not write.
    """
    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    try:
        with warnings.catch_warnings():
            # DCP warns that saving from one process is saving from one process.
            warnings.simplefilter("ignore")
            dcp.save(tensors, storage_writer=writer)
    except dcp.CheckpointException as error:
        # A BaseException, which would pass by every handler of errors.
        rank, (cause, _) = next(iter(error.failures.items()))
        raise OSError(f"{folder} could not be written by rank {rank}: {cause}") from error


def load_tensors(folder: Path, tensors: dict[str, torch.Tensor], *, alone: bool = False) -> None:
    """Fill `tensors` in place from the checkpoint `folder`. Collective over the world.

    Args:
        folder: A verified checkpoint.
        tensors: By name; those of the checkpoint that are not asked for are left out.
        alone: Only this process loads: not a collective.

    Raises:
        CheckpointError: when a tensor is not in the checkpoint, or has another shape.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dcp.load(tensors, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=alone)
    except dcp.CheckpointException as error:
        rank, (cause, _) = next(iter(error.failures.items()))
        raise CheckpointError(f"{folder} does not fit this run (rank {rank}: {cause}).") from error


def _renewed(folder: Path, manifest: Manifest) -> bool:
    """Give the checkpoint `folder` the new `manifest` if it is whole; return whether it is."""
    try:
        files = verify(folder).files
    except CheckpointError:
        return False
    replace_text(folder / NAME, replace(manifest, files=files).to_json())
    return True


def _from_main(value: T) -> T:
    """Return rank 0's `value` on every rank. Collective over the world."""
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]
