"""ServerCore: the server of the asynchronous modes as a pure state machine.

    message, now -> handle -> [(worker, reply), ...]          now -> tick -> [(worker, reply), ...]

There is no clock, thread or socket inside. Equal messages at equal times in an equal order give
equal bits, which has three uses: a run replays from its log; a virtual clock runs it in one
process; and several servers hold a shard each and stay at one version, if one of them stamps every
message with its place and time, and all handle it there (`lead.py`).

A push is taken in (or is a duplicate, or does not count), rounds that are complete move the
weights, then all are answered who may go on. A duplicate asks again for the permission that was
given already, so it cannot pass the gate.

Staleness (Ho et al. 2013, "More effective distributed ML via a stale synchronous parallel
parameter server"): with bound s a worker starts at most s clocks ahead of the slowest, pushes at
most s + 1 ahead, and its weights are then at most (W - 1)(2 s + 1) versions old, while nobody dies.
Weights given include all pushes of the worker itself.
"""

from collections.abc import Callable, Collection

from llmtrain.errors import require
from llmtrain.sync.server.compensation import DelayCompensation
from llmtrain.sync.server.members import Counts, Member, Members
from llmtrain.sync.server.messages import (
    Bye,
    Checkpoint,
    Heartbeat,
    Hello,
    Message,
    Pull,
    Push,
    Rejected,
    Replies,
    Save,
    Saved,
    Stop,
    Weights,
)
from llmtrain.sync.server.round import Contribution, Round
from llmtrain.sync.server.rules import Elastic, State, UpdateRule
from llmtrain.sync.server.settings import ServerSettings
from llmtrain.sync.server.tensors import Tensors, clone, misfit, scaled


