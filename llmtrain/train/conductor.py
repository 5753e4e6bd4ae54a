"""Conductor: what the server of a run decides, from the first hello to the last goodbye.

    hello of all replicas -> the first gives the weights -> pushes and answers ... rest ... -> stop

How pushes move the weights is `sync.server`'s; here stands *when* replicas rest to evaluate and to
save, when training is over, and who is told how it goes. No thread and no line: `Hub` calls it.
"""

import dataclasses
import logging
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from llmtrain.config.plan import Plan
from llmtrain.config.schema import RunConfig
from llmtrain.sync.server.core import ServerCore
from llmtrain.sync.server.messages import (
    Bye,
    Checkpoint,
    Hello,
    Message,
    Push,
    Rejected,
    Replies,
    Save,
    Saved,
    Stop,
    Weights,
)
from llmtrain.sync.server.opening import open_core
from llmtrain.sync.server.packing import WEIGHTS, pack, under
from llmtrain.sync.server.tensors import Tensors
from llmtrain.sync.transport.frame import Frame
from llmtrain.sync.transport.hub import Answers
from llmtrain.train.journal import Journal, Report
from llmtrain.train.push_log import PushLog
from llmtrain.train.rest import Rest
from llmtrain.train.state import TrainState
from llmtrain.train.token_clock import TokenClock

log = logging.getLogger(__name__)


class Opening(Protocol):
    """Builds what needs to know the weights, the plan and where training stands."""

    def __call__(self, weights: Tensors, plan: Plan, state: TrainState) -> "Stage":
        """Return the server and those who are told about it."""


@dataclasses.dataclass
class Stage:
    """What is there once the first replica has given the weights."""

    core: ServerCore
    lr: Callable[[int], float]
    """From tokens to the learning rate of the run's optimizer."""
    clock: TokenClock
    journal: Journal


