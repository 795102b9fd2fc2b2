"""What a run of generating steps costs, from a few prices.

Step ``i`` of such a run differs from the first in one thing: every context is ``i`` tokens longer. A roofline's
time is a sum of maxima of functions that are linear in the context, hence convex; and a convex function that agrees
with a straight line at both ends and in the middle agrees everywhere between. So three prices are enough where no
bound changes hands, and where one does the run is halved. For a cost that is not convex (tables, tiles) the times
between are right as far as its bends are seen at the points asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

from tokenmill.core.step import StepPlan
from tokenmill.engine.contracts import PredictedCost, StepCost

TOLERANCE = 1e-6
"""Of a step's time: how far from the line its middle may lie."""


class GrowingSteps(Protocol):
    """Steps of one token for the same sequences, contexts growing by one each step."""

    @property
    def bound(self) -> str:
        """What limits the first."""
        ...

    def seconds(self, step: int) -> float: ...


@runtime_checkable
class GrowingCost(Protocol):
    """A ``StepCost`` that prices such steps one from another, more quickly than each from its plan."""

    def growing(self, starts: Sequence[int]) -> GrowingSteps | None: ...


class _Asked:
    """``GrowingSteps`` of any cost: asks for the price of each step's plan."""

    def __init__(self, cost: StepCost, starts: Sequence[int]) -> None:
        self._cost = cost
        self._starts = starts
        self._ids, self._counts = tuple(range(len(starts))), (1,) * len(starts)

    @property
    def bound(self) -> str:
        return self._price(0).bound

    def seconds(self, step: int) -> float:
        return self._price(step).seconds

    def _price(self, step: int) -> PredictedCost:
        return self._cost.predict(StepPlan(0, self._ids, tuple([start + step for start in self._starts]), self._counts))


def growing_steps(cost: StepCost) -> Callable[[Sequence[int]], GrowingSteps]:
    """What makes, of contexts, the steps that give each of those sequences a token, then another, and so on."""
    if not isinstance(cost, GrowingCost):
        return lambda starts: _Asked(cost, starts)
    growing = cost.growing
    return lambda starts: growing(starts) or _Asked(cost, starts)


def run_seconds(steps: GrowingSteps, num_steps: int) -> list[float]:
    """The time of each of the first ``num_steps`` (>= 1) steps."""
    price = steps.seconds
    first_s = price(0)
    found = [first_s]
    if num_steps > 1:
        _between(price, 0, first_s, num_steps - 1, price(num_steps - 1), found)
    return found


def _between(
    price: Callable[[int], float], low: int, low_s: float, high: int, high_s: float, found: list[float]
) -> None:
    """Append the times of steps ``low + 1 … high``."""
    width = high - low
    slope = (high_s - low_s) / width
    if width > 1:
        middle = low + width // 2
        middle_s = price(middle)
        if abs(middle_s - (low_s + slope * (middle - low))) > TOLERANCE * middle_s:
            _between(price, low, low_s, middle, middle_s, found)
            _between(price, middle, middle_s, high, high_s, found)
            return
    found += [low_s + slope * i for i in range(1, width)]
    found.append(high_s)
