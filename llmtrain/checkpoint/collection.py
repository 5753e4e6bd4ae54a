"""Collection: the finished checkpoints of one run directory. No torch.

    checkpoints/step_00000500/   step_00000800/   latest -> step_00000800   best -> step_00000500

What is whole is said by each folder's manifest alone. The links are for people and scripts; nothing
here reads them.
"""

import contextlib
import logging
import math
import shutil
from collections.abc import Callable
from pathlib import Path

from llmtrain.checkpoint.manifest import Manifest, read_manifest, step_folders, step_of, verify
from llmtrain.checkpoint.retention import Retention, ranked
from llmtrain.durable import sync_folder
from llmtrain.errors import CheckpointError

log = logging.getLogger(__name__)

LATEST, BEST = "latest", "best"


class CheckpointCollection:
    """RUN_DIR/checkpoints, read and pruned by one process."""

    def __init__(self, folder: Path, *, warn: Callable[[str], None] = log.warning) -> None:
        """Set up; touches nothing yet.

        Args:
            folder: RUN_DIR/checkpoints.
            warn: Told of every damaged checkpoint that is passed over, and of others' warnings.
        """
        self.folder = folder
        self.warn = warn

    def step_folder(self, step: int) -> Path:
        """Return where the checkpoint of `step` is, or would be."""
        return self.folder / f"step_{step:08d}"

    def finished(self) -> list[tuple[Path, Manifest]]:
        """Return the finished checkpoints, oldest first; contents are not verified."""
        found = []
        for folder in step_folders(self.folder):
            try:
                found.append((folder, read_manifest(folder)))
            except CheckpointError as error:
                self.warn(f"passing over a damaged checkpoint: {error}")
        return found

    def named(self) -> dict[str, Path]:
        """Return which folders are the `latest` and, where any was evaluated, the `best`.

        Their contents are not verified.
        """
        known = self.finished()
        named = {LATEST: known[-1:], BEST: ranked(known)[:1]}
        return {name: found[0][0] for name, found in named.items() if found}

    def newest_valid(self, most: float = math.inf) -> tuple[Path, Manifest] | None:
        """Return the newest checkpoint whose every file verifies; None where there is none at all.

        Warns about newer ones that do not verify.

        Args:
            most: Those of more steps are left out.

        Raises:
            CheckpointError: when there are checkpoints but none verifies.
        """
        folders = [folder for folder in step_folders(self.folder) if step_of(folder) <= most]
        for folder in reversed(folders):
            try:
                return folder, verify(folder)
            except CheckpointError as error:
                self.warn(f"falling back to an older checkpoint: {error}")
        if folders:
            raise CheckpointError(
                f"none of the {len(folders)} checkpoints in {self.folder} is whole; to start "
                "again, name another folder with run_dir=DIR or delete them."
            )
        return None

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
            raise CheckpointError(f"{self.folder} has no checkpoint; train the run first.")
        if which == LATEST:
            newest = self.newest_valid()
            assert newest is not None
            return newest
        if which == BEST:
            folder = self.named().get(BEST, known[-1][0])
            return folder, verify(folder)
        for folder, manifest in known:
            if manifest.step == int(which):
                return folder, verify(folder)
        steps = ", ".join(str(manifest.step) for _, manifest in known)
        raise CheckpointError(f"{self.folder} has no checkpoint of step {which}; it has {steps}.")

    def publish(self, staging: Path, step: int, retention: Retention) -> Path:
        """Make `staging`, whose every file is on the disk, the checkpoint of `step`.

        Older ones go by `retention` afterwards, when this one is there for good.

        Returns:
            Its folder.
        """
        final = self.step_folder(step)
        replaced = _move_away(final)  # a damaged one, or what an earlier start has left
        staging.rename(final)
        sync_folder(self.folder)
        if replaced is not None:
            shutil.rmtree(replaced, ignore_errors=True)
        for folder in retention.expired(self.finished()):
            if folder != final:  # others may call themselves newer, and be damaged
                self.remove(folder)
        self.link()
        return final

    def set_aside(self, newest: Path) -> None:
        """Rename what is newer than `newest`, and so is damaged, to `step_N.damaged`.

        It would count among those that are kept, in place of whole ones.
        """
        for folder in step_folders(self.folder):
            if folder.name > newest.name:
                aside = folder.with_name(folder.name + ".damaged")
                with contextlib.suppress(OSError):
                    shutil.rmtree(aside, ignore_errors=True)
                    folder.rename(aside)
                    self.warn(f"{folder} is {aside.name} now; delete it when you like.")

    def link(self) -> None:
        """Let `latest` and `best` point to what they name now."""
        named = self.named()
        for name in (LATEST, BEST):
            link, scratch = self.folder / name, self.folder / f"{name}.tmp"
            # They are a convenience, which some file systems do not have.
            with contextlib.suppress(OSError):
                if name not in named:
                    link.unlink(missing_ok=True)
                else:
                    scratch.unlink(missing_ok=True)
                    scratch.symlink_to(named[name].name)
                    scratch.replace(link)

    def remove(self, folder: Path) -> None:
        """Delete a checkpoint, if it is there; killed on the way, it is no checkpoint any more."""
        leaving = _move_away(folder)
        if leaving is not None:
            shutil.rmtree(leaving, ignore_errors=True)

    def remove_leftovers(self) -> None:
        """Delete what saves that never finished, and deletions, have left."""
        for leftover in self.folder.glob("step_*.tmp"):
            shutil.rmtree(leftover, ignore_errors=True)


def _move_away(folder: Path) -> Path | None:
    """Rename `folder` to what `remove_leftovers` deletes; return where it is, None: not there."""
    leaving = folder.with_name(folder.name + ".gone.tmp")
    shutil.rmtree(leaving, ignore_errors=True)
    try:
        return folder.rename(leaving)
    except FileNotFoundError:
        return None
