"""Checkpoints on disk: what is damaged is never taken for whole, and what is kept."""

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from llmtrain.checkpoint.collection import CheckpointCollection
from llmtrain.checkpoint.manager import CheckpointManager, load_tensors
from llmtrain.checkpoint.manifest import NAME, Manifest, read_manifest, verify
from llmtrain.checkpoint.retention import Retention
from llmtrain.errors import CheckpointError

STEPS = (10, 20)


@pytest.fixture(scope="module", autouse=True)
def alone() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def manifest_of(step: int, val_loss: float | None = None) -> Manifest:
    return Manifest(
        step=step, train_state={"step": step, "tokens": 7 * step}, val_loss=val_loss,
        model={"name": "gpt", "dim": 32}, optimizer="adamw", tokenizer="byte",
        tokenizer_hash="0", data="x", llmtrain_version="0",
    )  # fmt: skip


def tensors_of(step: int) -> dict[str, torch.Tensor]:
    return {
        "model.w": torch.full((5, 3), float(step)),
        "model.part": torch.arange(12.0).reshape(3, 4)[:, 1:3] + step,
        "optimizer.step": torch.tensor(step),
    }


def manager_of(
    folder: Path, retention: Retention | None = None, kind: str = "xxh3"
) -> CheckpointManager:
    return CheckpointManager(CheckpointCollection(folder), retention or Retention(), kind)


def save(folder: Path, steps: tuple[int, ...] = STEPS, kind: str = "xxh3") -> Path:
    manager = manager_of(folder, kind=kind)
    for step in steps:
        last = manager.save(tensors_of(step), manifest_of(step))
    return last


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("saved")).parent


def copy_of(saved: Path, tmp_path: Path) -> tuple[Path, Path]:
    folder = tmp_path / "checkpoints"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(saved, folder, symlinks=True)
    return folder, folder / "step_00000020"


def refuses(folder: Path) -> str:
    with pytest.raises(CheckpointError) as refusal:
        verify(folder)
    return str(refusal.value)


@pytest.mark.parametrize("kind", ["xxh3", "sha256"])
def test_what_was_saved_comes_back(kind: str, tmp_path: Path) -> None:
    newest = save(tmp_path, kind=kind)
    assert all(kind in record for record in verify(newest).files.values())
    blank = {name: torch.zeros_like(t) for name, t in tensors_of(20).items()}
    load_tensors(newest, blank)
    for name, expected in tensors_of(20).items():
        assert torch.equal(blank[name], expected), name
    whole = load_file(newest / next(iter(read_manifest(newest).files)))
    assert torch.equal(whole["model.part"], tensors_of(20)["model.part"])


def test_every_bit_of_the_manifest_counts(saved: Path, tmp_path: Path) -> None:
    _, newest = copy_of(saved, tmp_path)
    content = (newest / NAME).read_bytes()
    for place in range(len(content)):
        for bit in range(8):
            flipped = bytearray(content)
            flipped[place] ^= 1 << bit
            (newest / NAME).write_bytes(flipped)
            with pytest.raises(CheckpointError):
                read_manifest(newest)
    (newest / NAME).write_bytes(content)
    verify(newest)


