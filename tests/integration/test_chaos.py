"""A hundred deaths at random moments, and a run that is moved from layout to layout."""

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from safetensors import safe_open

from llmtrain.checkpoint.collection import CheckpointCollection
from llmtrain.errors import CheckpointError
from tests.support.processes import workers
from tests.support.runs import (
    SYNTHETIC,
    TINY,
    environment,
    metric_lines,
    train_command,
    train_to_end,
    validation_losses,
)
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.integration, pytest.mark.chaos, pytest.mark.slow]

LINUX = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="finds workers through /proc"
)

STEPS = 500
OVERRIDES = (
    *TINY, *SYNTHETIC, f"train.steps={STEPS}", "checkpoint.every_steps=17",
    "train.eval_every_steps=40", "train.precision=fp32", "model.dropout=0.1",
)  # fmt: skip

LAYOUTS = {
    "two, zero3, async": (
        "strategy=data", "strategy.zero=3", "launcher.nproc_per_node=2",
        "checkpoint.async_save=true",
    ),
    "two, pipeline": ("strategy=pipeline", "launcher.nproc_per_node=2", "train.micro_batch_size=2"),
    "two, diloco": (
        "strategy=data", "sync=diloco", "sync.sync_every_steps=9", "launcher.nproc_per_node=2",
        "checkpoint.async_save=true",
    ),
    "four, hybrid": (
        "strategy=hybrid", "strategy.tp=2", "strategy.zero=3", "strategy.dp_shard=2",
        "launcher.nproc_per_node=4",
    ),
}  # fmt: skip
KILLS = 25
"""Of each layout: a hundred in all."""

KILLS_A_RUN = 6
"""A run that was killed so often is left to end, and the next one begins."""

DEADLINE_S = 180.0


