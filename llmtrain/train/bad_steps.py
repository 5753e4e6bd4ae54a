"""BadSteps: what becomes of a step whose gradient or loss is not finite, or whose loss is a spike.

    forward, backward, clip -> is the step good? -> optimizer
                                    | no
                                    +-> stop | skip | rollback | lower_lr   (train.on_bad_step)

Where the answer is only ever "stop", a GPU is asked a step later and idles for nothing
(`FiniteNorms`); else the numbers are read before the optimizer steps. Skipping spikes and going
back past them with other samples: PaLM (arXiv:2204.02311, section 5.1).
"""

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import torch
import torch.distributed as dist

from llmtrain.checkpoint.manifest import Manifest, step_of
from llmtrain.config.bad_steps import judges
from llmtrain.data.loader import Batch
from llmtrain.distributed.collectives import all_sum
from llmtrain.distributed.mesh import Team
from llmtrain.sync.interface import SyncStrategy
from llmtrain.train.audit import LOWERED, ROLLED_BACK, SKIPPED, STOPPED
from llmtrain.train.diagnosis import Diagnosis, diagnose, diagnose_late
from llmtrain.train.finite import ADVICE, FiniteNorms, NotFiniteError
from llmtrain.train.rollback import roll_back
from llmtrain.train.step import StepResult

if TYPE_CHECKING:
    from llmtrain.train.trainer import Parts

log = logging.getLogger(__name__)

MEAN_STEPS = 50
"""Steps over which the running mean of the loss reaches back."""

FEWEST_LOSSES = 20
"""Losses that the mean must have seen before anything is a spike beside it."""


@dataclass(frozen=True)
class Bad:
    """What is bad about a step, equal on all ranks of its team."""

    what: str
    """nan | inf | spike."""
    loss: float | None
    """Mean over the tokens, in nats; None: only all replicas together know it."""
    norm: float
    """Of the whole gradient, before clipping."""
    step: int
    """Steps done before."""


