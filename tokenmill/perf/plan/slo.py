"""What counts as good service: limits on percentiles of what clients see.

======  ==========================================================================================
ttft    time to first token
itl     inter-token latency: the gap between two arrivals
tpot    time per output token after the first, a request's mean
e2e     from sending the request to its last token
======  ==========================================================================================
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from difflib import get_close_matches

from tokenmill.core.errors import ConfigError
from tokenmill.perf.metrics import parse_limit
from tokenmill.perf.plan.workload import STATISTICS

METRICS = ("ttft", "itl", "tpot", "e2e")
USUAL = "p99"
"""What a limit without a percentile is for."""


@dataclass(frozen=True, slots=True)
class Limit:
    metric: str
    statistic: str
    """One of ``STATISTICS``."""
    seconds: float

    @property
    def name(self) -> str:
        return f"{self.metric}_{self.statistic}"

    def __str__(self) -> str:
        return f"{spell(self.name)} {show(self.seconds)}"


Limits = tuple[Limit, ...]
"""All must hold."""


def parse_slo(text: str) -> Limits:
    """``ttft_p99=0.5,itl=50ms``: seconds, or with a unit; a bare metric means its p99.

    Raises:
        ConfigError: names the key that is unknown, given twice, or whose value is not a time above 0.
    """
    known = [*METRICS, *(f"{metric}_{statistic}" for metric in METRICS for statistic in STATISTICS)]
    found: dict[str, Limit] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        key, sign, value = (word.strip() for word in part.partition("="))
        if not sign:
            raise ConfigError(f"--slo: {part!r} is not KEY=SECONDS; it wants ttft_p99=0.5,itl_p99=50ms")
        if key not in known:
            near = get_close_matches(key, known, n=1)
            hint = (
                f"did you mean {near[0]!r}?" if near else f"there are {', '.join(METRICS)} and {', '.join(STATISTICS)}"
            )
            raise ConfigError(f"--slo: unknown key {key!r}; {hint}")
        metric, _, statistic = key.partition("_")
        limit = Limit(metric, statistic or USUAL, parse_limit(key, value))
        if limit.name in found:
            raise ConfigError(f"--slo: {limit.name} is given twice")
        found[limit.name] = limit
    return tuple(found.values())


def breaches(limits: Limits, of: Callable[[str, str], float]) -> list[tuple[Limit, float]]:
    """The limits that do not hold, with what was found; ``of`` gives a (metric, statistic) in seconds."""
    found = ((limit, of(limit.metric, limit.statistic)) for limit in limits)
    return [(limit, seconds) for limit, seconds in found if not seconds <= limit.seconds]


def keeps(limits: Limits, of: Callable[[str, str], float]) -> bool:
    """All limits hold; asks no further than the first that does not."""
    return all(of(limit.metric, limit.statistic) <= limit.seconds for limit in limits)


def relaxed(limits: Limits, name: str, seconds: float) -> Limits:
    """The same with another time for one of them."""
    return tuple(replace(limit, seconds=seconds) if limit.name == name else limit for limit in limits)


def spell(name: str) -> str:
    """``itl_p99`` as people write it."""
    metric, _, statistic = name.partition("_")
    return f"{metric.upper()} {statistic}"


def show(seconds: float) -> str:
    """In seconds or milliseconds, three figures."""
    if not math.isfinite(seconds):
        return "unbounded"
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"
