"""Percentiles of millions of weighted values, in a few thousand bins.

Bins are a thousandth wide in proportion, and each knows the sum of what fell into it: means are exact, a percentile
is within 0.2 % of the value that ``metrics.percentile`` would give, and exact where a bin holds one value only.
"""

from __future__ import annotations

import math

from tokenmill.perf.metrics import PERCENTILES

WIDTH = 1e-3
_PER_LOG = 1 / math.log1p(WIDTH)
_ZERO = -(2**62)


class Histogram:
    """Values of at least 0, each with a weight."""

    def __init__(self) -> None:
        self._bins: dict[int, list[float]] = {}  # bin → [weight, sum of values times weight]
        self.max = 0.0

    def add(self, value: float, weight: int = 1) -> None:
        key = int(math.log(value) * _PER_LOG) if value > 0 else _ZERO
        found = self._bins.get(key)
        if found is None:
            self._bins[key] = [weight, value * weight]
        else:
            found[0] += weight
            found[1] += value * weight
        if value > self.max:
            self.max = value

    def add_run(self, values: list[float], weight: int) -> None:
        """Each of ``values`` (one at least), which grow slowly from first to last, with the same weight."""
        count, first, last = len(values), values[0], values[-1]
        if count <= 2:
            for value in values:
                self.add(value, weight)
        elif first <= last <= first * (1 + WIDTH):
            self.add(sum(values) / count, weight * count)
            self.max = max(self.max, last)
        else:
            self.add_run(values[: count // 2], weight)
            self.add_run(values[count // 2 :], weight)

    def summary(self) -> dict[str, float]:
        """As ``metrics.summarize``; empty where there are no values."""
        bins = [self._bins[key] for key in sorted(self._bins)]
        count = sum(weight for weight, _ in bins)
        if not count:
            return {}
        found = {"mean": sum(total for _, total in bins) / count}
        for q in PERCENTILES:
            found[f"p{q}"] = _at_rank(bins, (count - 1) * q / 100)
        return found | {"max": self.max}


def _at_rank(bins: list[list[float]], rank: float) -> float:
    """Between the two nearest ranks, linearly; a bin stands for its mean."""
    passed = 0.0
    for i, (weight, total) in enumerate(bins):
        if rank <= passed + weight - 1:
            return total / weight
        passed += weight
        if rank < passed:  # between this bin's last value and the next one's first
            here, (next_weight, next_total) = total / weight, bins[i + 1]
            return here + (next_total / next_weight - here) * (rank - passed + 1)
    return bins[-1][1] / bins[-1][0]