def test_every_kind_of_damage_to_a_file_is_seen(saved: Path, tmp_path: Path) -> None:
    _, newest = copy_of(saved, tmp_path)
    names = sorted(p.name for p in newest.iterdir())
    assert len(names) == 2
    rng = random.Random(0)
    for name in names:
        content = (newest / name).read_bytes()
        cuts = [0, 1, len(content) // 2, len(content) - 1]
        damaged = [content[:cut] for cut in cuts] + [content + b"\0"]
        for _ in range(200):
            flipped = bytearray(content)
            flipped[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
            damaged.append(bytes(flipped))
        for torn in damaged:
            (newest / name).write_bytes(torn)
            assert "damaged" in refuses(newest) or "newer llmtrain" in refuses(newest)
        (newest / name).unlink()
        assert "missing" in refuses(newest) or "never finished" in refuses(newest)
        (newest / name).write_bytes(content)
    verify(newest)


def test_files_of_another_step_are_seen(saved: Path, tmp_path: Path) -> None:
    folder, newest = copy_of(saved, tmp_path)
    shard = next(iter(read_manifest(newest).files))
    shutil.copy(folder / "step_00000010" / shard, newest / shard)
    assert "damaged" in refuses(newest)
    _, newest = copy_of(saved, tmp_path)
    shutil.copy(newest / shard, newest / "shard-00002-model-00001-of-00001.safetensors")
    assert "not in the manifest" in refuses(newest)


def test_the_fall_back_is_taken_and_said(saved: Path, tmp_path: Path) -> None:
    folder, newest = copy_of(saved, tmp_path)
    said: list[str] = []
    collection = CheckpointCollection(folder, warn=said.append)
    shard = newest / next(iter(read_manifest(newest).files))
    shard.write_bytes(shard.read_bytes()[:-1])
    found = collection.newest_valid()
    assert found is not None
    assert found[1].step == 10
    assert len(said) == 1
    assert "falling back" in said[0]
    assert shard.name in said[0]
    shutil.rmtree(folder / "step_00000010")
    with pytest.raises(CheckpointError, match="none of the 1 checkpoints"):
        collection.newest_valid()


def test_a_save_over_a_damaged_checkpoint_replaces_it(saved: Path, tmp_path: Path) -> None:
    folder, newest = copy_of(saved, tmp_path)
    (newest / NAME).write_text("{}")
    manager_of(folder).save(tensors_of(20), manifest_of(20))
    assert verify(newest).step == 20


def test_format_1_is_read_and_a_newer_one_is_not(saved: Path, tmp_path: Path) -> None:
    _, newest = copy_of(saved, tmp_path)
    manifest = read_manifest(newest)
    manifest.format_version = 1
    lines = manifest.to_json().replace("\n", "").split('"hash"')
    (newest / NAME).write_text(lines[0].rstrip().rstrip(",") + "}")
    assert verify(newest).step == 20
    manifest.format_version = 3
    (newest / NAME).write_text(manifest.to_json())
    assert "upgrade llmtrain" in refuses(newest)


@pytest.mark.parametrize(
    ("retention", "kept"),
    [
        (Retention(keep_last=1, keep_best=0), [8]),
        (Retention(keep_last=2, keep_best=1), [3, 7, 8]),
        (Retention(keep_last=1, keep_best=2), [3, 6, 8]),
        (Retention(keep_last=1, keep_best=0, keep_every_steps=4), [4, 8]),
    ],
)
def test_what_is_kept(retention: Retention, kept: list[int], tmp_path: Path) -> None:
    manager = manager_of(tmp_path, retention)
    losses = {1: 5.0, 3: 1.0, 5: float("nan"), 6: 2.0, 7: 3.0}
    for step in range(1, 9):
        manager.save(tensors_of(step), manifest_of(step, losses.get(step)))
    assert [manifest.step for _, manifest in manager.collection.finished()] == kept
    assert (tmp_path / "latest").resolve().name == "step_00000008"
    best = {name.name: name.resolve().name for name in tmp_path.glob("best")}
    assert best.get("best", "step_00000003") == "step_00000003"
    assert not list(tmp_path.glob("*.tmp"))


def test_nothing_goes_before_the_new_one_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = manager_of(tmp_path, Retention(keep_last=1))
    manager.save(tensors_of(1), manifest_of(1))
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", broken)
        with pytest.raises(OSError, match="no more"):
            manager.save(tensors_of(2), manifest_of(2))
    assert [manifest.step for _, manifest in manager.collection.finished()] == [1]
    assert not list(tmp_path.glob("*.tmp"))
    manager.save(tensors_of(2), manifest_of(2))
    assert [manifest.step for _, manifest in manager.collection.finished()] == [2]


def broken(self: Path, target: Path) -> Path:
    raise OSError(5, "no more")


def test_damaged_checkpoints_that_call_themselves_newer_take_no_place(tmp_path: Path) -> None:
    manager = manager_of(tmp_path, Retention(keep_last=1, keep_best=1))
    for step, loss in ((10, 5.0), (20, None), (30, 1.0)):
        manager.save(tensors_of(step), manifest_of(step, loss))
    shard = next((tmp_path / "step_00000030").glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1])
    manager.save(tensors_of(25), manifest_of(25))
    assert verify(tmp_path / "step_00000025").step == 25
    assert manager.agree_on_newest() == tmp_path / "step_00000025"
    assert not (tmp_path / "step_00000030").exists()
    assert (tmp_path / "step_00000030.damaged").is_dir()
    manager.save(tensors_of(26), manifest_of(26))
    assert [manifest.step for _, manifest in manager.collection.finished()] == [26]


def test_a_save_of_a_step_that_is_there_forgets_nothing(tmp_path: Path) -> None:
    manager = manager_of(tmp_path)
    manager.save(tensors_of(10), manifest_of(10, 2.5))
    again = manifest_of(10)
    again.train_state["tokens"], again.sync = 99, {"name": "diloco", "replicas": 2}
    manager.save(tensors_of(10), again)
    kept = verify(tmp_path / "step_00000010")
    assert (kept.val_loss, kept.sync["name"], kept.train_state["tokens"]) == (2.5, "allreduce", 99)


def unreadable(path: Path, kind: str) -> str:
    raise OSError(5, "Input/output error", str(path))


def test_what_cannot_be_read_is_passed_over(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, newest = copy_of(saved, tmp_path)
    shard = newest / next(iter(read_manifest(newest).files))
    monkeypatch.setattr("llmtrain.checkpoint.manifest.hash_file", unreadable)
    with pytest.raises(CheckpointError, match="cannot be read"):
        verify(newest)
    monkeypatch.undo()
    shard.unlink()
    found = CheckpointCollection(folder, warn=lambda _: None).newest_valid()
    assert found is not None
    assert found[1].step == 10


def test_a_later_save_is_of_the_moment_it_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread waits until the tensors have changed: only a copy still has the old values."""
    import threading

    changed = threading.Event()
    now = CheckpointManager._save

    def late(self: CheckpointManager, *args: object) -> object:
        assert changed.wait(30)
        return now(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(CheckpointManager, "_save", late)
    manager = manager_of(tmp_path)
    tensors = tensors_of(10)
    manager.save_later(tensors, manifest_of(10))
    for tensor in tensors.values():
        tensor.zero_()
    changed.set()
    manager.wait()
    blank = {name: torch.ones_like(t) for name, t in tensors.items()}
    load_tensors(tmp_path / "step_00000010", blank)
    for name, expected in tensors_of(10).items():
        assert torch.equal(blank[name], expected), name


def test_a_later_save_that_fails_is_told(tmp_path: Path) -> None:
    (tmp_path / "in_the_way").write_text("")
    manager = manager_of(tmp_path / "in_the_way")
    manager.save_later(tensors_of(10), manifest_of(10))
    with pytest.raises(OSError, match="in_the_way"):
        manager.wait()
    manager.wait()
    assert not manager.failed()
