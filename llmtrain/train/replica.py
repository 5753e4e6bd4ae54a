"""Replica: the loop of a replica that a server tells what to go on from.

    hello -> weights -> local steps -> push -> weights | rejected | order | stop

It is no `Trainer`: there are no steps that all take, and when to evaluate, to save and to end is
the server's to say (`conductor.py`). How a step is computed is the same.
"""

import dataclasses
import logging
import time
from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.distributed as dist

from llmtrain.checkpoint.tensors import model_tensors, optimizer_tensors, sync_tensors
from llmtrain.sync.served import Served
from llmtrain.sync.transport.frame import Frame
from llmtrain.train.evaluate import evaluate
from llmtrain.train.local_steps import LocalResult, LocalSteps
from llmtrain.train.rest import COMMIT, EVALUATE, WRITE
from llmtrain.train.state import TrainState
from llmtrain.train.stop import StopRequest
from llmtrain.train.trainer import Parts

log = logging.getLogger(__name__)


class Traffic(Protocol):
    """Counts what goes between a replica and the server."""

    def traffic(self) -> int:
        """Return the bytes that went both ways since it was last asked."""


class ToServer(Protocol):
    """Asks the server, or several."""

    def ask(self, frame: Frame) -> Frame:
        """Say `frame` and return the answer, however long it takes."""

    def close(self) -> None:
        """Give no more signs of life."""


class Replica:
    """One process of a replica: all of them say and hear the same."""

    def __init__(
        self,
        parts: Parts[Served],
        line: Traffic,
        stop: StopRequest,
        leaves: Callable[[], bool] = lambda: False,
    ) -> None:
        """Set up; says nothing yet.

        Args:
            parts: What it uses, restored from the newest checkpoint.
            line: To the server, or what stands for it.
            stop: Says when this process is asked to stop, which stops the run.
            leaves: Whether the server has been asked to stop, which leaves an evaluation.
        """
        self._leaves = leaves
        self._p, self._line, self._stop = parts, line, stop
        self._steps = LocalSteps(parts)
        self._first_sample = (
            parts.state.samples if parts.sync.first_sample is None else parts.sync.first_sample
        )
        self._incarnation = parts.sync.incarnation + parts.info.restart
        self._seq = 0
        self.wait_s = 0.0
        """Seconds in which the last answer was waited for."""

    @property
    def samples_per_step(self) -> int:
        """Samples of a step of all replicas."""
        return self._p.plan.global_batch_size

    def run(self, line: ToServer) -> str:
        """Train until the server says that it is over. Collective over the replica.

        Args:
            line: To the server.

        Returns:
            How training ended: completed | stopped | preempted.

        Raises:
            LostLineError: when the server is gone.
        """
        try:
            answer = self._ask(line, self.hello())
            while answer.kind != "stop":
                answer = self._ask(line, self.obey(answer))
        finally:
            line.close()
            self.close()
        return str(answer.fields["status"])

    def close(self) -> None:
        """Read no more data."""
        self._p.loader.close()

    def _ask(self, line: ToServer, frame: Frame) -> Frame:
        started = time.perf_counter()
        answer = line.ask(frame)
        self.wait_s = time.perf_counter() - started
        return answer

    def hello(self) -> Frame:
        """Return what to say first."""
        self._seq = 0
        return Frame("hello", {"incarnation": self._incarnation})

    def obey(self, answer: Frame) -> Frame:
        """Do what the server says; return what to say next."""
        if answer.kind == "weights":
            if "rejected" in answer.fields:
                log.info("the last push did not count: %s", answer.fields["rejected"])
            return self._compute(answer)
        if answer.kind == "order":
            return self._follow(answer)
        if answer.kind == "rejected":
            log.warning("joining again: %s", answer.fields["reason"])
            self._incarnation += 1
            return self.hello()
        assert answer.kind == "open", answer.kind
        return self._open()

    def _open(self) -> Frame:
        p = self._p
        states, tensors = p.sync.opening()
        fields = {
            "plan": dataclasses.asdict(p.plan), "train_state": p.state.to_dict(),
            "first_sample": self._first_sample, **states,
        }  # fmt: skip
        return Frame("opening", fields, tensors)

    def _compute(self, answer: Frame) -> Frame:
        """Compute from the weights that came; return the push."""
        said, p = answer.fields, self._p
        p.sync.take(answer.tensors)
        count = said["local_steps"]
        result = self._steps(said["tokens"] // p.plan.tokens_per_step, count, said["position"])
        self._seq += 1
        fields = {
            "incarnation": self._incarnation, "seq": self._seq, "base_version": said["version"],
            "local_steps": count, "tokens": count * p.plan.tokens_per_step // p.plan.dp_replicate,
            "stop": self._stop.status if self._stop.asked else None,
            "report": self._report(result, count),
        }  # fmt: skip
        return Frame("push", fields, p.sync.payload())

    def _report(self, result: LocalResult, count: int) -> dict[str, float]:
        return {
            **dataclasses.asdict(result), "steps": count, "comm_bytes": self._line.traffic(),
            "wait_s": self.wait_s,
        }  # fmt: skip

    def _follow(self, order: Frame) -> Frame:
        """Do what is to be done at a rest; return the report."""
        said = order.fields
        report: dict[str, Any] = {"number": said["number"]}
        if said["what"] == EVALUATE:
            report |= self._evaluate(order)
        elif said["what"] == WRITE:
            self._write(order)
        else:
            assert said["what"] == COMMIT
            self._commit(order)
        dist.barrier()  # what place 0 reports is done by all
        return Frame("done", report)

    def _evaluate(self, order: Frame) -> dict[str, float | str | None]:
        """Evaluate; where that was left because the run is to stop, there is no loss to tell."""
        p = self._p
        p.sync.take(order.tensors)
        result = evaluate(
            p.model.module, p.step.evaluate, p.validation(), group=p.mesh.token_group,
            counts_batch=p.mesh.rank("pp") == 0 and p.mesh.rank("cp") == 0,
            asked=lambda: self._stop.asked or self._leaves(),
        )  # fmt: skip
        p.model.after_forward_only()
        if result is None:
            return {"val_loss": None, "stop": self._stop.status if self._stop.asked else None}
        return {"val_loss": result.loss, "val_tokens": result.tokens}

    def _write(self, order: Frame) -> None:
        """Write this replica's part of a checkpoint; the lead's has what all share."""
        p, said = self._p, order.fields
        tensors: dict[str, torch.Tensor] = {}
        if said["lead"]:
            p.sync.rest(said["server"], order.tensors)
            p.sync.first_sample = self._first_sample
            tensors |= sync_tensors(p.sync.state_dict()) | model_tensors(p.model.module)
        if said["lead"] or p.sync.replica is not None:
            tensors |= optimizer_tensors(p.model.module, p.optimizers, p.sync.replica)
        assert p.info.replica is not None
        p.checkpoints.write_part(said["step"], p.info.replica, tensors)

    def _commit(self, order: Frame) -> None:
        p, said = self._p, order.fields
        described = p.sync.describe() | {"saved_replicas": said["parts"]}
        state = TrainState.from_dict(said["train_state"])
        folder = p.checkpoints.commit(
            p.manifest(state, said["val_loss"], described), said["parts"]
        )  # fmt: skip
        log.info("checkpoint %s", folder)
