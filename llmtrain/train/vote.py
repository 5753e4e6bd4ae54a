"""How replicas that train apart agree on the step to stop at.

They meet seldom, and a scheduler that sends SIGTERM gives a minute: to wait for the next meeting
may lose it, and to stop at once leaves replicas at different steps. So each replica announces, once
before each meeting, the step that it has reached: the meeting's own when it enters, an earlier one
when it hears of a stop first. Who hears of it waits for all announcements; the highest is the step.

    replica 0   ...step 41, asked to stop: announces 41 .......... highest is 43: goes on to it
    replica 1   ...step 43, hears of it:   announces 43 .......... stops
    (had replica 1 entered the meeting at 50, all would go on to it and vote again after it)
"""

import time

from torch.distributed import Store

POLL_S = 0.02
"""Seconds between two looks at the store."""


class StopVote:
    """One replica's voice."""

    def __init__(self, store: Store, *, replica: int, replicas: int, speaks: bool) -> None:
        """Set up the vote.

        Args:
            store: The rendezvous store; small keys are kept there while replicas are apart.
            replica: This process's coordinate on dp_replicate.
            replicas: How many there are.
            speaks: Whether this process announces for its replica; one does.
        """
        self._store = store
        self._replica = replica
        self._replicas = replicas
        self._speaks = speaks
        self._announced: list[str] = []
        """Keys since the last meeting of all, which is among them."""
        self._passed: list[str] = []
        """Keys before it, which somebody may still wait for until the next."""
        self._target = -1
        """The step of the last vote."""
        self._is_entered = False
        """Whether it is that of an exchange."""

    def heard(self) -> bool:
        """Return whether another replica has been asked to stop; asks once a replica."""
        return self._speaks and self._replicas > 1 and self._store.check(["stop/asked"])

    def enter(self, step: int, *, all_meet: bool) -> None:
        """Announce that this replica enters the exchange after `step` steps, which may block.

        Args:
            step: Steps done.
            all_meet: Whether all replicas take part.
        """
        if self._replicas == 1 or not self._speaks:
            return
        self._announce(step, step)
        if all_meet:
            for key in self._passed:
                self._store.delete_key(key)
            self._passed, self._announced = self._announced, []

    def stops(self, step: int, exchange: int) -> bool:
        """Return whether to stop now, having been asked to.

        Waits until every replica has announced. Equal on all ranks of a replica, if all ask.

        Args:
            step: Steps done.
            exchange: Steps done at the next exchange.
        """
        if self._replicas == 1:
            return True
        if step < self._target:
            return False
        if step == self._target and not self._is_entered:
            return True
        if self._speaks:
            self._store.set("stop/asked", "1")
            self._announce(exchange, step)
        keys = [self._key(exchange, replica) for replica in range(self._replicas)]
        while not self._store.check(keys):
            time.sleep(POLL_S)
        self._target = max(int(self._store.get(key)) for key in keys)
        # Who has entered the exchange cannot stop before it: all go on to it, and vote again.
        self._is_entered = self._target == exchange
        return step == self._target

    def _announce(self, exchange: int, step: int) -> None:
        key = self._key(exchange, self._replica)
        self._store.set(key, str(step))
        self._announced.append(key)

    def _key(self, exchange: int, replica: int) -> str:
        return f"stop/{exchange}/{replica}"
