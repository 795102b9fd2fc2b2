"""The largest load at which an instance keeps its limits (DistServe's goodput, arXiv 2401.09670), pessimistically.

It is looked for on a fixed grid of loads, the same whatever the limits and the rate of the whole are: so a looser limit
never yields less.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tokenmill.perf.plan.predict import STABLE, Instance, Load

RATIO, POINTS = 1.02, 512
"""The grid of loads: each point 2 % below the one before, from full down to a 25,000th."""


def idle_load(instance: Instance) -> Load:
    """The least load of the grid, pessimistically."""
    return instance.at(instance.most("high") * RATIO ** (1 - POINTS), "high")


@dataclass(frozen=True, slots=True)
class TooLittle:
    """An instance carries less than is worth knowing."""

    rate: float
    """It carries less than this."""


def largest(
    instance: Instance, holds: Callable[[Load], bool], worth: float = 0.0
) -> tuple[Load, bool] | TooLittle | None:
    """The largest load of the grid, pessimistically, at which ``holds``; and whether it is the full one.

    ``holds`` must be true up to some load and false beyond; None if it is false even at the least. Of less than
    ``worth`` requests a second only that is said.
    """
    top = instance.most("high")
    full = instance.at(top, "high").rate
    best, is_full = idle_load(instance), False
    if not holds(best):
        return None
    low, high = 0, POINTS - 1
    while low < high:
        middle = (low + high) // 2
        load = instance.at(top * RATIO**-middle, "high")
        stable = load.rate <= STABLE * full and load.is_stable
        if stable and holds(load):
            best, high = load, middle
            continue
        if load.rate < worth:
            return TooLittle(load.rate)
        low, is_full = middle + 1, not stable
    return best, is_full
