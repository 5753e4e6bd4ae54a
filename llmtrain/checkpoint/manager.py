"""Saving and loading checkpoints: whole or not at all.

    step_N.tmp/ <- every rank writes its shards (DCP, safetensors: nothing is ever unpickled)
                <- hashes -> manifest.json -> fsync -> rename to step_N/

A crash before the rename leaves a .tmp folder, which the next save removes. `save_later` does the
same in a thread, over a process group of its own, from a copy of the tensors.
"""

import datetime
import errno
import shutil
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed import ProcessGroup
from torch.distributed.checkpoint import HuggingFaceStorageReader
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

from llmtrain.checkpoint.collection import CheckpointCollection
from llmtrain.checkpoint.manifest import NAME, Manifest, file_record, verify
from llmtrain.checkpoint.retention import Retention
from llmtrain.checkpoint.writer import ShardWriter
from llmtrain.durable import replace_text
from llmtrain.errors import CheckpointError

T = TypeVar("T")

LONGEST = datetime.timedelta(days=1)
"""How long a save in a thread may take: a rank that is gone is noticed at once, one that hangs by
the watch over training."""


class CheckpointManager:
    """Saves the checkpoints of one run directory."""

    def __init__(
        self, collection: CheckpointCollection, retention: Retention, hash_kind: str = "xxh3"
    ) -> None:
        """Set up; touches nothing yet.

        Args:
            collection: What there is.
            retention: What is kept of it.
            hash_kind: One of `durable.HASHES`, of files that are written.
        """
        self.collection = collection
        self._retention = retention
        self._hash = hash_kind
        self._later: _Later | None = None

    def save(self, tensors: dict[str, torch.Tensor], manifest: Manifest) -> Path:
        """Save a checkpoint of `manifest.step` and delete those that have expired.

        Collective over the world. A whole checkpoint of this step keeps its tensors, which are the
        same, and gets the new manifest: an evaluation may have come since. A damaged one goes.

        Returns:
            The checkpoint's folder.

        Raises:
            OSError: on every rank; what was there before is as it was.
        """
        self.wait()
        return self._save(tensors, manifest, None)

    def save_later(self, tensors: dict[str, torch.Tensor], manifest: Manifest) -> None:
        """Copy `tensors` and save them as `save` does while training goes on.

        Collective over the world. Waits for the one before: one is in flight at most.

        Raises:
            OSError: on every rank, where the one before could not be saved.
        """
        self.wait()
        if self._later is None:
            self._later = _Later()
        self._later.start(self, tensors, manifest)

    def wait(self) -> None:
        """Wait for the save that is in flight, if any.

        Raises:
            OSError: on every rank, where it could not be saved.
        """
        if self._later is not None:
            self._later.wait()

    def failed(self) -> bool:
        """Say whether the save in flight has ended in an error, which `wait` raises."""
        return self._later is not None and self._later.failed()

    def _save(
        self, tensors: dict[str, torch.Tensor], manifest: Manifest, group: ProcessGroup | None
    ) -> Path:
        final = self.collection.step_folder(manifest.step)
        staging = final.with_name(final.name + ".tmp")
        rank = dist.get_rank()
        if _on_main(lambda: self._renew(final, manifest), group):
            return final
        _on_main(lambda: self._stage(staging), group)
        try:
            mine = self._save_shards(staging, tensors, group)
            everyones: list[dict[str, dict[str, Any]]] = [{} for _ in range(dist.get_world_size())]
            dist.all_gather_object(everyones, mine, group=group)
            _on_main(lambda: self._publish(staging, manifest, everyones), group)
        except OSError:
            if rank == 0:
                shutil.rmtree(staging, ignore_errors=True)  # the room may be needed
            raise
        return final

    def _renew(self, folder: Path, manifest: Manifest) -> bool:
        """Give the checkpoint `folder`, if it is whole, what has come since; return whether it is.

        Its tensors stay, and so does what says of which mode they are.
        """
        try:
            before = verify(folder)
        except CheckpointError:
            return False
        val_loss = before.val_loss if manifest.val_loss is None else manifest.val_loss
        now = replace(before, train_state=manifest.train_state, val_loss=val_loss)
        replace_text(folder / NAME, now.to_json())
        self.collection.link()
        return True

    def _stage(self, staging: Path) -> None:
        self.collection.remove_leftovers()
        staging.mkdir(parents=True)

    def _publish(
        self, staging: Path, manifest: Manifest, records: Sequence[dict[str, dict[str, Any]]]
    ) -> None:
        for files in records:
            manifest.files.update(files)
        replace_text(staging / NAME, manifest.to_json())
        self.collection.publish(staging, manifest.step, self._retention)

    def _save_shards(
        self, folder: Path, tensors: dict[str, torch.Tensor], group: ProcessGroup | None
    ) -> dict[str, dict[str, Any]]:
        """Write every rank's shards into `folder`; return this one's records. Collective over
        `group`.

        Raises:
            OSError: on every rank, when one could not write.
        """
        writer = ShardWriter(folder, self._hash)
        try:
            with warnings.catch_warnings():
                # DCP warns that saving from one process is saving from one process.
                warnings.simplefilter("ignore")
                dcp.save(tensors, storage_writer=writer, process_group=group)
        except dcp.CheckpointException as error:
            # A BaseException, which would pass by every handler of errors.
            rank, (cause, _) = next(iter(error.failures.items()))
            text = (
                f"rank {rank} could not write {folder}: {getattr(cause, 'strerror', None) or cause}"
            )
            if not isinstance(cause, OSError):
                raise RuntimeError(text) from error
            raise OSError(cause.errno or errno.EIO, text) from error
        return writer.records

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
        if _from_main(bool(tensors), None):
            self._save_shards(staging, tensors, None)
        dist.barrier()

    def commit(self, manifest: Manifest, parts: Sequence[int]) -> Path:
        """Make the checkpoint of `manifest.step` of what the worlds `parts` have written.

        Collective over this world; the others are done. One of the same step is replaced.

        Returns:
            The checkpoint's folder.
        """
        final = self.collection.step_folder(manifest.step)
        staging = final.with_name(final.name + ".tmp")
        if dist.get_rank() == 0:
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir()
            for part in parts:
                written = self._part(manifest.step, part)
                for path in sorted(written.iterdir()):
                    path.rename(staging / f"part{part}-{path.name}")
            records = {p.name: file_record(p, self._hash) for p in staging.iterdir()}
            self._publish(staging, manifest, [records])
            self.collection.remove_leftovers()
        dist.barrier()
        return final

    def _part(self, step: int, part: int) -> Path:
        folder = self.collection.step_folder(step)
        return folder.with_name(f"{folder.name}.part{part}.tmp")

    def agree_on_newest(self) -> Path | None:
        """Return rank 0's `newest_valid` on every rank. Collective over the world.

        Waits for a save in flight; one that fails is none.

        Raises:
            CheckpointError: on every rank, when there are checkpoints but none verifies.
        """
        answer: dict[str, str | None] = {}
        try:
            self.wait()
        except OSError as error:
            if dist.get_rank() == 0:
                self.collection.warn(f"a checkpoint could not be saved: {error}")
        if dist.get_rank() == 0:
            try:
                newest = self.collection.newest_valid()
                if newest is not None:
                    self.collection.set_aside(newest[0])
                answer = {"folder": str(newest[0]) if newest else None}
            except CheckpointError as error:
                answer = {"error": str(error)}
        answer = _from_main(answer, None)
        if answer.get("error"):
            raise CheckpointError(str(answer["error"]))
        return Path(answer["folder"]) if answer["folder"] else None


