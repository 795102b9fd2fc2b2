"""Where a request's time goes, by cause, adding up exactly, at no cost per step.

A sequence is always in one *state* (waiting, computing its prompt, generating, …); its account is told only
when the state changes. What happens *within* a state by cause is kept once for all, as cumulative clocks:

- while sequences wait, one cause at a time blocks the head of the queue, and with it everybody behind;
  ``CauseClock`` adds up seconds per cause, and a waiting sequence takes the difference between two readings;
- while sequences generate, a step may also compute others' prompts; ``CauseClock`` adds up those seconds too.

So a step with a thousand sequences waiting or running costs the accounts two additions.
"""

from __future__ import annotations

from dataclasses import dataclass, field

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
        self.tick(now)
        return dict(self._totals)


@dataclass(slots=True)
class SequenceAccount:
    """One sequence's states so far. ``enter`` closes the present state and opens the next."""

    arrival_s: float
    state: str = "queue"
    """``queue``, ``preempted`` (both waiting), ``prefill``, ``decode``."""
    stalled: Cause | None = None
    """Set while it is in the batch but left out of steps."""
    causes: dict[str, float] = field(default_factory=dict)
    num_chunks: int = 0
    num_preemptions: int = 0
    first_token_s: float | None = None
    _since_s: float = 0.0
    _clock: CauseClock | None = None
    _reading: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._since_s = self.arrival_s
        self.stalled = "step_boundary"

    def enter(self, state: str, now: float, *, clock: CauseClock | None = None, stalled: Cause | None = None) -> None:
        """Change state. With ``clock``, the time in the new state is split by its causes."""
        self._close(now)
        self.state, self.stalled, self._since_s, self._clock = state, stalled, now, clock
        self._reading = clock.reading(now) if clock else {}

    def _close(self, now: float) -> None:
        if self._clock is None:
            name = f"{self.state}:{self.stalled}" if self.stalled else self.state
            self._add(name, now - self._since_s)
            return
        rest = now - self._since_s
        for cause, total_s in self._clock.reading(now).items():
            seconds = total_s - self._reading.get(cause, 0.0)
            rest -= seconds
            self._add(f"{self.state}:{cause}" if cause else self.state, seconds)
        self._add(self.state, rest)

    def _add(self, name: str, seconds: float) -> None:
        if seconds > 1e-12:
            self.causes[name] = self.causes.get(name, 0.0) + seconds

    def summary(self, now: float) -> Account:
        """The account up to ``now``; the sequence may go on."""
        self.enter(self.state, now, clock=self._clock, stalled=self.stalled)
        return Account(
            total_s=now - self.arrival_s,
            queue_s=self._sum("queue") + self._sum("preempted"),
            prefill_s=self._sum("prefill"),
            decode_s=self._sum("decode"),
            causes=dict(self.causes),
            num_chunks=self.num_chunks,
            num_preemptions=self.num_preemptions,
        )

    def _sum(self, state: str) -> float:
        return sum(s for name, s in self.causes.items() if name == state or name.startswith(state + ":"))