class BadSteps:
    """Judges every step before its update, and does what train.on_bad_step says."""

    def __init__(self, parts: "Parts[SyncStrategy]") -> None:
        """Set up for the run of `parts`."""
        self._p, self._train = parts, parts.run.train
        self._judges = judges(parts.run)
        self._norms = FiniteNorms()
        self._going_back: dict[str, Any] | None = None
        """The event after which the run is to go back."""
        self.mark: dict[str, str] = {}
        """What the line of metrics of the step just done is to say besides."""

    def passes(self, batches: Sequence[Batch], result: StepResult, norm: torch.Tensor) -> bool:
        """Return whether the update of a step is to be applied. Collective over its team.

        Args:
            batches: This rank's micro-batches of the step.
            result: What forward and backward gave.
            norm: Of the whole gradient, 0-D.

        Raises:
            FloatingPointError: when the run is to stop here.
        """
        self.mark = {}
        if not self._judges:
            try:
                self._norms.add(norm, self._p.state.step)
            except NotFiniteError as error:
                self._stop_late(error, batches, result)
            return True
        loss, whole_norm = self._agree(result, norm)
        bad = self._judge(loss, whole_norm)
        if bad is None:
            self._take_note(loss)
            return True
        if bad.loss is None:
            bad = Bad(bad.what, self._loss(result), bad.norm, bad.step)
        self._act(bad, batches)
        self.mark = {"bad_step": bad.what}
        return False

    def settle(self) -> None:
        """Look at what has not been looked at: to be called before weights are used or kept.

        Raises:
            FloatingPointError: when the run is to stop here.
        """
        try:
            self._norms.settle()
        except NotFiniteError as error:
            self._stop_late(error, None, None)

    def go_back(self) -> Manifest | None:
        """Go back to the last checkpoint if the step just done says so. Collective over the world.

        Returns:
            That checkpoint's manifest; None: training goes on.

        Raises:
            FloatingPointError: when there is no checkpoint yet.
        """
        event, self._going_back = self._going_back, None
        if event is None:
            return None
        p = self._p
        p.where.enter("rollback", p.state.step)
        folder = p.checkpoints.agree_on_newest()
        if folder is None:
            text = "there is no checkpoint to go back to yet"
            self._end(event, f"{text}: lower checkpoint.every_steps.", p.mesh.everyone)
        event["to_step"] = step_of(folder)
        self._record(event, ROLLED_BACK, p.mesh.everyone)
        manifest = roll_back(p, folder)
        self._say(event, f"back to step {p.state.step}, and on from sample {p.state.samples}")
        return manifest

    def _agree(self, result: StepResult, norm: torch.Tensor) -> tuple[float | None, float]:
        """Return the loss, where spikes are looked for, and the norm. Collective over the world."""
        loss = self._loss(result) if self._train.spike_factor is not None else None
        # Sums over different groups may differ in a bit, and all must decide the same.
        numbers = torch.tensor([0.0 if loss is None else loss, float(norm)], dtype=torch.float64)
        if dist.get_world_size() > 1:
            dist.broadcast(numbers, src=0)
        return None if loss is None else float(numbers[0]), float(numbers[1])

    def _loss(self, result: StepResult) -> float:
        """Return the mean loss of a step of all replicas. Collective over `token_group`."""
        own = result.loss_sum.detach().double().cpu().reshape(1)
        return float(all_sum(own, self._p.mesh.token_group)) / max(result.tokens, 1)

    def _judge(self, loss: float | None, norm: float) -> Bad | None:
        state, factor = self._p.state, self._train.spike_factor
        numbers = [norm] if loss is None else [norm, loss]
        if any(math.isnan(number) for number in numbers):
            return Bad("nan", loss, norm, state.step)
        if any(math.isinf(number) for number in numbers):
            return Bad("inf", loss, norm, state.step)
        if factor is None or loss is None or state.bad.losses < FEWEST_LOSSES:
            return None
        return Bad("spike", loss, norm, state.step) if loss > factor * state.bad.loss_mean else None

    def _take_note(self, loss: float | None) -> None:
        """Remember a good step."""
        bad = self._p.state.bad
        bad.in_row = 0
        if loss is not None:
            bad.losses += 1
            bad.loss_mean += (loss - bad.loss_mean) / min(bad.losses, MEAN_STEPS)

    def _act(self, bad: Bad, batches: Sequence[Batch]) -> None:
        """Do what is to be done about a bad step. Collective over the world."""
        p, state, policy = self._p, self._p.state.bad, self._train.on_bad_step
        p.where.enter("diagnose", p.state.step)
        everyone = p.mesh.everyone
        event = self._event(bad, self._diagnosis(bad, batches, everyone))
        limit = self._limit()
        if policy == "stop" or limit:
            self._end(event, limit, everyone)
        state.count += 1
        if policy == "rollback":
            state.rollbacks += 1
            self._going_back = event | {"rollbacks": state.rollbacks}
            return
        state.in_row += 1
        if policy == "lower_lr":
            state.lr_ratio *= self._train.bad_step_lr_ratio
        self._record(event, SKIPPED if policy == "skip" else LOWERED, everyone)
        lower = f", learning rate x {state.lr_ratio:g} from here on" if policy == "lower_lr" else ""
        self._say(event, f"its update is left out{lower}")

    def _diagnosis(self, bad: Bad, batches: Sequence[Batch] | None, team: Team) -> Diagnosis | None:
        """Return where the step went bad; None: a spike is everywhere. Collective over `team`."""
        module = self._p.model.module
        if bad.what == "spike":
            return None
        if batches is None:
            return diagnose_late(module, team)
        return diagnose(module, self._p.step, batches, team, compiled=self._train.compile)

    def _limit(self) -> str:
        """Return which bound one more bad step breaks; empty: none."""
        train, state = self._train, self._p.state
        if train.on_bad_step == "rollback":
            if state.bad.rollbacks >= train.max_rollbacks:
                return (
                    f"The run has been rolled back train.max_rollbacks={train.max_rollbacks} times."
                )
            return ""
        if train.on_bad_step == "stop":
            return ""
        if state.step == state.bad.in_row:
            return "No step of this run has been good yet, so there is nothing to go on from."
        if state.bad.in_row >= train.max_bad_steps_in_row:
            return f"So were the train.max_bad_steps_in_row={train.max_bad_steps_in_row} before it."
        if state.bad.count >= train.max_bad_steps:
            return f"The run has had train.max_bad_steps={train.max_bad_steps} such steps before."
        return ""

    def _stop_late(
        self, error: NotFiniteError, batches: Sequence[Batch] | None, result: StepResult | None
    ) -> NoReturn:
        """Stop at a norm that was not finite; on a GPU its update has been applied by now.

        Collective over the team of the step. Without one decision of all: replicas that train
        apart meet their own bad steps.
        """
        p = self._p
        together = p.sync.together(error.step)
        team = p.mesh.team(together=together)
        is_late = error.step != p.state.step
        loss = self._loss(result) if result is not None and together and not is_late else None
        bad = Bad("nan" if math.isnan(error.norm) else "inf", loss, error.norm, error.step)
        found = self._diagnosis(bad, None if is_late else batches, team)
        self._end(self._event(bad, found), "", team)

    def _event(self, bad: Bad, found: Diagnosis | None) -> dict[str, Any]:
        """Return the event of a bad step, without what was done about it."""
        p, rows = self._p, self._p.plan.global_batch_size
        first = p.state.samples - (p.state.step - bad.step) * rows
        event = {
            "step": bad.step + 1,
            "what": bad.what,
            "loss": bad.loss,
            "grad_norm": bad.norm,
            "loss_mean": p.state.bad.loss_mean if self._train.spike_factor is not None else None,
            "lr": p.optimizers[0].param_groups[0]["lr"],
            "samples": [first, first + rows],
            "policy": self._train.on_bad_step,
        }
        if found is not None:
            event |= {"layer": found.layer, "where": found.kind, "rank": found.rank,
                      "text": found.text}  # fmt: skip
        return event

    def _record(self, event: dict[str, Any], action: str, team: Team) -> None:
        """Write `event` into the audit log, on one rank of `team`."""
        if dist.get_rank(team.group) == 0:
            bad, p = self._p.state.bad, self._p
            after = {"action": action, "lr_ratio": bad.lr_ratio, "time": time.time()}
            p.audit.add({**event, **after})

    def _end(self, event: dict[str, Any], limit: str, team: Team) -> NoReturn:
        """Write the event and stop, equally on all ranks of `team`.

        Raises:
            FloatingPointError: what happened, where, and what may help.
        """
        self._record(event, STOPPED, team)
        found, run_dir = event.get("text", ""), self._p.audit.path.parent.parent
        see = f"llmtrain replay run={run_dir} step={event['step']} shows every layer."
        words = [self._told(event), found, limit, ADVICE, see]
        raise FloatingPointError(" ".join(word for word in words if word))

    def _told(self, event: dict[str, Any]) -> str:
        if event["what"] == "spike":
            return (
                f"the loss of step {event['step']} is {event['loss']:.4g}, more than "
                f"train.spike_factor={self._train.spike_factor:g} times its running mean "
                f"{event['loss_mean']:.4g}: nothing of it has reached a checkpoint."
            )
        if math.isfinite(event["grad_norm"]):
            return (
                f"the loss of step {event['step']} is {event['loss']}: nothing of it has reached a "
                "checkpoint."
            )
        return NotFiniteError.tell(event["grad_norm"], event["step"] - 1)

    def _say(self, event: dict[str, Any], done: str) -> None:
        """Tell the log and the person what was done."""
        text = f"bad step: {self._told(event).partition(':')[0]}; {done}."
        found = event.get("text", "")
        log.warning("%s %s", text, found)
        self._p.progress.say(f"{text} {found}".rstrip(), logged=False)
