"""What a simulation amounts to, in the form that measured runs have (``perf/result``), and what only it can know.

Beside the run stand: ``pools`` (how busy, how full, what bound the steps), ``replicas`` (the same one by one, for up to
``MAX_LISTED``), ``events`` (preemptions, restarts, transfers …), ``queue`` (by Little's law: the mean number waiting is
the waiting of all requests over the time), and ``cost`` where the hardware has a price or a power. Nothing is NaN: what
there is none of is empty, absent or null.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tokenmill.perf.metrics import SLO, summarize
from tokenmill.perf.result import Counts, Delivered, Seen, Window, make_run
from tokenmill.perf.simulate.cluster import Outcome
from tokenmill.perf.simulate.pool import Pool
from tokenmill.perf.simulate.replica import Replica, Usage
from tokenmill.perf.simulate.workload import Trace

MAX_LISTED = 64
MAX_ERRORS = 10


@dataclass(frozen=True, slots=True)
class Economics:
    """What a replica costs to keep."""

    num_devices: int = 1
    price_per_hour: float | None = None
    """Of one device."""
    tdp_w: float | None = None
    """Of one device."""


def make_report(outcome: Outcome, trace: Trace, slo: SLO, economics: Economics) -> dict[str, Any]:
    """The result of a simulation as one object, ready for JSON."""
    done = [served for served in outcome.served if served.done]
    timelines = [served.timeline() for served in done]
    window = Window("all", 0.0, outcome.end_s)
    delivered = Delivered(
        len(done),
        sum(served.prompt_tokens for served in done),
        sum(served.output_tokens for served in done),
        sum(served.cached_tokens for served in done),
    )
    seen = Seen(timelines, {"queue_s": [served.queue_s for served in done]})
    run = make_run(seen, Counts(completed=len(done), failed=len(outcome.served) - len(done)), delivered, window, slo)
    run["latency"]["itl_s"] = outcome.gaps.histogram.summary()
    replicas = {name: _replicas(pool) for name, pool in outcome.pools.items()}
    everyone = [replica for found in replicas.values() for replica in found]
    report: dict[str, Any] = {
        "rate_per_s": trace.rate_per_s,
        **run,
        "errors": _errors(outcome),
        "load": load_of(trace),
        "queue": {
            "mean_waiting": sum(served.queue_s for served in done) / window.duration_s,
            "mean_in_system": sum(timeline.e2e_s for timeline in timelines) / window.duration_s,
        },
        "events": _events(outcome, everyone),
        "pools": {name: _pool(found, outcome.pools[name], outcome.end_s) for name, found in replicas.items()},
    }
    if len(everyone) <= MAX_LISTED:
        report["replicas"] = [
            {"replica": one.number, "pool": name, **_usage([one], outcome.end_s)}
            for name, found in replicas.items()
            for one in found
        ]
    report["cost"] = _cost(everyone, outcome.end_s, delivered, economics)
    return {name: finite(part) for name, part in report.items()}


def load_of(trace: Trace) -> dict[str, Any]:
    """What was asked for."""
    return {
        "trace": trace.name,
        "format": trace.format,
        "requests": len(trace.requests),
        "rate_per_s": trace.rate_per_s,
        "span_s": trace.span_s,
        "input_tokens": summarize(r.prompt_tokens for r in trace.requests),
        "output_tokens": summarize(r.output_tokens for r in trace.requests),
        "shares_prefixes": trace.shares_prefixes,
        **trace.notes,
    }


def finite(value: Any) -> Any:
    """The same with null for every number that is none."""
    if isinstance(value, dict):
        return {key: finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _replicas(pool: Pool) -> list[Replica]:
    return sorted([*pool.gone, *pool.replicas.values()], key=lambda replica: replica.number)


def _alive_s(replica: Replica, end_s: float) -> float:
    """Cold starts included: they are paid for."""
    gone_s = end_s if replica.gone_s is None else min(replica.gone_s, end_s)
    return max(gone_s - replica.born_s, 0.0)


def _pool(replicas: Sequence[Replica], pool: Pool, end_s: float) -> dict[str, Any]:
    scaling = pool.config.scaling
    return {
        "router": pool.config.router,
        "replicas_at_start": pool.config.replicas,
        "replicas_started": len(replicas),
        "replicas_mean": sum(_alive_s(replica, end_s) for replica in replicas) / max(end_s, 1e-9),
        "cold_starts": pool.num_cold_starts,
        "autoscale": asdict(scaling) if scaling else None,
        **_usage(replicas, end_s),
    }


def _usage(replicas: Sequence[Replica], end_s: float) -> dict[str, Any]:
    """Of one replica, or of several taken together."""
    usages: list[Usage] = [replica.usage for replica in replicas]
    alive_s = sum(_alive_s(replica, end_s) for replica in replicas)
    busy_s = sum(replica.executor.busy_s for replica in replicas)
    blocks_s = sum(replica.cache.pool.num_blocks * _alive_s(replica, end_s) for replica in replicas)
    queried = sum(replica.cache.num_queried_tokens for replica in replicas)
    bound_s: dict[str, float] = {}
    for replica in replicas:
        for bound, seconds in replica.executor.bound_s.items():
            bound_s[bound] = bound_s.get(bound, 0.0) + seconds
    return {
        "alive_s": alive_s,
        "busy_s": busy_s,
        "utilisation": _share(busy_s, alive_s),
        "bound_share": {name: _share(seconds, busy_s) for name, seconds in sorted(bound_s.items())},
        "requests": sum(usage.num_requests for usage in usages),
        "steps": sum(usage.num_steps for usage in usages),
        "steps_planned": sum(usage.num_planned_steps for usage in usages),
        "mean_batch": _share(sum(usage.running_seconds for usage in usages), busy_s),
        "max_batch": max((usage.max_running for usage in usages), default=0),
        "max_waiting": max((usage.max_waiting for usage in usages), default=0),
        "kv_blocks": sum(replica.cache.pool.num_blocks for replica in replicas),
        "kv_use_mean": _share(sum(usage.held_seconds for usage in usages), blocks_s),
        "kv_use_max": max((r.usage.max_held / r.cache.pool.num_blocks for r in replicas), default=0.0),
        "prefix_hit_share": _share(sum(replica.cache.num_hit_tokens for replica in replicas), queried),
        "preemptions": sum(usage.num_preemptions for usage in usages),
    }


def _events(outcome: Outcome, replicas: Sequence[Replica]) -> dict[str, Any]:
    return {
        "preemptions": sum(replica.usage.num_preemptions for replica in replicas),
        "failures": outcome.num_failures,
        "restarts": sum(served.num_restarts for served in outcome.served),
        "transfers": outcome.num_transfers,
        "transfer_wait_mean_s": outcome.transfer_wait_s / outcome.num_transfers if outcome.num_transfers else None,
        "simulated_events": outcome.num_events,
    }


def _errors(outcome: Outcome) -> dict[str, int]:
    """The most frequent reasons of failure."""
    counts: dict[str, int] = {}
    for served in outcome.served:
        if served.error is not None:
            counts[served.error] = counts.get(served.error, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: -item[1])[:MAX_ERRORS])


def _cost(replicas: Sequence[Replica], end_s: float, delivered: Delivered, economics: Economics) -> dict[str, Any]:
    """Device hours are paid for from the decision to start on; energy lies between busy and all time at full power."""
    alive_s = sum(_alive_s(replica, end_s) for replica in replicas) * economics.num_devices
    busy_s = sum(replica.executor.busy_s for replica in replicas) * economics.num_devices
    found: dict[str, Any] = {"devices": economics.num_devices, "device_hours": alive_s / 3600}
    if economics.price_per_hour is not None:
        price = alive_s / 3600 * economics.price_per_hour
        found |= {"price": price, "price_per_million_output_tokens": _share(price * 1e6, delivered.output_tokens)}
    if economics.tdp_w is not None:
        found["energy_wh"] = {
            "busy_at_tdp": busy_s * economics.tdp_w / 3600,
            "always_at_tdp": alive_s * economics.tdp_w / 3600,
        }
        found["joules_per_output_token"] = _share(busy_s * economics.tdp_w, delivered.output_tokens)
    return found


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole > 0 else None
