"""Why: what holds the best plan back, why the next ones are not better, and what would make the impossible possible.

A remedy is never an opinion: each is a problem with one thing changed that was searched anew, and it is given with
the plan that was found. Those of limits and rate start from what the nearest candidate can do and are rounded to two
figures.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from tokenmill.perf.hardware import catalogue
from tokenmill.perf.plan.goodput import idle_load
from tokenmill.perf.plan.predict import Instance, Load, Split, seen
from tokenmill.perf.plan.prices import Prices
from tokenmill.perf.plan.search import CHUNKS, Found, Plan, Problem, Rejected, search
from tokenmill.perf.plan.slo import Limit, Limits, breaches, relaxed, show, spell
from tokenmill.perf.plan.workload import Lengths
from tokenmill.perf.roofline import COMPUTE, HOST, LINK_BANDWIDTH, LINK_LATENCY, MEMORY

NEAREST = 12
"""Rejected candidates that are looked at again when nothing is feasible."""
LEAST_RATE, RATE_TRIES, RATE_HARDWARE = 500, 8, 2
"""A lower rate is sought down to such a part, halving so often the logarithm, on so many kinds of hardware."""
COMFORT = 1.5
"""The least that an idle instance keeps takes many; so much more is shown as well."""
TRIES = 10
"""Steps of 5 % that a relaxed limit is widened by until a plan is found."""

_RELIEF = {
    MEMORY: "narrower weights or cache, more tensor parallelism, or memory of more bandwidth",
    COMPUTE: "arithmetic of fewer bits that the device has units for, more devices, or prefix caching",
    LINK_BANDWIDTH: "fewer tensor-parallel ranks, pipeline stages instead, or a faster link",
    LINK_LATENCY: "fewer tensor-parallel ranks, pipeline stages instead, or larger batches",
    HOST: "larger batches, more instances on fewer devices, or a faster host",
}


def bottleneck(load: Load | Split) -> str:
    """What bounds most of a mean step; disaggregated, one of those that generate."""
    return (load.decode if isinstance(load, Split) else load).account().bound


def relief(plan: Plan, load: Load | Split) -> str:
    """How much of a step the bottleneck takes, and what would shorten that."""
    account = (load.decode if isinstance(load, Split) else load).account()
    share = account.by_bound[account.bound] / account.seconds
    text = f"{share:.0%} of a step is {account.bound}; with that halved, a step would take {1 - share / 2:.0%}: "
    text += _RELIEF[account.bound]
    return f"{text}. More load per instance is held back by {plan.held_by}"


def why_not(plan: Plan, best: Plan, problem: Problem) -> str:
    """One line: what makes ``plan`` worse than ``best``."""
    if problem.objective == "speed":
        if plan.score > best.score:
            return f"E2E p99 {show(plan.score)}, {plan.score / best.score:.3g} × the best"
        return f"as quick, for {plan.cost / best.cost:.2g} × the cost"
    if plan.score > best.score:
        held = f"an instance is held by {plan.held_by}" if plan.pools[-1].replicas > 1 else "one instance is enough"
        return f"costs {plan.score / best.score:.2g} × the best; {held}"
    if plan.candidate.drafts:
        return "costs the same, and rests on the assumed acceptance"
    if plan.num_devices > best.num_devices:
        return f"costs the same on {plan.num_devices} devices instead of {best.num_devices}"
    if plan.used > best.used:
        return f"costs the same with less to spare ({plan.used:.0%} used, {best.used:.0%} of the best)"
    return "costs the same" + ("; two pools are more to run than one" if len(plan.pools) > len(best.pools) else "")


# ---- nothing is feasible -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Near:
    """A candidate that comes near: an instance without any load, pessimistically."""

    idle: Load
    worst: float
    """By what factor the worst limit is missed."""


def infeasible(problem: Problem, found: Found) -> tuple[str, list[dict[str, Any]]]:
    """(why, what would make it feasible)."""
    near = sorted(_looked_at_again(problem, found), key=lambda one: one.worst)
    remedies = []
    for change, other in _changes(problem, near):
        result = search(other)
        if result.plans:
            plan = result.plans[0]
            remedies.append({"change": change, "devices": plan.num_devices, "plan": str(plan)})
    return _reason(problem, found, near), remedies


def _reason(problem: Problem, found: Found, near: list[Near]) -> str:
    if near and near[0].worst > 1:
        return f"{_arithmetic(problem, near[0])}; {_tightest(problem, near)}"
    few = [one for one in found.rejected if one.num_devices is not None]
    if few:
        least = min(few, key=lambda one: one.num_devices or 0)
        return f"{problem.max_devices} devices are too few: at least {least.num_devices} are needed ({least.what})"
    if found.rejected:
        nearest = found.rejected[0]
        return f"{nearest.what}: {nearest.reason}"
    return "there is no candidate: no layout of this model exists on this hardware"


def _arithmetic(problem: Problem, near: Near) -> str:
    """The worst limit and, for a whole answer, the step that it leaves."""
    missed = breaches(problem.limits, lambda m, s: seen(near.idle, m, s))
    limit, seconds = max(missed, key=lambda pair: pair[1] / pair[0].seconds)
    text = f"even idle, {near.idle.instance.candidate} has {spell(limit.name)} {show(seconds)} > {show(limit.seconds)}"
    if limit.metric != "e2e":
        return text
    tokens = problem.workload.outputs.statistic(limit.statistic)
    left = (limit.seconds - near.idle.ttft(limit.statistic)) / max(tokens - 1, 1.0)
    step = near.idle.tpot(limit.statistic)
    if left <= 0:
        return f"{text}: the first token alone takes {show(near.idle.ttft(limit.statistic))}"
    return (
        f"{text}: {tokens:.0f} tokens within {show(limit.seconds)} need a step of at most {show(left)}, it takes "
        f"{show(step)} (a batch divides what a token costs, not how long it takes)"
    )


def _tightest(problem: Problem, near: list[Near]) -> str:
    """Of each limit, the least that any candidate reaches on its own."""
    parts = []
    for limit in problem.limits:
        best = min(near, key=lambda one: seen(one.idle, limit.metric, limit.statistic))
        seconds = seen(best.idle, limit.metric, limit.statistic)
        parts.append(f"{spell(limit.name)} {show(seconds)} on {best.idle.instance.candidate}")
    return "the tightest that can be reached: " + ", ".join(parts)


def _looked_at_again(problem: Problem, found: Found) -> Iterator[Near]:
    """The nearest of those rejected, with every limit and chunk."""
    left = [one for one in found.rejected if one.candidate is not None and math.isfinite(one.excess)]
    for rejected in _spread(left):
        assert rejected.candidate is not None
        for chunk in (CHUNKS[0], CHUNKS[-1]):
            instance = Instance(rejected.candidate, problem.workload, chunk)
            if instance.places < 1:
                continue
            idle = idle_load(instance)
            missed = breaches(problem.limits, lambda m, s, load=idle: seen(load, m, s))  # type: ignore[misc]
            yield Near(idle, max((seconds / limit.seconds for limit, seconds in missed), default=1.0))


def _spread(left: list[Rejected]) -> list[Rejected]:
    """The nearest, and the nearest of every hardware: another may be better in what the first was not judged by."""
    first = {one.hardware: one for one in reversed(left)}
    return list({id(one): one for one in (*left[:NEAREST], *first.values())}.values())


# ---- changes -----------------------------------------------------------------------------------------------


def _changes(problem: Problem, near: list[Near]) -> Iterator[tuple[str, Problem]]:
    """Problems with one thing changed, to be searched."""
    if problem.precisions is not None:
        yield f"allow precisions other than {', '.join(problem.precisions)}", replace(problem, precisions=None)
    if problem.layout is not None:
        yield f"allow layouts other than {problem.layout}", replace(problem, layout=None)
    names = {device.name for device in problem.hardware}
    if set(catalogue()) - names:
        everything = (*problem.hardware, *(one for one in catalogue().values() if one.name not in names))
        prices = Prices.among(everything, problem.prices.given)
        yield "allow other hardware", replace(problem, hardware=everything, prices=prices)
    if problem.max_devices is not None:
        yield from _more_devices(problem)
    if near and near[0].worst > 1:
        yield from _easier(problem, near)


def _more_devices(problem: Problem) -> Iterator[tuple[str, Problem]]:
    """The fewest devices that carry the load; and the load that those allowed can carry."""
    assert problem.max_devices is not None
    by_count = Prices({device.name: 1.0 for device in problem.hardware}, 1.0)
    found = search(replace(problem, max_devices=None, objective="cost", prices=by_count))
    if not found.plans:
        return
    fewest = found.plans[0].num_devices
    yield f"allow {fewest} devices", replace(problem, max_devices=fewest)
    names = list(dict.fromkeys(plan.candidate.hardware.name for plan in found.plans))[:RATE_HARDWARE]
    there = replace(problem, hardware=tuple(one for one in problem.hardware if one.name in names), top=1)
    low, high = problem.workload.rate / LEAST_RATE, problem.workload.rate
    for _ in range(RATE_TRIES):
        middle = math.sqrt(low * high)
        carried = bool(search(replace(there, workload=problem.workload.at_rate(middle))).plans)
        low, high = (middle, high) if carried else (low, middle)
    rate = _rounded(low, up=False)
    yield f"lower the rate to {rate:g} requests/s", replace(problem, workload=problem.workload.at_rate(rate))


def _easier(problem: Problem, near: list[Near]) -> Iterator[tuple[str, Problem]]:
    """Limits as wide as the nearest candidate needs; answers as short as it can give in time."""
    nearest = near[0]
    device = nearest.idle.instance.candidate.hardware
    there = replace(problem, hardware=(device,), precisions=(nearest.idle.instance.candidate.precision,))
    missed = breaches(problem.limits, lambda m, s: seen(nearest.idle, m, s))
    for step in range(TRIES):
        wider = 1.05**step
        if search(replace(there, limits=_relaxed(problem.limits, missed, wider), top=1)).plans:
            for more in (wider, wider * COMFORT):
                limits = _relaxed(problem.limits, missed, more)
                changed = [new for old, new in zip(problem.limits, limits, strict=True) if new != old]
                change = " and ".join(f"{spell(one.name)} to {show(one.seconds)}" for one in changed)
                yield f"relax {change}", replace(there, limits=limits)
            break
    yield from _shorter(problem, there, nearest)


def _relaxed(limits: Limits, missed: list[tuple[Limit, float]], wider: float) -> Limits:
    """Those that are missed, at what was found and ``wider`` times that."""
    for limit, seconds in missed:
        limits = relaxed(limits, limit.name, _rounded(seconds * wider, up=True))
    return limits


def _shorter(problem: Problem, there: Problem, nearest: Near) -> Iterator[tuple[str, Problem]]:
    whole = [limit for limit in problem.limits if limit.metric == "e2e"]
    if not whole:
        return
    fitting = min(
        (limit.seconds - nearest.idle.ttft(limit.statistic)) / nearest.idle.tpot(limit.statistic) + 1 for limit in whole
    )
    for step in range(TRIES):
        tokens = math.floor(fitting * 0.95**step)
        if tokens < 2:
            return
        shorter = replace(problem.workload, outputs=Lengths.equal(tokens))
        if search(replace(there, workload=shorter, top=1)).plans:
            yield f"answers of at most {tokens} tokens", replace(there, workload=shorter)
            return


def _rounded(value: float, *, up: bool) -> float:
    """Two figures, upwards or downwards."""
    if value <= 0:
        return 0.0
    scale = 10.0 ** (math.floor(math.log10(value)) - 1)
    found = math.ceil(value / scale - 1e-9) if up else math.floor(value / scale + 1e-9)
    return float(f"{found * scale:.3g}")
