"""Traces of chosen steps: one Chrome trace a rank, by torch.profiler, and what they add up to."""

import contextlib
import json
import os
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile, record_function

from llmtrain.config.groups.metrics import MetricsConfig
from llmtrain.config.plan import Plan
from llmtrain.distributed.env import RankInfo
from llmtrain.train.drawing import draw
from llmtrain.train.timeline import STEP, Bubble, StepTimeline, measured_bubble, read_trace

PARTS = ("compute_s", "communication_s", "idle_s")
"""What a step's time is made of."""


class Tracer:
    """Traces the steps that `metrics.trace_after_steps` and `trace_steps` choose."""

    def __init__(
        self,
        config: MetricsConfig,
        plan: Plan,
        info: RankInfo,
        folder: Path,
        *,
        schedule: str,
        ideal_bubble: float | None,
        say: Callable[[str], None],
    ) -> None:
        """Set up the tracer.

        Args:
            config: The group `metrics`.
            plan: The plan; its axes say which ranks make a pipeline.
            info: This process.
            folder: RUN_DIR/profile.
            schedule: strategy.schedule.
            ideal_bubble: What it leaves idle by theory, 0-1; None: no pipeline.
            say: Tells the person at the terminal.
        """
        self._first = config.trace_after_steps
        self._count = config.trace_steps
        self._plan, self._info, self._folder = plan, info, folder
        self._schedule, self._ideal, self._say = schedule, ideal_bubble, say
        self._done = 0
        self._profile: profile | None = None

    @property
    def steps_needed(self) -> int:
        """Steps from the start to the end of the last one traced."""
        return self._first + self._count

    @contextlib.contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Do the step `number` inside. Collective over the world after the last traced one."""
        if self._done == self._first:
            activities = [ProfilerActivity.CPU]
            if self._info.device.type == "cuda":
                activities.append(ProfilerActivity.CUDA)
            # Kineto tells stderr when it starts and stops; it asks for the level when first used.
            os.environ.setdefault("KINETO_LOG_LEVEL", "99")
            self._profile = profile(activities=activities)
            self._profile.start()
        with record_function(f"{STEP}{number}"):
            yield
            if self._profile is not None and self._info.device.type == "cuda":
                torch.cuda.synchronize(self._info.device)
        self._done += 1
        if self._done == self.steps_needed:
            self._finish()

    def _finish(self) -> None:
        """Write this rank's trace; on rank 0, what all of them say. Collective over the world."""
        assert self._profile is not None
        self._profile.stop()
        self._folder.mkdir(parents=True, exist_ok=True)
        self._profile.export_chrome_trace(str(self._trace(self._info.rank)))
        self._profile = None
        dist.barrier()
        if self._info.is_main:
            ranks = range(self._plan.world_size)
            self._summarise([step for rank in ranks for step in read_trace(self._trace(rank))])

    def _trace(self, rank: int) -> Path:
        return self._folder / f"rank_{rank}.json.gz"

    def _summarise(self, steps: Sequence[StepTimeline]) -> None:
        """Write timeline.json, and draw the last step as timeline.svg."""
        last = max(step.step for step in steps)
        bubble = self._bubble(steps)
        summary = {
            "ranks": [{"rank": s.rank, "step": s.step, **s.seconds()} for s in steps],
            "schedule": self._schedule if bubble else None,
            "bubble": bubble.waiting if bubble else None,
            "ideal_bubble": self._ideal,
            "imbalance": bubble.imbalance if bubble else None,
        }
        (self._folder / "timeline.json").write_text(json.dumps(summary, indent=1) + "\n")
        verdict = ""
        if bubble:
            verdict = (
                f", {self._schedule}: bubble {bubble.waiting:.1%}, in theory {self._ideal:.1%}, "
                f"and {bubble.imbalance:.1%} for stages of uneven time"
            )
        shown = [step for step in steps if step.step == last]
        (self._folder / "timeline.svg").write_text(draw(shown, f"step {last}{verdict}"))
        whole = [sum(step.seconds()[part] for step in steps) for part in PARTS]
        parts = ", ".join(
            f"{part.removesuffix('_s')} {seconds / sum(whole):.1%}"
            for part, seconds in zip(PARTS, whole, strict=True)
        )
        self._say(f"traced into {self._folder}: {parts}{verdict}")

    def _bubble(self, steps: Sequence[StepTimeline]) -> Bubble | None:
        """Return the medians over traced steps and pipelines; None without a pipeline."""
        if self._ideal is None:
            return None
        # pp is the outermost axis: every n-th rank belongs to the same pipeline.
        n = self._plan.world_size // self._plan.pp
        bubbles = [
            measured_bubble([s for s in steps if s.step == number and s.rank % n == pipeline])
            for number in {step.step for step in steps}
            for pipeline in range(n)
        ]
        return Bubble(
            statistics.median(bubble.waiting for bubble in bubbles),
            statistics.median(bubble.imbalance for bubble in bubbles),
        )
