"""From what was recorded to the result: every invariant with its worst value, its bound, and whether it held."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from tokenmill.bench.soak.judge import Quiet, trends
from tokenmill.bench.soak.record import Record
from tokenmill.perf.metrics import summarize

COUNTED = (
    ("canaries", "canaries that differed"),
    ("answers", "answers cut, hung or wrong"),
    ("errors", "errors that are not the contract's"),
    ("health", "health not answered, or untrue"),
    ("recovery", "restarts that took too long"),
    ("blocks", "quiet moments at which something was held"),
    ("batches", "batches with lines lost or doubled"),
    ("idle", "requests that failed after a rest"),
    ("shutdown", "SIGTERM that did not end well"),
)
"""Invariants of which each breach is one too many."""


def report(
    record: Record, moments: Sequence[Quiet], health_limit_s: float, limits: Mapping[str, tuple[float, float]]
) -> dict[str, Any]:
    """Load, outcomes, invariants, breaches, trends; ``passed``."""
    found: list[dict[str, Any]] = [
        {"name": name, "what": what, "worst": float(record.num_breaches[name]), "limit": 0.0} for name, what in COUNTED
    ]
    for path in ("/health/live", "/health/ready"):
        p99 = summarize(record.seconds.get(path, [])).get("p99", float("inf"))
        found.append({"name": f"{path}: p99, s", "what": "time to answer", "worst": p99, "limit": health_limit_s})
    found += [{"name": name, "what": "time", "worst": worst, "limit": limit} for name, (worst, limit) in limits.items()]
    for invariant in found:
        invariant["ok"] = invariant["worst"] <= invariant["limit"]
    judged = trends(moments)
    for trend in judged:
        found.append(
            {
                "name": f"{trend.bound.name}, {trend.role}",
                "what": str(trend),
                "worst": trend.growth,
                "limit": trend.bound.growth,
                "ok": trend.ok,
            }
        )
    outcomes: Counter[str] = Counter()
    for counts in record.outcomes.values():
        outcomes.update(counts)
    return {
        "passed": all(invariant["ok"] for invariant in found),
        "seconds": round(record.now_s, 1),
        "requests": record.num_requests,
        "outcomes": record.table(),
        "outcomes_in_all": dict(outcomes.most_common()),
        "invariants": found,
        "breaches": [asdict(breach) for breach in record.breaches],
        "trends": [
            asdict(trend) | {"bound": trend.bound.name, "slope_judged": trend.slope_judged, "ok": trend.ok}
            for trend in judged
        ],
        "latency_s": {name: summarize(seconds) for name, seconds in sorted(record.seconds.items())},
        "drift": _drift(record),
        "moments": [_moment(moment) for moment in moments],
    }


def _drift(record: Record) -> dict[str, Any]:
    """Canaries' latencies in each third of the run; told, not judged, since machines are shared."""
    seconds = record.seconds.get("canary", [])
    third = len(seconds) // 3
    return {f"third {i + 1}": summarize(seconds[i * third : (i + 1) * third]) for i in range(3)} if third else {}


def _moment(moment: Quiet) -> dict[str, Any]:
    return {
        "at_s": round(moment.at_s, 1),
        "requests": moment.requests,
        "series": moment.series,
        "processes": [asdict(process) for process in moment.processes],
    }
