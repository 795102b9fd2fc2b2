"""The watchdog: does the engine still move? Judged by its progress, never by a flag that it sets itself.

The engine's thread reports each turn of its loop (``turn``): at least once a second while idle, once a step while
busy. Whoever wants to know asks from another thread::

    seconds since the last turn    ──────┬────────────────┬──────────────▶
                                  moving │      slow      │ stuck
                                         ▼                ▼
                                 SLOW_AFTER_S     stuck_after_s, or MARGIN × the time that the step under way was
                                                  expected to take, whichever is longer

*Slow* is not ready (new requests are sent elsewhere) and may come back by itself; *stuck* is not live: nobody knows
what the thread waits for, and only a new process helps. A step that is foreseen to be long (a large prompt on a small
machine) has the time that it needs, so that the limits can be short.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from tokenmill.core.clock import Clock
from tokenmill.core.errors import ConfigError

SLOW_AFTER_S = 8.0
STUCK_AFTER_S = 60.0
MARGIN = 10.0
"""A step may take this many times what was expected of it."""

Motion = Literal["moving", "slow", "stuck"]

State = Literal["starting", "ready", "slow", "draining", "restarting", "stuck", "dead"]
"""What an engine is for those who ask from outside. New requests are taken in ``ready`` alone; it is live in all but
``stuck`` and ``dead``."""

NOT_LIVE: frozenset[State] = frozenset(("stuck", "dead"))


@dataclass(frozen=True, slots=True)
class Condition:
    """The state, since when (Unix time), and why if it is not ``ready``."""

    state: State
    since: float
    why: str = ""


class Watchdog:
    """Judges one engine's thread.

    Args:
        clock: the engine's.
        stuck_after_s: without a turn for this long, it is stuck.
        expected: how long the step under way was foreseen to take, in seconds; 0: not known.
    """

    def __init__(
        self, clock: Clock, *, stuck_after_s: float = STUCK_AFTER_S, expected: Callable[[], float] = lambda: 0.0
    ) -> None:
        if not stuck_after_s > 0:
            raise ConfigError(f"stuck_timeout must be above 0 seconds, not {stuck_after_s}")
        self._clock = clock
        self._stuck_after_s = stuck_after_s
        self._expected = expected
        self._turned_s = clock.now()

    def turn(self) -> None:
        """The engine's thread is alive at this moment."""
        self._turned_s = self._clock.now()

    def still_s(self) -> float:
        """Seconds since the last turn."""
        return max(0.0, self._clock.now() - self._turned_s)

    def judge(self) -> Motion:
        """From any thread."""
        still_s = self.still_s()
        slow_after_s = min(SLOW_AFTER_S, self._stuck_after_s)
        if still_s <= slow_after_s:
            return "moving"
        allowed_s = MARGIN * self._expected()
        if still_s <= max(slow_after_s, allowed_s):
            return "moving"
        return "stuck" if still_s > max(self._stuck_after_s, allowed_s) else "slow"
