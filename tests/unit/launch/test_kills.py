"""The kernel's counters of out-of-memory kills, as files of both versions of cgroups."""

from pathlib import Path

import pytest

from llmtrain.launch.kills import Kills


def tree(root: Path, **files: str) -> Path:
    """Write `files`, whose names have __ for /."""
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


V2 = "low 0\nhigh 0\nmax 17\noom 1\noom_kill {}\noom_group_kill 0\n"
V1 = "oom_kill_disable 0\nunder_oom 0\noom_kill {}\n"


def v2(root: Path, kills: int) -> Path:
    tree(root, proc__self__cgroup="0::/user/job\n", proc__vmstat="pgfault 3\noom_kill 8\n")
    events = root / "sys/fs/cgroup/user/job/memory.events"
    events.parent.mkdir(parents=True, exist_ok=True)
    events.write_text(V2.format(kills))
    events.with_name("memory.max").write_text("8589934592\n")
    return root


def test_version_2(tmp_path: Path) -> None:
    assert Kills.now(v2(tmp_path, 3)) == Kills(own=3, machine=8, limit_bytes=8 << 30)


def test_version_1_without_a_limit(tmp_path: Path) -> None:
    tree(tmp_path, proc__self__cgroup="9:pids:/\n4:cpu,memory:/job\n0::/\n")
    tree(tmp_path, sys__fs__cgroup__memory__job__x="")
    folder = tmp_path / "sys/fs/cgroup/memory/job"
    (folder / "memory.oom_control").write_text(V1.format(2))
    (folder / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert Kills.now(tmp_path) == Kills(own=2, machine=None, limit_bytes=None)


def test_a_container_whose_path_is_the_hosts(tmp_path: Path) -> None:
    tree(tmp_path, proc__self__cgroup="0::/docker/4f2a\n", proc__vmstat="oom_kill 0\n")
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/memory.events").write_text(V2.format(5))
    (tmp_path / "sys/fs/cgroup/memory.max").write_text("max\n")
    assert Kills.now(tmp_path) == Kills(own=5, machine=0, limit_bytes=None)


def test_where_there_is_nothing_to_read(tmp_path: Path) -> None:
    assert Kills.now(tmp_path) == Kills(None, None)


@pytest.mark.parametrize(
    ("since", "said", "not_said"),
    [
        (Kills(1, 1, 8 << 30), "group, which may use 8 GiB, since the start", "guess"),
        (Kills(0, 2), "most probably this one", "guess"),
        (Kills(0, 0), "counts no out-of-memory kill", "Lower"),
        (Kills(None, None), "A guess", "counts no"),
        (Kills(None, 0), "counts no out-of-memory kill", "Lower"),
    ],
)  # fmt: skip
def test_what_is_said(since: Kills, said: str, not_said: str) -> None:
    assert said in since.verdict() and not_said not in since.verdict()


def test_only_what_has_come_since_counts(tmp_path: Path) -> None:
    before = Kills.now(v2(tmp_path, 3))
    assert "counts no" in Kills.now(v2(tmp_path, 3)).since(before).verdict()
    assert "ended it: 1 of" in Kills.now(v2(tmp_path, 4)).since(before).verdict()


def test_this_machine_counts_or_says_nothing() -> None:
    since = Kills.now().since(Kills.now())
    assert since.own in (0, None) and since.machine in (0, None)
