"""Many processes and sudden deaths: what is prepared does not show them."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from llmtrain.config.schema import PrepareConfig
from llmtrain.config.store import from_dict
from llmtrain.data import part, source_jsonl
from llmtrain.data.prepare import prepare
from tests.unit.data.duplicates import make_corpus

PART_BYTES = 20_000
"""Small, so that there are many units of work."""

WORKER = (sys.executable, "-m", "llmtrain.worker")

STAGES = ("list", "read", "choose", "tokenizer", "encode", "shard", "finish")


def request(folder: Path, cache: str, **data: Any) -> dict[str, Any]:
    """Return the request for the rows in `folder`, as `llmtrain prepare` makes it."""
    source = {
        "name": "jsonl",
        "path": str(folder / "rows.jsonl"),
        "cache_dir": str(folder / cache),
        "dedup": "near",
        "shard_tokens": 10_000,
    }
    return {"data": source | data, "tokenizer": {"name": "bpe", "vocab_size": 600}}


def start(asked: dict[str, Any]) -> subprocess.Popen[str]:
    """Start to prepare, as leader of a group of processes."""
    command = [sys.executable, "-m", "tests.support.preparer", json.dumps(asked), str(PART_BYTES)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)


def finish(process: subprocess.Popen[str]) -> Path:
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    return Path(out.strip())


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a corpus full of duplicates, English and Chinese."""
    folder = tmp_path_factory.mktemp("rows")
    texts = [made.text for made in make_corpus(seed=3, originals=150)]
    lines = (json.dumps({"text": text}, ensure_ascii=False) for text in texts)
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def alone(rows: Path) -> Path:
    """What one process makes of it."""
    return finish(start(request(rows, "alone", processes=1)))


@pytest.mark.integration
@pytest.mark.parametrize("processes", [2, 4])
def test_any_number_of_processes_makes_the_same(rows: Path, alone: Path, processes: int) -> None:
    folder = finish(start(request(rows, f"with_{processes}", processes=processes)))
    assert len(list(folder.glob("train-*.bin"))) > 3
    assert contents(folder) == contents(alone)
    assert not folder.with_name(folder.name + ".work").exists()


@pytest.mark.integration
def test_pairs_are_the_same_too(rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = {"prompt": "Q: {text}\\nA:", "target": " {text}", "dedup": "exact", "processes": 3}
    asked = request(rows, "pairs_3", **pair) | {"tokenizer": {"name": "byte"}}
    together = contents(finish(start(asked)))
    asked["data"]["cache_dir"] = str(rows / "pairs_1")
    config = from_dict(PrepareConfig, asked, "test")
    for module in (part, source_jsonl):
        monkeypatch.setattr(module, "PART_BYTES", PART_BYTES)
    assert contents(prepare(config.data, config.tokenizer)) == together
    assert sum(name.endswith(".tgt") for name in together) > 3


@pytest.mark.integration
@pytest.mark.chaos
@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 8))]
)
def test_killed_at_any_moment_it_goes_on(rows: Path, alone: Path, seed: int) -> None:
    """The moment is that at which so many units are done; over all seeds every stage is hit."""
    rng = random.Random(seed)
    most = 40 if seed == 0 else 12
    asked = request(rows, f"killed_{seed}", processes=2)
    work = rows / f"killed_{seed}" / f"{alone.name}.work"
    done = kills = 0
    while True:
        process = start(asked)
        wanted = done + rng.randrange(1, most)
        while process.poll() is None and (done := count(work)) < wanted:
            time.sleep(0.001)
        if process.poll() is not None:
            break
        time.sleep(rng.random() * 0.02)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        kills += 1
        folder = work.with_name(alone.name)
        assert count(work) >= done or folder.exists()  # what is done stays done
        done = count(work)
    assert kills >= 60 // most
    folder = finish(process)
    assert contents(folder) == contents(alone)
    assert [path for path in folder.parent.iterdir() if path.is_dir()] == [folder]


def count(work: Path) -> int:
    """Return how many units are done."""
    return sum(path.name.isdigit() for stage in STAGES for path in (work / stage).glob("*"))


@pytest.mark.integration
@pytest.mark.chaos
def test_others_take_over_from_one_that_dies(rows: Path, alone: Path) -> None:
    """Three starts at once share the work; two of them are killed."""
    asked = request(rows, "shared", processes=1)
    processes = [start(asked) for _ in range(3)]
    work = rows / "shared" / f"{alone.name}.work"
    for victim, wanted in zip(processes[:2], (3, 8), strict=True):
        while count(work) < wanted:
            assert processes[2].poll() is None
            time.sleep(0.001)
        os.killpg(victim.pid, signal.SIGKILL)
        victim.communicate()
    assert contents(finish(processes[2])) == contents(alone)


