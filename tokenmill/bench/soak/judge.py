"""Does it leak? Told from what each process held at the quiet moments of a run.

A process that leaks grows with what it is asked, so its memory is laid over the number of requests. The slope is
Theil's and Sen's: the median of the slopes of all pairs of moments. Up to 29 % of the moments may be off (a collection
not yet run, a grammar being tried) without moving it much. Only pairs within the life of one process count, and of a
process only what comes after its warm-up, a third of its life, when caches and pools fill; a server also keeps the
accounts of its last ten thousand requests, so its warm-up lasts until there have been as many.

Two bounds, since a slope over few requests is mostly noise::

    slope    at most ``SLOPE`` a thousand requests; judged if the moments span ``MIN_REQUESTS``
    growth   slope × requests between the first and the last moment: at most ``GROWTH``; always judged

The bounds are below those of the cases (SK-01: 1 MiB a thousand requests), so that a leak of a kibibyte a request,
which is 0.98 MiB a thousand, is found.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import median

from tokenmill.bench.soak.process import Process

MIB = 2**20
WARMUP_SHARE = 1 / 3
KEPT_ACCOUNTS = 10_000
MIN_REQUESTS = 4_000
MIN_MOMENTS = 6


@dataclass(frozen=True, slots=True)
class Quiet:
    """What there was at one quiet moment."""

    at_s: float
    requests: int
    """Sent since the run began."""
    processes: tuple[Process, ...]
    series: int
    """Lines of ``/metrics``."""


@dataclass(frozen=True, slots=True)
class Bound:
    """How much a quantity may grow."""

    name: str
    unit: str
    growth: float
    """Over the moments that count."""
    slope: float | None = None
    """A thousand requests; None: the growth alone is judged."""


MEMORY = Bound("memory", "MiB", growth=64.0, slope=0.75)
DESCRIPTORS = Bound("descriptors", "", growth=8.0)
THREADS = Bound("threads", "", growth=4.0)
SERIES = Bound("metric series", "", growth=150.0)


@dataclass(frozen=True, slots=True)
class Trend:
    """How one quantity of one role went."""

    role: str
    bound: Bound
    moments: int
    """That count."""
    requests: int
    """The longest span of them within one process."""
    per_thousand: float
    growth: float
    first: float
    last: float
    most: float

    @property
    def slope_judged(self) -> bool:
        return self.bound.slope is not None and self.requests >= MIN_REQUESTS and self.moments >= MIN_MOMENTS

    @property
    def ok(self) -> bool:
        steep = self.slope_judged and self.bound.slope is not None and self.per_thousand > self.bound.slope
        return not steep and self.growth <= self.bound.growth

    def __str__(self) -> str:
        unit = f" {self.bound.unit}" if self.bound.unit else ""
        limit = f", at most {self.bound.slope:g}" if self.slope_judged else ""
        return (
            f"{self.bound.name} of the {self.role}: {self.per_thousand:+.3f}{unit} a thousand requests{limit}; "
            f"{self.growth:+.1f}{unit} in all, at most {self.bound.growth:g}"
        )


def theil_sen(lives: Sequence[Sequence[tuple[float, float]]]) -> float:
    """Median slope over all pairs of points of the same life; 0 where there is no pair."""
    slopes = [(y2 - y1) / (x2 - x1) for life in lives for (x1, y1), (x2, y2) in combinations(life, 2) if x2 != x1]
    return median(slopes) if slopes else 0.0


def trends(moments: Sequence[Quiet]) -> list[Trend]:
    """Every quantity that must stay flat, of the server's process, of its engines, and of the metrics page."""
    quantities: tuple[tuple[Bound, Callable[[Process], float]], ...] = (
        (MEMORY, lambda process: process.rss_bytes / MIB),
        (DESCRIPTORS, lambda process: process.descriptors),
        (THREADS, lambda process: process.threads),
    )
    found = []
    for role in ("server", "engine"):
        lives = _lives(moments, role)
        for bound, value in quantities if lives else ():
            points = [[(requests, value(process)) for requests, process in life] for life in lives]
            found.append(_trend(role, bound, [_warm(life, role) for life in points]))
    page = [(moment.requests, float(moment.series)) for moment in moments]
    return [*found, _trend("metrics", SERIES, [_warm(page, "server")])]


def _lives(moments: Sequence[Quiet], role: str) -> list[list[tuple[int, Process]]]:
    """What there was of each process of a role, moment by moment."""
    lives: dict[int, list[tuple[int, Process]]] = {}
    for moment in moments:
        for process in moment.processes:
            if process.role == role:
                lives.setdefault(process.pid, []).append((moment.requests, process))
    return list(lives.values())


def _warm(life: list[tuple[int, float]], role: str) -> list[tuple[int, float]]:
    """Without its warm-up."""
    if not life:
        return []
    first, last = life[0][0], life[-1][0]
    begin = first + WARMUP_SHARE * (last - first)
    if role == "server" and last >= KEPT_ACCOUNTS + MIN_REQUESTS:
        begin = max(begin, KEPT_ACCOUNTS)
    return [point for point in life if point[0] >= begin]


def _trend(role: str, bound: Bound, lives: Sequence[Sequence[tuple[int, float]]]) -> Trend:
    values = [value for life in lives for _, value in life]
    slope = theil_sen(lives)
    span = max((life[-1][0] - life[0][0] for life in lives if life), default=0)
    return Trend(
        role,
        bound,
        len(values),
        span,
        per_thousand=1000 * slope,
        growth=slope * span,
        first=values[0] if values else 0.0,
        last=values[-1] if values else 0.0,
        most=max(values, default=0.0),
    )
