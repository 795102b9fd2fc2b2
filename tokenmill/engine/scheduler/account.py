"""Where a request's time goes, by cause, adding up exactly, at no cost per step.

A sequence is always in one *state* (waiting, computing its prompt, generating, …); its account is told only
when the state changes. What happens *within* a state by cause is kept once for all, as cumulative clocks:

- while sequences wait, one cause at a time blocks the head of the queue, and with it everybody behind;
  ``CauseClock`` adds up seconds per cause, and a waiting sequence takes the difference between two readings;
- while sequences generate, a step may also compute others' prompts; ``CauseClock`` adds up those seconds too.

So a step with a thousand sequences waiting or running costs the accounts two additions.
"""

from __future__ import annotations

from tokenmill.core.events import Account, Cause


class CauseClock:
    """Seconds spent under each cause, one cause at a time."""

    def __init__(self, cause: str) -> None:
        self.cause = cause
        self._totals: dict[str, float] = {}
        self._since_s: float | None = None

    def tick(self, now: float) -> None:
        """Attribute the time since the last tick to the present cause."""
        if self._since_s is not None:
            self._totals[self.cause] = self._totals.get(self.cause, 0.0) + now - self._since_s
        self._since_s = now

    def change(self, cause: str, now: float) -> None:
        self.tick(now)
        self.cause = cause

    def reading(self, now: float) -> dict[str, float]:
        """Seconds per cause up to ``now``; changes nothing, so that other threads may look."""
        totals = dict(self._totals)
        if self._since_s is not None:
            totals[self.cause] = totals.get(self.cause, 0.0) + max(0.0, now - self._since_s)
        return totals


class SequenceAccount:
    """One sequence's states so far. ``enter`` closes the present state and opens the next."""

    def __init__(self, arrival_s: float) -> None:
        self.arrival_s = arrival_s
        self.state = "queue"
        """``queue``, ``preempted`` (both waiting), ``prefill``, ``decode``."""
        self.stalled: Cause | None = "step_boundary"
        """The one cause of a state whose time no clock splits."""
        self.num_chunks = 0
        self.num_preemptions = 0
        self.first_token_s: float | None = None
        self._causes: dict[str, float] = {}
        self._since_s = arrival_s
        self._clock: CauseClock | None = None
        self._reading: dict[str, float] = {}

    def enter(self, state: str, now: float, *, clock: CauseClock | None = None, stalled: Cause | None = None) -> None:
        """Change state. With ``clock``, the time in the new state is split by its causes."""
        self._causes = self._causes_until(now)
        self.state, self.stalled, self._since_s, self._clock = state, stalled, now, clock
        self._reading = clock.reading(now) if clock else {}

    def summary(self, now: float) -> Account:
        """The account up to ``now``; changes nothing, the sequence may go on."""
        causes = self._causes_until(now)
        by_state = dict.fromkeys(("queue", "preempted", "prefill", "decode"), 0.0)
        for name, seconds in causes.items():
            by_state[name.partition(":")[0]] += seconds
        return Account(
            total_s=now - self.arrival_s,
            queue_s=by_state["queue"] + by_state["preempted"],
            prefill_s=by_state["prefill"],
            decode_s=by_state["decode"],
            causes=causes,
            num_chunks=self.num_chunks,
            num_preemptions=self.num_preemptions,
        )

    def _causes_until(self, now: float) -> dict[str, float]:
        """Seconds by cause, the present state included."""
        causes = dict(self._causes)
        rest = now - self._since_s
        for cause, total_s in self._clock.reading(now).items() if self._clock else ():
            seconds = total_s - self._reading.get(cause, 0.0)
            rest -= seconds
            self._add(causes, cause, seconds)
        self._add(causes, self.stalled, rest)
        return causes

    def _add(self, causes: dict[str, float], cause: str | None, seconds: float) -> None:
        if seconds > 1e-12:
            name = f"{self.state}:{cause}" if cause else self.state
            causes[name] = causes.get(name, 0.0) + seconds