class Conductor:
    """The desk at which all replicas ask."""

    def __init__(
        self,
        run: RunConfig,
        replicas: int,
        opening: Opening,
        run_dir: Path,
        now: Callable[[], float] = time.monotonic,
        *,
        is_virtual: bool = False,
    ) -> None:
        """Wait for the first hello.

        Args:
            run: The configuration.
            replicas: How many there are at the start.
            opening: Builds the server when the weights are known.
            run_dir: Where the log of pushes goes.
            now: Seconds that never fall.
            is_virtual: Whether they are those of a simulation, which metrics then tell.
        """
        self._is_virtual = is_virtual
        self._run, self._replicas, self._opening = run, replicas, opening
        self._log = PushLog(run_dir)
        self._clock, self._zero = now, 0.0
        self._incarnations: dict[int, int] = {}
        self._callers: dict[int, int] = {}
        """Hellos before training begins: replica and incarnation."""
        self._rest: Rest | None = None
        self._rest_s = 0.0
        """When it began."""
        self._saved_step = 0
        self._owes_save = False
        """Whether a checkpoint was due that nobody lived to write."""
        self._stage: Stage | None = None
        self.state = TrainState()
        self.start_tokens = 0
        """Counted tokens of earlier starts."""
        self.val_loss: float | None = None
        self._first_sample = 0
        self.plan: Plan | None = None
        self.status = "completed"
        """How training ends: completed | stopped | preempted."""
        self.finished = False
        """Whether everyone has been told that training is over."""

    # -- what the hub calls ----------------------------------------------------------------------

    def handle(self, worker: int, frame: Frame) -> Answers:
        """Take in what a replica says."""
        if frame.kind == "hello":
            return self._hello(worker, frame.fields["incarnation"])
        if frame.kind == "opening":
            self._open(frame)
            return self._begin_if_all_are_here(worker)
        if frame.kind == "done":
            if self._rest is None or worker not in self._rest.present:
                # It stood still, and the others have done without it.
                return [(worker, Frame("rejected", {"reason": "the rest is over"}))]
            return self._proceed(self._rest.done(worker, frame.fields))
        assert frame.kind == "push", frame.kind
        return self._push(worker, frame)

    def lost(self, worker: int) -> Answers:
        """Go on without a replica."""
        self._callers.pop(worker, None)
        if self._stage is None or worker not in self._incarnations:
            return []
        bye = Bye(worker=worker, incarnation=self._incarnations[worker])
        if not self.finished:
            log.info("replica %d is gone", worker)
        answers = list(self._ask(bye, "leave"))
        if self._rest is not None:
            answers += self._proceed(self._rest.lost(worker))
        return answers

    def tick(self, alive: Sequence[int]) -> Answers:
        """Let time pass."""
        if self._stage is None:
            return []
        replies = self._stage.core.tick(self.now(), alive)
        self._look(self._stage)  # the round that a grace has ended may make a step whole
        answers = [*self._answer(replies)]
        if self._rest is not None:
            for worker in sorted(self._rest.present - self._stage.core.living()):
                answers += self._proceed(self._rest.lost(worker))
        return answers

    def stop(self, status: str) -> Answers:
        """Have everyone save and end, as after Ctrl-C or a scheduler's SIGTERM."""
        if self.status != "completed":
            return []
        self.status = status
        return self._ask(Save(worker=0, incarnation=0), None) if self._stage else []

    @property
    def begun(self) -> bool:
        """Whether training has begun."""
        return bool(self._incarnations)

    @property
    def wakes_s(self) -> float | None:
        """When a tick would do something though no replica says a word; None: not as things are."""
        return None if self._stage is None else self._stage.core.wakes_s

    # -- the beginning ---------------------------------------------------------------------------

    def _hello(self, worker: int, incarnation: int) -> Answers:
        if self.begun:
            self._incarnations[worker] = incarnation
            log.info("replica %d is back, as its incarnation %d", worker, incarnation)
            return self._ask(Hello(worker=worker, incarnation=incarnation), "join")
        self._callers[worker] = incarnation
        if self._stage is None and worker == 0:
            return [(0, Frame("open"))]
        return self._begin_if_all_are_here(worker)

    def _open(self, frame: Frame) -> None:
        """Build the server from what the first replica gives."""
        said = frame.fields
        self.plan = Plan(**said["plan"])
        self.state = TrainState.from_dict(said["train_state"])
        self.start_tokens = self.state.tokens
        self._first_sample = said["first_sample"]
        self._saved_step = self.state.step
        self._stage = self._opening(under(WEIGHTS, frame.tensors), self.plan, self.state)
        core, plain = self._stage.core, said["server"]
        tokens = self.state.step * self.plan.tokens_per_step
        open_core(core, plain and plain["core"], frame.tensors, tokens, said["rule"])
        if plain is not None:
            self._zero = plain["now"]
            self._stage.journal.load(plain["journal"])
        self._log.begin(-1.0 if plain is None else plain["now"])
        self._zero -= self._clock()
        core.plan_rest(self._stage.clock.next_rest(core.tokens))

    def _begin_if_all_are_here(self, worker: int) -> Answers:
        """Let all replicas join at once, in their order: who came first must not matter."""
        if self._stage is None or len(self._callers) < self._replicas:
            return []
        self._incarnations = dict(sorted(self._callers.items()))
        self._stage.journal.begin(self.state.step, self.state.tokens)
        answers: list[tuple[int, Frame]] = []
        self.finished = self._stage.core.stopped
        for number, incarnation in self._incarnations.items():
            answers += self._ask(Hello(worker=number, incarnation=incarnation), "join")
        return answers

    # -- pushes ----------------------------------------------------------------------------------

    def _push(self, worker: int, frame: Frame) -> Answers:
        said, stage = dict(frame.fields), self._started
        report = Report(**said.pop("report"))
        asked = said.pop("stop")
        answers = [] if asked is None else [*self.stop(asked)]
        push = Push(worker=worker, payload=frame.tensors, **said)
        counted = self._counted(worker)
        behind = stage.core.version - push.base_version
        replies = self._core_replies(push, "push")
        if self._counted(worker) > counted:
            self.state.tokens += report.tokens
            stage.journal.add(push, report, behind=behind)
            self._look(stage)
        return [*answers, *self._answer(replies)]

    def _look(self, stage: Stage) -> None:
        """Tell a line of metrics if one is due."""
        core = stage.core
        stage.journal.look(
            stage.clock.step(core.tokens), self.state.tokens,
            stage.lr(max(core.tokens - 1, 0)), len(core.living()),
            self.now() if self._is_virtual else None,
        )  # fmt: skip

    def _counted(self, worker: int) -> int:
        counts = self._started.core.statistics().get(worker)
        return counts.pushes if counts else 0

    def _ask(self, message: Message, logged: str | None) -> Answers:
        """Let the core handle a message and tell what it answers."""
        return self._answer(self._core_replies(message, logged))

    def _core_replies(self, message: Message, logged: str | None) -> Replies:
        """Return what the core answers; log the message, without its tensors."""
        core, now = self._started.core, self.now()
        replies = core.handle(message, now)
        if logged is not None:
            words: dict[str, Any] = {"now": now, "kind": logged, "worker": message.worker}
            if isinstance(message, Push):
                words |= {"ticket": core.ticket, "base_version": message.base_version}
            self._log.add(words)
        return replies

    def _answer(self, replies: Replies) -> Answers:
        """Return the core's replies as frames; begin to rest where it says that all are at rest."""
        answers, at_rest = [], set()
        for worker, reply in replies:
            if isinstance(reply, Checkpoint):
                at_rest.add(worker)
            elif isinstance(reply, Stop):
                answers.append((worker, Frame("stop", {"status": self.status})))
            elif isinstance(reply, Weights):
                answers.append((worker, self._weights(reply)))
            else:
                answers.append((worker, self._rejected(reply)))
        if at_rest:
            answers += self._proceed(self._begin_rest(at_rest))
        return answers

    def _weights(self, reply: Weights, **also: Any) -> Frame:
        fields = {
            "version": reply.version, "tokens": reply.tokens, "local_steps": reply.local_steps,
            "position": self._first_sample + reply.steps * self._run.train.global_batch_size,
            **self._stamp, **also,
        }  # fmt: skip
        return Frame("weights", fields, reply.weights)

    def _rejected(self, reply: Rejected) -> Frame:
        if reply.fresh is None:
            return Frame("rejected", {"reason": reply.reason})
        return self._weights(reply.fresh, rejected=reply.reason)

    # -- rests -----------------------------------------------------------------------------------

    def _begin_rest(self, present: set[int]) -> Answers:
        core, clock = self._started.core, self._started.clock
        self._rest_s = time.perf_counter()
        step = clock.step(core.tokens)
        stopping = self.status != "completed"
        # Where a mode of common steps would go on: behind all that anybody has read.
        read = max((counts.steps for counts in core.statistics().values()), default=0)
        ahead = self._first_sample + read * self._run.train.global_batch_size
        self.state.step, self.state.samples = step, ahead
        self._rest = Rest(
            step=step,
            evaluates=clock.evaluates(self.state.evaluated_step, step) and not stopping,
            saves=clock.saves(self._saved_step, step) or stopping or self._owes_save,
            weights=lambda: (core.show_weights(), self._stamp),
            state=self._packed,
            evaluated=self._evaluated,
            description=self._description,
            present=set(present),
        )  # fmt: skip
        return self._rest.begin()

    @property
    def _stamp(self) -> dict[str, Any]:
        """What a replica needs in order to fetch, at several servers, what one would have sent."""
        stamp = self._started.core.stamp
        return {} if stamp is None else {"stamp": stamp}

    def _packed(self) -> tuple[Tensors, dict[str, Any]]:
        plain, tensors = pack(self._started.core.show_state())
        said = {"core": plain, "now": self.now(), "journal": self._started.journal.state()}
        return tensors, {"server": said, **self._stamp}

    def _evaluated(self, report: dict[str, Any]) -> bool:
        """Take note of an evaluation; return whether these weights are to be kept for it."""
        if report["val_loss"] is None:
            if report["stop"] is not None:
                self.status = report["stop"]
            return True  # the next start evaluates these weights
        self.val_loss = report["val_loss"]
        is_best = self.state.record_evaluation(report["val_loss"])
        perplexity = math.exp(min(report["val_loss"], 700.0))
        self._started.journal.write(
            {
                "step": self.state.step, "val_loss": report["val_loss"], "val_ppl": perplexity,
                "val_tokens": report["val_tokens"], "time": time.time(),
                **({"virtual_s": self.now()} if self._is_virtual else {}),
            }
        )  # fmt: skip
        self._started.journal.say(
            f"step {self.state.step}  val_loss {report['val_loss']:.4f}  val_ppl {perplexity:.2f}"
            f"{'  best' if is_best else ''}"
        )
        patience = self._run.train.early_stop_evals
        if patience is not None and self.state.evals_without_best >= patience:
            self._started.journal.say(f"stopped early: no better in {patience} evals")
            self._started.core.plan_rest(None, stopping=True)
            return True
        return is_best and self._run.checkpoint.save_best

    def _description(self) -> dict[str, Any]:
        evaluated = self.state.evaluated_step == self.state.step
        return {
            "train_state": self.state.to_dict(), "first_sample": self._first_sample,
            "val_loss": self.val_loss if evaluated else None,
        }  # fmt: skip

    def _proceed(self, answers: Answers) -> Answers:
        """Return `answers`; where the rest is over, let everyone go on."""
        rest = self._rest
        if rest is None or rest.phase:
            return answers
        self._rest, core = None, self._started.core
        self._owes_save = rest.saves and not rest.present
        if not rest.present:
            return answers  # all have died in it: whoever joins next rests in their place
        if rest.saves:
            self._saved_step = rest.step
        stopping = self.status != "completed" or core.stopped
        next_rest = None if stopping else self._started.clock.next_rest(core.tokens)
        core.plan_rest(next_rest, stopping=stopping)
        self._started.journal.pause(time.perf_counter() - self._rest_s)
        more = list(answers)
        for worker in sorted(rest.present):
            more += self._ask(Saved(worker=worker, incarnation=self._incarnations[worker]), None)
        self.finished = core.stopping
        return more

    @property
    def step(self) -> int:
        """Steps' worth of tokens that are in the weights."""
        return self._started.clock.step(self._started.core.tokens)

    @property
    def journal(self) -> Journal | None:
        """Who is told, once the weights are known."""
        return self._stage.journal if self._stage else None

    @property
    def _started(self) -> Stage:
        assert self._stage is not None, "no replica has given the weights yet"
        return self._stage

    def now(self) -> float:
        """Return the seconds that the run has taken, earlier starts included."""
        return self._clock() + self._zero
