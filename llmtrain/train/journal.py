"""Journal: the numbers of a run whose replicas push when they like, for those who are told."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from llmtrain.config.plan import Plan
from llmtrain.sync.server.messages import Push
from llmtrain.train.metrics import MetricsWriter
from llmtrain.train.peak import Peak
from llmtrain.train.progress import TrainProgress


@dataclass(frozen=True)
class Report:
    """What a replica says of the steps that it pushes."""

    loss_sum: float
    """Loss summed over their counted tokens, in nats."""
    grad_norm: float
    """Norm of the last step's gradient before clipping."""
    tokens: int
    """Counted tokens of the steps."""
    steps: int
    comm_bytes: int
    """Bytes that went to the server and back since the push before, of the replica's first
    process."""
    data_s: float
    """Seconds in which it waited for data."""
    wait_s: float
    """Seconds in which it waited for the server."""
    memory_bytes: int


class Journal:
    """Adds up what is pushed, and tells a line of metrics every few steps' worth of tokens."""

    def __init__(
        self,
        plan: Plan,
        *,
        every_steps: int,
        writers: Sequence[MetricsWriter],
        progress: TrainProgress,
        peak: Peak,
    ) -> None:
        """Begin.

        Args:
            plan: Complete with what the data told.
            every_steps: Steps between two lines.
            writers: Who is told.
            progress: Whom a person watches.
            peak: Of one device.
        """
        self._plan, self._every = plan, every_steps
        self._writers, self._progress, self._peak = writers, progress, peak
        self._reports: list[tuple[Report, int]] = []
        self._logged = 0
        """Step of the last line."""
        self._step, self._tokens = 0, 0
        """Where training stood when its time began to count."""
        self._since = time.perf_counter()
        self.train_loss: float | None = None

    def begin(self, step: int, tokens: int) -> None:
        """Take training to stand at `step`; seconds before now are not training."""
        self._logged = min(self._logged, step) if self._reports else step
        self._step, self._tokens, self._since = step, tokens, time.perf_counter()

    def state(self) -> dict[str, Any]:
        """Return what a run that goes on from here has yet to tell, as JSON can say it."""
        reports = [[asdict(report), behind] for report, behind in self._reports]
        return {"logged": self._logged, "reports": reports}

    def load(self, state: dict[str, Any]) -> None:
        """Take back what `state` gave; `begin` comes after it."""
        self._logged = state["logged"]
        self._reports = [(Report(**report), behind) for report, behind in state["reports"]]

    def pause(self, seconds: float) -> None:
        """Take note of seconds in which nobody trained."""
        self._since += seconds

    def add(self, push: Push, report: Report, *, behind: int) -> None:
        """Take down a push that counts, `behind` versions of the weights late."""
        self._reports.append((report, behind))

    def look(
        self, step: int, tokens: int, lr: float, replicas: int, virtual_s: float | None = None
    ) -> None:
        """Tell a line if one is due.

        Args:
            step: Steps' worth of tokens that are in the weights.
            tokens: Tokens that are in the weights.
            lr: Learning rate of the run's optimizer now.
            replicas: How many live.
            virtual_s: Seconds on the virtual clock of a simulation.
        """
        self._progress.step(step)
        due = step // self._every > self._logged // self._every or step == self._plan.steps
        if not due or step == self._step or not self._reports:
            return
        line = self._line(step, tokens, lr, replicas)
        if virtual_s is not None:
            line["virtual_s"] = virtual_s
        self.train_loss = line["loss"]
        self.write(line)
        self._progress.numbers(line)
        self._reports = []
        self.begin(step, tokens)

    def write(self, line: dict[str, Any]) -> None:
        """Tell `line` to everyone."""
        for writer in self._writers:
            writer.write(line)

    def say(self, text: str) -> None:
        """Tell a person."""
        self._progress.say(text)

    def close(self) -> None:
        """Let go of everyone."""
        for writer in self._writers:
            writer.close()
        self._progress.close()

    def _line(self, step: int, tokens: int, lr: float, replicas: int) -> dict[str, Any]:
        reports = [report for report, _ in self._reports]
        behind = [late for _, late in self._reports]
        elapsed = max(time.perf_counter() - self._since, 1e-9)
        counted = sum(report.tokens for report in reports)
        local_steps = sum(report.steps for report in reports)
        tokens_per_s = (tokens - self._tokens) / elapsed
        device_tokens_per_s = tokens_per_s / self._plan.world_size
        flops = device_tokens_per_s * (self._plan.flops_per_token or 0.0)
        return {
            "step": step,
            "loss": sum(report.loss_sum for report in reports) / max(counted, 1),
            "grad_norm": sum(report.grad_norm for report in reports) / len(reports),
            "lr": lr,
            "tokens": tokens,
            "tokens_per_s": tokens_per_s,
            "tokens_per_s_per_device": device_tokens_per_s,
            "mfu": self._peak.utilisation(flops),
            "step_time_s": elapsed / (step - self._step),
            "data_time_s": sum(report.data_s for report in reports) / local_steps,
            "sync_time_s": sum(report.wait_s for report in reports) / local_steps,
            "comm_bytes": sum(report.comm_bytes for report in reports) / local_steps,
            "memory_bytes": max(report.memory_bytes for report in reports),
            "staleness_mean": sum(behind) / len(behind),
            "staleness_max": max(behind),
            "replicas": replicas,
            "time": time.time(),
        }