class _Later:
    """One save in flight: a copy of the tensors, a thread, and a process group for it."""

    def __init__(self) -> None:
        """Collective over the world."""
        on_gpu = torch.cuda.is_available()
        self._stager = DefaultStager(
            StagingOptions(
                use_pinned_memory=on_gpu, use_shared_memory=False, use_async_staging=False,
                use_non_blocking_copy=on_gpu,
            )
        )  # fmt: skip
        self._group = dist.new_group(backend="gloo", timeout=LONGEST)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._saving: Future[Path] | None = None

    def start(
        self, manager: CheckpointManager, tensors: dict[str, torch.Tensor], manifest: Manifest
    ) -> None:
        staged = self._stager.stage(tensors)
        assert isinstance(staged, dict)
        self._saving = self._thread.submit(manager._save, staged, manifest, self._group)

    def failed(self) -> bool:
        saving = self._saving
        return saving is not None and saving.done() and saving.exception() is not None

    def wait(self) -> None:
        saving, self._saving = self._saving, None
        if saving is not None:
            saving.result()


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


def _from_main(value: T, group: ProcessGroup | None) -> T:
    """Return rank 0's `value` on every rank. Collective over `group`, which is all of the world."""
    box = [value]
    dist.broadcast_object_list(box, src=0, group=group)
    return box[0]


def _on_main(work: Callable[[], T], group: ProcessGroup | None) -> T:
    """Return on every rank what rank 0's `work` gives. Collective over `group`.

    Raises:
        OSError: on every rank, when it could not.
    """
    done: T | None = None
    failed: tuple[int, str] | None = None
    if dist.get_rank() == 0:
        try:
            done = work()
        except OSError as error:
            where = f" ({error.filename})" if error.filename else ""
            failed = (error.errno or errno.EIO, f"{error.strerror or error}{where}")
    done, failed = _from_main((done, failed), group)
    if failed is not None:
        raise OSError(*failed)
    return cast("T", done)