@dataclass
class Deaths:
    """Runs of one layout, each killed again and again."""

    folder: Path
    layout: tuple[str, ...]
    rng: random.Random
    lasts_s: float
    """How long a start takes that nobody kills."""
    kills: int = 0
    steps: list[int] = field(default_factory=list)
    """The last logged step at each kill; 0: none yet."""

    def one_run(self, number: int) -> Path:
        """Kill a run up to `KILLS_A_RUN` times, then let it end; return its folder."""
        run_dir = self.folder / f"run_{number}"
        # Prepared anew by the first start, so that deaths while preparing are among them.
        env = environment(LLMTRAIN_CACHE=str(self.folder / f"cache_{number}"))
        for _ in range(KILLS_A_RUN):
            newest = newest_step(run_dir)
            if self.kills == KILLS or not self.one_kill(run_dir, env):
                break
            assert newest_step(run_dir) >= newest, "a whole checkpoint is gone"
        done = subprocess.run(
            train_command(run_dir, OVERRIDES, self.layout), env=env, capture_output=True,
            text=True, timeout=DEADLINE_S, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return run_dir

    def one_kill(self, run_dir: Path, env: dict[str, str]) -> bool:
        """Start the run and kill it at a random moment; return False where it ended before."""
        launcher = subprocess.Popen(
            train_command(run_dir, OVERRIDES, self.layout), env=env, stderr=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        # Before the run's end, as a kill after it is none; starting is up to half of what it takes.
        left = 1 - newest_step(run_dir) / STEPS
        moment = time.monotonic() + self.rng.uniform(0.3, (1 + left) / 2 * self.lasts_s)
        victim = self.rng.choice(("launcher", "rank", "all"))
        while time.monotonic() < moment:
            if launcher.poll() is not None:
                assert launcher.returncode == 0, launcher.communicate()[1]
                return False
            time.sleep(0.01)
        ranks = workers(run_dir)
        victims = {
            "launcher": [launcher.pid],
            "rank": [self.rng.choice(ranks)] if ranks else [launcher.pid],
            "all": [launcher.pid, *ranks],
        }[victim]
        for pid in victims:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        launcher.communicate(timeout=DEADLINE_S)
        wait_until(lambda: not workers(run_dir), "the workers to end", deadline_s=10.0)
        self.kills += 1
        self.steps.append(last_step(run_dir))
        return True


def newest_step(run_dir: Path) -> int:
    """Return the step of the newest whole checkpoint; 0: none."""
    try:
        found = CheckpointCollection(run_dir / "checkpoints", warn=lambda _: None).newest_valid()
    except CheckpointError:
        return 0
    return found[1].step if found else 0


def last_step(run_dir: Path) -> int:
    try:
        return max((line["step"] for line in metric_lines(run_dir)), default=0)
    except (OSError, ValueError):
        return 0


def told(run_dir: Path) -> list[list[object]]:
    """Return what of metrics.jsonl is a result and not a measurement."""
    keys = ("step", "loss", "grad_norm", "lr", "tokens")
    return [[line[key] for key in keys] for line in metric_lines(run_dir)]


def final_weights(run_dir: Path, step: int = STEPS) -> dict[str, bytes]:
    """Return every tensor of the last checkpoint by file and name."""
    tensors = {}
    folder = run_dir / "checkpoints" / f"step_{step:08d}"
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118
                tensors[f"{path.name}:{name}"] = file.get_tensor(name).tobytes()
    return tensors


@LINUX
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_hundred_deaths_change_nothing(layout: str, tmp_path: Path) -> None:
    words = LAYOUTS[layout]
    started = time.monotonic()
    straight = train_to_end(tmp_path / "straight", OVERRIDES, words, DEADLINE_S)
    lasts_s = time.monotonic() - started
    deaths = Deaths(tmp_path, words, random.Random(layout), lasts_s)
    expected, weights = told(straight), final_weights(straight)
    assert [line[0] for line in expected] == list(range(1, STEPS + 1))
    for number in itertools.count():
        if deaths.kills == KILLS:
            break
        run_dir = deaths.one_run(number)
        assert told(run_dir) == expected
        assert validation_losses(run_dir) == validation_losses(straight)
        assert final_weights(run_dir) == weights
    # Deaths while it was training, and before.
    assert sum(step > 0 for step in deaths.steps) > KILLS // 4
    assert len(set(deaths.steps)) > KILLS // 4


MOVES = (
    ("strategy=data", "strategy.zero=3", "launcher.nproc_per_node=4"),
    ("strategy=model", "launcher.nproc_per_node=2"),
    ("strategy=single",),
    ("strategy=hybrid", "strategy.tp=1", "strategy.pp=2", "strategy.dp_replicate=2",
     "launcher.nproc_per_node=4", "train.micro_batch_size=2"),
)  # fmt: skip
"""4 -> 2 -> 1 -> 4 processes, by another strategy each time."""

MOVED_RTOL = 1e-9
"""fp64 sums in another order, over forty steps; what we promise."""


@LINUX
@pytest.mark.timeout(900)
def test_a_run_moves_from_layout_to_layout(tmp_path: Path) -> None:
    base = (
        *OVERRIDES, "train.precision=fp64", "scheduler=constant", "scheduler.warmup_steps=3",
        "train.eval_every_steps=10",
    )  # fmt: skip
    straight = train_to_end(tmp_path / "straight", base, ("train.steps=40",), DEADLINE_S)
    moved = tmp_path / "moved"
    for steps, move in zip((10, 20, 30, 40), MOVES, strict=True):
        train_to_end(moved, base, (f"train.steps={steps}", *move), DEADLINE_S)
    lines, expected = told(moved), told(straight)
    assert [line[0] for line in lines] == list(range(1, 41))
    for line, other in zip(lines, expected, strict=True):
        assert line == pytest.approx(other, rel=MOVED_RTOL)
    for moved_loss, loss in zip(validation_losses(moved), validation_losses(straight), strict=True):
        assert moved_loss == pytest.approx(loss, rel=MOVED_RTOL)
    assert samples(moved) == samples(straight)


def samples(run_dir: Path) -> object:
    """Return the sample ids of every step, as `prepare --samples` says them."""
    done = subprocess.run(
        [sys.executable, "-m", "llmtrain", "prepare", "--samples", f"run={run_dir}",
         "step=1..40", "--json"],
        env=environment(), capture_output=True, text=True, timeout=DEADLINE_S, check=True,
    )  # fmt: skip
    return json.loads(done.stdout)["steps"]
