"""One form for what was measured and what was simulated, so that the two can be laid side by side.

A *run* is one load on one engine, over a stated window of time::

    requests     sent, completed, failed, cancelled, truncated, warmup
    tokens       input, cached, output
    window       name, begin_s, end_s, duration_s
    throughput   requests_per_s, input_tokens_per_s, output_tokens_per_s
    latency      ttft_s, tpot_s, itl_s, e2e_s … each mean, p50, p90, p95, p99, max
    slo          the limits, in seconds
    goodput      requests_per_s, share

A result is a run with ``bench`` (what kind it is), ``engine`` and ``model`` beside it. A sweep holds ``points``
instead: a run each, with what was varied (``rate_per_s``, ``concurrency``, ``options``). Every field is explained in
``docs/reference/bench-schema.md``.

Only requests that were answered as asked have latencies: one that failed at once would be the quickest of all, one
that was cut short would be quicker than it should be. They are counted, and they are no goodput.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from tokenmill.perf.metrics import SLO, Timeline, summarize

RUN_KINDS = ("serve", "offline", "simulate")
"""``bench`` of the results that hold runs."""
RUN_FIELDS = ("requests", "tokens", "window", "throughput", "latency", "goodput")
"""What no run may lack."""
LATENCIES = ("ttft_s", "tpot_s", "itl_s", "e2e_s")
GOOD_SHARE = 0.9
"""An offered rate is sustained where this share of the requests keeps every limit (DistServe, arXiv 2401.09670)."""


@dataclass(frozen=True, slots=True)
class Counts:
    """What became of the requests. ``warmup`` are in none of the others."""

    completed: int = 0
    failed: int = 0
    """Refused, cut, timed out, broken."""
    cancelled: int = 0
    """Given up by the client, or by the server on somebody's wish."""
    truncated: int = 0
    """Ended by the server before the length that was asked for."""
    warmup: int = 0

    @property
    def sent(self) -> int:
        return self.completed + self.failed + self.cancelled + self.truncated


@dataclass(frozen=True, slots=True)
class Delivered:
    """What came out during the window."""

    requests: int
    input_tokens: float
    output_tokens: float
    cached_tokens: int = 0
    """Of the input, what the server had computed before."""


@dataclass(frozen=True, slots=True)
class Window:
    """The time that the rates are over, in seconds since the first request was meant to go out."""

    name: str
    begin_s: float
    end_s: float

    @property
    def duration_s(self) -> float:
        return max(self.end_s - self.begin_s, 1e-9)


@dataclass(frozen=True, slots=True)
class Seen:
    """The requests of a window that were answered as asked."""

    timelines: Sequence[Timeline]
    more: Mapping[str, Iterable[float]] = field(default_factory=dict)
    """Other times or counts per request to be summarised beside the latencies: name → values."""


def make_run(seen: Seen, counts: Counts, delivered: Delivered, window: Window, slo: SLO) -> dict[str, Any]:
    """A run, as the module's docstring draws it."""
    timelines = seen.timelines
    good = sum(slo.met_by(timeline) for timeline in timelines)
    duration_s = window.duration_s
    return {
        "requests": {"sent": counts.sent, **asdict(counts)},
        "tokens": {
            "input": delivered.input_tokens,
            "cached": delivered.cached_tokens,
            "output": delivered.output_tokens,
        },
        "window": {**asdict(window), "duration_s": duration_s},
        "throughput": {
            "requests_per_s": delivered.requests / duration_s,
            "input_tokens_per_s": delivered.input_tokens / duration_s,
            "output_tokens_per_s": delivered.output_tokens / duration_s,
        },
        "latency": {
            "ttft_s": summarize(timeline.ttft_s for timeline in timelines),
            "tpot_s": summarize(timeline.tpot_s for timeline in timelines if timeline.output_tokens > 1),
            "itl_s": summarize(gap for timeline in timelines for gap in timeline.itl_s),
            "e2e_s": summarize(timeline.e2e_s for timeline in timelines),
            **{name: summarize(values) for name, values in seen.more.items()},
        },
        "slo": {name: limit for name, limit in asdict(slo).items() if limit is not None},
        "goodput": {
            "requests_per_s": good / duration_s,
            "share": good / max(counts.sent - counts.cancelled, 1),
        },
    }


def runs_of(result: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The points of a sweep, or the result itself as the only run."""
    points = result.get("points")
    return list(points) if isinstance(points, list) else [result]


def missing_in(run: Mapping[str, Any]) -> list[str]:
    """Which fields ``run`` would need to be one, as paths: ``["latency.ttft_s"]``."""
    missing = [name for name in RUN_FIELDS if not isinstance(run.get(name), Mapping)]
    if "latency" not in missing:
        missing += [f"latency.{name}" for name in LATENCIES if not isinstance(run["latency"].get(name), Mapping)]
    if "throughput" not in missing and "output_tokens_per_s" not in run["throughput"]:
        missing.append("throughput.output_tokens_per_s")
    return missing


def offered_rate(run: Mapping[str, Any]) -> float:
    """Requests a second that were sent; where they were sent at once or in a closed loop, what was completed."""
    rate = run.get("rate_per_s")
    return float(run["throughput"]["requests_per_s"] if rate is None else rate)


def goodput_knee(runs: Iterable[Mapping[str, Any]], share: float = GOOD_SHARE) -> float | None:
    """The highest offered rate up to which every rate had ``share`` of its requests within the SLO.

    None without an SLO, or where even the lowest rate had not.
    """
    knee = None
    for run in sorted(runs, key=offered_rate):
        if not run.get("slo") or run["goodput"]["share"] < share:
            break
        knee = offered_rate(run)
    return knee


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Which of the (latency, throughput) pairs no other beats in both, by growing latency."""
    front, best = [], -math.inf
    for index in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if points[index][1] > best:
            front.append(index)
            best = points[index][1]
    return front
