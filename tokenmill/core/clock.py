"""Time as a value. Nothing pure reads the wall clock: it is handed ``now`` in seconds.

The engine holds a ``Clock``; a real one serves, a virtual one simulates. Both count seconds from an
arbitrary origin and never run backwards.
"""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    def now(self) -> float:
        """Seconds since an arbitrary origin; monotonic."""
        ...


class MonotonicClock:
    """The machine's monotonic clock."""

    def now(self) -> float:
        return time.monotonic()


class VirtualClock:
    """A clock that moves only when told to."""

    def __init__(self, now_s: float = 0.0) -> None:
        self._now_s = now_s

    def now(self) -> float:
        return self._now_s

    def advance(self, seconds: float) -> None:
        """Move forward by ``seconds`` (>= 0)."""
        if seconds < 0:
            raise ValueError(f"a clock cannot run backwards: {seconds} s")
        self._now_s += seconds

    def advance_to(self, now_s: float) -> None:
        """Move forward to ``now_s``; a moment already passed leaves the clock where it is."""
        self._now_s = max(self._now_s, now_s)