@pytest.mark.integration
def test_a_torn_record_is_made_again(rows: Path, alone: Path) -> None:
    """After a power cut, files may hold less than what was written to them."""
    asked = request(rows, "torn", processes=1)
    work = rows / "torn" / f"{alone.name}.work"
    process = start(asked)
    while not (work / "encode").is_dir():
        assert process.poll() is None
        time.sleep(0.001)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    torn = sorted((work / "read").iterdir())
    for path in torn[::2]:
        raw = path.read_bytes()
        path.write_bytes(raw[: len(raw) // 2] + bytes(len(raw) - len(raw) // 2))
    torn[1].write_bytes(b"")
    (work / "read" / "leftover.tmp-1").write_bytes(b"x")
    assert contents(finish(start(asked))) == contents(alone)


@pytest.mark.integration
def test_a_helper_s_refusal_is_one_message_and_leaves_nothing(tmp_path: Path) -> None:
    lines = [json.dumps({"text": f"text {number} " * 20}) for number in range(2000)]
    lines[1777] = "{"
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    asked = request(tmp_path, "cache", processes=3, errors="strict")
    ended = subprocess.run(
        [
            sys.executable,
            "-m",
            "llmtrain.worker",
            "--task",
            "prepare",
            "--request",
            json.dumps(asked),
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 2
    assert ended.stderr.count("rows.jsonl:1778") == 1
    assert not [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]
    shutil.rmtree(tmp_path / "cache")


def _may_mount() -> bool:
    found = shutil.which("unshare")
    return bool(found) and subprocess.run([*PRIVATE, "true"], capture_output=True).returncode == 0


PRIVATE = ("unshare", "--user", "--map-root-user", "--mount")
"""Runs a command that may mount what nobody else sees."""


@pytest.mark.integration
@pytest.mark.chaos
@pytest.mark.skipif(not _may_mount(), reason="needs a mount namespace: unshare --user --mount")
@pytest.mark.parametrize("size", ["300k", pytest.param("900k", marks=pytest.mark.slow)])
def test_a_full_disk_is_one_message_and_room_lets_it_go_on(
    rows: Path, alone: Path, tmp_path: Path, size: str
) -> None:
    cache, out = tmp_path / "cache", tmp_path / "out"
    cache.mkdir()
    asked = request(rows, "unused", processes=2)
    asked["data"]["cache_dir"] = str(cache)
    (tmp_path / "request.json").write_text(json.dumps(asked))
    asked_for = f'"$(cat {tmp_path}/request.json)"'
    prepare = f"{sys.executable} -m tests.support.preparer {asked_for} {PART_BYTES}"
    script = f"""
        mount -t tmpfs -o size={size} tmpfs {cache} || exit 9
        {prepare} > /dev/null && exit 8
        ls {cache} > {tmp_path}/after_the_first
        mount -o remount,size=100m {cache} || exit 7
        cp -r "$({prepare})" {out}
    """
    ended = subprocess.run(
        [*PRIVATE, "sh", "-c", script], capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 0, ended.stderr
    assert "No space left on device. Free some space" in ended.stderr
    assert f"{alone.name}.work" in (tmp_path / "after_the_first").read_text()
    assert contents(out) == contents(alone)


NODE = """
import json, sys, torch
from torch.distributed import FileStore, PrefixStore
from tests.support.runs import compose_run
from llmtrain.console import make_console
from llmtrain.distributed.env import RankInfo
from llmtrain.tasks.train import prepare_once

store = FileStore(sys.argv[2], 2)
info = RankInfo(
    rank=int(sys.argv[1]), local_rank=0, world_size=2, device=torch.device("cpu")
)
for number, words in enumerate(json.loads(sys.argv[3])):
    try:
        own = PrefixStore(str(number), store)
        print(prepare_once(compose_run(*words), info, own, make_console(stderr=True)))
    except Exception as error:
        print(type(error).__name__)
"""


@pytest.mark.integration
@pytest.mark.slow
def test_another_node_helps(rows: Path, tmp_path: Path) -> None:
    """Two nodes that share a file system, each a process here; and what both hear of a refusal."""
    shared = ["data=jsonl", f"data.path={rows / 'rows.jsonl'}", f"data.cache_dir={tmp_path}"]
    shared += ["data.processes=1", "data.dedup=near"]
    runs = json.dumps([shared, [*shared, "data.clean.min_words=99999"]])
    nodes = [
        subprocess.Popen(
            [sys.executable, "-c", NODE, str(rank), str(tmp_path / "store"), runs],
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    first, second = (node.communicate(timeout=120)[0].split() for node in nodes)
    assert (Path(first[0]) / "manifest.json").is_file()
    assert first == [first[0], "DataError"]
    assert second == [first[0], "RefusedElsewhereError"]
