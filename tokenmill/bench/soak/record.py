"""What happened in a soak: counts by outcome, and every breach of what must hold, with its moment."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

MAX_KEPT = 100
"""Breaches that are kept word for word; all are counted."""
MAX_DETAIL = 600


@dataclass(frozen=True, slots=True)
class Breach:
    """Something that must not be."""

    at_s: float
    invariant: str
    what: str


@dataclass(slots=True)
class Record:
    """Of a whole run. Moments are seconds since it began."""

    began_s: float = field(default_factory=time.perf_counter)
    outcomes: dict[str, Counter[str]] = field(default_factory=dict)
    """Kind of request → outcome → how many."""
    breaches: list[Breach] = field(default_factory=list)
    num_breaches: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, list[float]] = field(default_factory=dict)
    """Named durations: health answers, canaries, recoveries."""

    @property
    def now_s(self) -> float:
        return time.perf_counter() - self.began_s

    @property
    def num_requests(self) -> int:
        """Sent so far, whatever became of them; without those who ask for health."""
        return sum(sum(counts.values()) for kind, counts in self.outcomes.items() if not kind.startswith("/health"))

    def count(self, kind: str, outcome: str) -> None:
        self.outcomes.setdefault(kind, Counter())[outcome] += 1

    def took(self, name: str, seconds: float) -> None:
        self.seconds.setdefault(name, []).append(seconds)

    def breach(self, invariant: str, what: object) -> None:
        self.num_breaches[invariant] += 1
        if len(self.breaches) < MAX_KEPT:
            self.breaches.append(Breach(round(self.now_s, 2), invariant, str(what)[:MAX_DETAIL]))

    def table(self) -> dict[str, Any]:
        return {kind: dict(sorted(counts.items())) for kind, counts in sorted(self.outcomes.items())}
