"""Repeated measurements of one figure."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from tokenmill.perf.hardware import Figure


@dataclass(frozen=True, slots=True)
class Samples:
    """What several runs gave, and how: rates (more is better) unless ``seconds``."""

    values: tuple[float, ...]
    how: str
    seconds: bool = False

    @property
    def best(self) -> float:
        return min(self.values) if self.seconds else max(self.values)

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def share_of(self, ceiling: float) -> Samples:
        """The same runs as shares of a ceiling, which one of them may have passed by chance."""
        return Samples(tuple(min(value / ceiling, 1.0) for value in self.values), self.how)

    def figure(self) -> Figure:
        """As the catalogue keeps it: the least time, but the median of a rate; between the extremes."""
        value = self.best if self.seconds else self.median
        return Figure(value, self.how, "measured", min(self.values), max(self.values))

    def as_dict(self) -> dict[str, object]:
        return {"best": self.best, "median": self.median, "runs": len(self.values), "how": self.how}


ENOUGH_S, ENOUGH_RUNS = 1.5, 3
"""A figure that has taken so long is not measured more often than this."""


def times(call: Callable[[], object], repeat: int) -> list[float]:
    """Seconds of each of ``repeat`` calls (fewer if they are long), after one that is not counted."""
    call()
    found: list[float] = []
    while len(found) < repeat and (len(found) < ENOUGH_RUNS or sum(found) < ENOUGH_S):
        began = time.perf_counter()
        call()
        found.append(time.perf_counter() - began)
    return found


def rates(work: float, seconds: Iterable[float], how: str) -> Samples:
    """``work`` per second of each run."""
    return Samples(tuple(work / each for each in seconds), how)
