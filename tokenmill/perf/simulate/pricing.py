"""What a run of generating steps costs, from a few prices.

Step ``i`` of such a run differs from the first in one thing: every context is ``i`` tokens longer. A roofline's
time is a sum of maxima of functions that are linear in the context, hence convex; and a convex function that agrees
with a straight line at both ends and in the middle agrees everywhere between. So three prices are enough where no
bound changes hands, and where one does the run is halved. For a cost that is not convex (tables, tiles) the times
between are right as far as its bends are seen at the points asked for.
"""

from __future__ import annotations

from tokenmill.core.step import StepPlan
from tokenmill.engine.contracts import PredictedCost, StepCost

TOLERANCE = 1e-6
"""Of a step's time: how far from the line its middle may lie."""


class Run:
    """Prices steps of one token for the same sequences, contexts growing by one each step."""

    def __init__(self, cost: StepCost, seq_ids: tuple[int, ...], starts: tuple[int, ...]) -> None:
        self._cost = cost
        self._seq_ids = seq_ids
        self._starts = starts
        self._counts = (1,) * len(seq_ids)
        self.bound = ""
        """What limits the first step."""

    def seconds(self, num_steps: int) -> list[float]:
        """The time of each of the first ``num_steps`` (>= 1) steps."""
        first = self._price(0)
        self.bound = first.bound
        if num_steps == 1:
            return [first.seconds]
        last = self._price(num_steps - 1).seconds
        found = [first.seconds]
        self._between(0, first.seconds, num_steps - 1, last, found)
        return found

    def _price(self, step: int) -> PredictedCost:
        starts = tuple([start + step for start in self._starts]) if step else self._starts
        return self._cost.predict(StepPlan(0, self._seq_ids, starts, self._counts))

    def _between(self, low: int, low_s: float, high: int, high_s: float, found: list[float]) -> None:
        """Append the times of steps ``low + 1 … high``."""
        width = high - low
        slope = (high_s - low_s) / width
        if width > 1:
            middle = low + width // 2
            middle_s = self._price(middle).seconds
            if abs(middle_s - (low_s + slope * (middle - low))) > TOLERANCE * middle_s:
                self._between(low, low_s, middle, middle_s, found)
                self._between(middle, middle_s, high, high_s, found)
                return
        found += [low_s + slope * i for i in range(1, width)]
        found.append(high_s)