class ServerCore:
    """Holds the weights of one shard; workers push into them and are given them."""

    def __init__(
        self,
        rule: UpdateRule,
        settings: ServerSettings,
        lr: Callable[[int], float],
        compensation: DelayCompensation | None = None,
    ) -> None:
        """Wait for the first Hello.

        Args:
            rule: How an update moves the weights; it holds them.
            settings: What is done with a push.
            lr: From the tokens that all workers have put into the weights to the learning rate of
                the next update.
            compensation: What brings late gradients up to date, if anything.

        Raises:
            ConfigError: when rounds are asked of what is defined push by push.
        """
        alone = compensation is not None or isinstance(rule, Elastic)
        require(
            settings.apply == "per_push" or not alone,
            "Elastic averaging and delay compensation work push by push; try apply=per_push.",
        )
        self.settings = settings
        self.version = 0
        """Updates done."""
        self.tokens = 0
        """Tokens that went into the weights."""
        self.ticket = 0
        """Pushes taken in, whether they counted or not."""
        self.rest_at_tokens: int | None = None
        """Tokens from which on nobody is let go on until everyone is at rest, as after a Save."""
        self.stopping = False
        """Whether training ends here, whatever is left of its tokens."""
        self.stamp: int | None = None
        """Number of the last input, where several servers count them (`lead.py`)."""
        self._rule, self._lr, self._compensation = rule, lr, compensation
        self._members = Members()
        self._round = Round()
        self._snapshot: tuple[int, Tensors] | None = None
        self._draining = False
        self._unsaved: set[int] | None = None

    @property
    def stopped(self) -> bool:
        """Whether training has read its tokens, or is to end before."""
        limit = self.settings.stop_tokens
        return self.stopping or (limit is not None and self.tokens >= limit)

    @property
    def wakes_s(self) -> float | None:
        """When a tick would close a round though nobody says a word; None: not as things are."""
        return self._round.closes_s(self.settings.grace_s)

    def living(self) -> set[int]:
        """Return the workers that live."""
        return {member.worker for member in self._members.live()}

    def handle(self, message: Message, now: float) -> Replies:
        """Take in one message.

        Args:
            message: From any worker, known or not.
            now: Seconds; never falls, not even over a restart from a state.

        Returns:
            What is to be sent, to this worker and to others whom it has set free.
        """
        direct: Replies = []
        if isinstance(message, Hello):
            if self._members.join(message, now) is None:
                direct = [(message.worker, Rejected(reason="this incarnation is over"))]
        elif isinstance(message, Pull):
            weights = self._weights(Member(worker=message.worker))
            direct = [(message.worker, weights)]
        elif isinstance(message, Save):
            self._draining = True
        else:
            direct = self._from_member(message, now)
        return direct + self._proceed(now)

    def tick(self, now: float, alive: Collection[int] = ()) -> Replies:
        """Let time pass: the silent die, and graces end.

        Args:
            now: Seconds.
            alive: Workers that have given a sign of life since the last tick.
        """
        for member in self._members.live():
            if member.worker in alive:
                member.heard_s = now
        if self.settings.dead_after_s is not None:
            self._members.expire(self.settings.dead_after_s, now)
        return self._proceed(now)

    def plan_rest(self, at_tokens: int | None, *, stopping: bool = False) -> None:
        """Have everyone rest once `at_tokens` are in the weights, or have training end here."""
        self.rest_at_tokens, self.stopping = at_tokens, stopping

    def statistics(self) -> dict[int, Counts]:
        """Return what each worker did; not to be written into."""
        return {member.worker: member.counts for member in self._members}

    def show_weights(self) -> Tensors:
        """Return a copy of the weights, to be looked at."""
        return clone(self._rule.weights)

    def show_state(self) -> State:
        """Return `state_dict`, to be saved."""
        return self.state_dict()

    def state_dict(self) -> State:
        """Return copies of all there is but a checkpoint in progress: tensors and plain values."""
        state: State = {"version": self.version, "tokens": self.tokens, "ticket": self.ticket}
        state["rule"] = self._rule.state_dict()
        state["compensation"] = self._compensation.state_dict() if self._compensation else {}
        return state | {"round": self._round.state_dict(), **self._members.state_dict()}

    def load_state_dict(self, state: State) -> None:
        """Take back what `state_dict` gave; the next `tick` answers who was waiting.

        Where to rest is not part of it: whoever restores a server says so anew.
        """
        self.version, self.tokens = state["version"], state["tokens"]
        self.ticket = state["ticket"]
        self._rule.load_state_dict(state["rule"])
        if self._compensation:
            self._compensation.load_state_dict(state["compensation"])
        self._round.load_state_dict(state["round"])
        self._members.load_state_dict(state)
        self._snapshot, self._draining, self._unsaved = None, False, None

    def wait_for_all(self) -> None:
        """After `load_state_dict` where every worker starts anew: each has to ask again, and
        numbers its pushes anew."""
        for member in self._members:
            member.waiting_since_s, member.seq = None, 0

    def _from_member(self, message: Push | Heartbeat | Bye | Saved, now: float) -> Replies:
        """Take in what only a member may say; others are told to join."""
        member = self._members.find(message.worker, message.incarnation)
        if member is None:
            if isinstance(message, Bye):
                return []
            return [(message.worker, Rejected(reason="not a member, or not in this incarnation"))]
        member.heard_s = now
        if isinstance(message, Push):
            return self._push(message, member, now)
        if isinstance(message, Bye):
            self._members.leave(member)
        if isinstance(message, Saved) and self._unsaved:
            self._unsaved.discard(member.worker)
        return []

    def _push(self, push: Push, member: Member, now: float) -> Replies:
        """Count a push once, or note why not; its worker then waits for an answer."""
        if push.seq <= member.seq:
            member.counts.duplicates += 1
            member.wait(now)
            return []
        wrong = misfit(push.payload, self._rule.weights)
        if member.waiting_since_s is not None:
            wrong = "the last push is not answered yet"
        if wrong:
            return [(push.worker, Rejected(reason=wrong))]
        self.ticket += 1
        member.seq, member.ticket = push.seq, self.ticket
        member.counts.steps += push.local_steps
        member.measure(push.local_steps, now)
        member.wait(now)
        behind = self.version - push.base_version
        limit = self.settings.max_versions
        if behind < 0:
            member.rejection = f"the push comes from {-behind} versions ahead of the server"
        elif limit is not None and behind > limit:
            member.rejection = f"the push is {behind} versions behind, and {limit} are let pass"
        if member.rejection or self.stopped:
            member.counts.wasted_tokens += push.tokens
            return []
        member.clock += 1
        member.counts.count(push.tokens, behind)
        self._count(push, member, behind)
        return []

    def _count(self, push: Push, member: Member, behind: int) -> None:
        """Apply a push at once, or put it into the round."""
        payload = push.payload
        if self._compensation and member.base is not None:
            payload = self._compensation.apply(payload, self._rule.weights, member.base)
        if self.settings.staleness_policy == "decay":
            payload = scaled(payload, 1 / (1 + behind))
        if self.settings.apply == "per_clock":
            kept = Contribution(push.tokens, clone(payload))
            self._round.add((member.worker, member.incarnation), kept)
            return
        workers = len(self._members.live()) if self.settings.lr_over_workers else 1
        member.answer = self._rule.apply(payload, self._lr(self.tokens) / workers)
        self._advance(push.tokens)

    def _advance(self, tokens: int) -> None:
        """Count an update."""
        self.version += 1
        self.tokens += tokens

    def _proceed(self, now: float) -> Replies:
        """Close the round if it is complete, then answer everyone who may go on."""
        living = self._members.live()
        if len(living) >= self.settings.min_workers:
            keys = [(member.worker, member.incarnation) for member in living]
            settings = self.settings
            if self._round.complete(keys, settings.quorum, settings.grace_s, now):
                self._rule.apply(self._round.mean(), self._lr(self.tokens))
                self._advance(self._round.tokens)
                self._round.clear()
        if self.rest_at_tokens is not None and self.tokens >= self.rest_at_tokens:
            self._draining = True
        asked = self._drain(living) if self._draining else []
        return asked + [
            self._answer(member, now)
            for member in living
            if member.waiting_since_s is not None and self._may_go_on(member)
        ]

    def _drain(self, living: list[Member]) -> Replies:
        """Once nothing is in flight have everyone write a checkpoint; once they have, go on."""
        if not living:
            self._unsaved = None  # whoever joins next is asked in their place
        elif self._unsaved is None:
            if all(member.waiting_since_s is not None for member in living):
                self._unsaved = {member.worker for member in living}
                return [(w, Checkpoint(version=self.version)) for w in sorted(self._unsaved)]
        else:
            self._unsaved &= {member.worker for member in living}
            if not self._unsaved:
                self._draining, self._unsaved = False, None
        return []

    def _may_go_on(self, member: Member) -> bool:
        """Return whether the member may start its next clock."""
        if self._draining:
            return False
        if self.stopped:
            return True
        if len(self._members.live()) < self.settings.min_workers:
            return False
        if (member.worker, member.incarnation) in self._round:
            return False
        bound = self.settings.max_staleness
        return bound is None or member.clock - self._members.slowest_clock() <= bound

    def _answer(self, member: Member, now: float) -> tuple[int, Weights | Rejected | Stop]:
        """Return the answer that a waiting member gets, and note that it computes from now on."""
        if self.stopped:
            member.end_wait(now)
            return member.worker, Stop(version=self.version, tokens=self.tokens)
        weights = self._weights(member)
        if self._compensation:
            member.base = weights.weights
        reason = member.rejection
        member.end_wait(now)
        member.granted_s = now
        return member.worker, Rejected(reason=reason, fresh=weights) if reason else weights

    def _weights(self, member: Member) -> Weights:
        """Return what `member` goes on from; those of one version share a copy."""
        if self._snapshot is None or self._snapshot[0] != self.version:
            self._snapshot = (self.version, clone(self._rule.weights))
        return Weights(
            version=self.version,
            ticket=member.ticket,
            clock=member.clock,
            slowest_clock=self._members.slowest_clock(),
            tokens=self.tokens,
            steps=member.counts.steps,
            local_steps=self._local_steps(member),
            weights=member.answer or self._snapshot[1],
        )

    def _local_steps(self, member: Member) -> int:
        """Return the steps until the next push."""
        settings, most = self.settings, self.settings.local_steps
        if settings.stop_tokens is not None and settings.step_tokens is not None:
            left = settings.stop_tokens - self.tokens
            each = -(-left // (settings.step_tokens * max(1, len(self._members.live()))))
            most = max(1, min(most, each))
        return self._members.local_steps(member, most) if settings.adapt_local_steps else most
