"""Seconds per step: the roofline, with measured efficiencies, and the name of what holds the step back.

::

    seconds = Σ groups  ((f·memory)⁴ + (f·compute)⁴)^¼         what binds more, rounded where both bind
            + f·latency + f·bandwidth                          of messages
            + f·launches + f·step + f·row                      what the host and the launches add

The terms come from ``perf/terms`` (datasheet), the factors ``f`` from ``perf/calibrate``. An operation near the ridge
is bound by both sides, and real kernels round that corner off; the fourth power costs 19 % exactly on the ridge and 2
% at a ratio of two. A pipeline's step is the time of one pass through all stages; in steady flow each stage serves
another micro-batch meanwhile (``perf/steady``).

Bounds: ``compute``, ``memory bandwidth``, ``interconnect bandwidth``, ``interconnect latency``, ``host overhead``. What
else may hold an engine back (memory capacity, the scheduler) is decided above a step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tokenmill.core.step import StepPlan
from tokenmill.engine.contracts import PredictedCost
from tokenmill.perf.calibrate import Calibration
from tokenmill.perf.costs import Formats, Layout, Work
from tokenmill.perf.hardware import Hardware
from tokenmill.perf.profile import Profile
from tokenmill.perf.shape import ModelShape
from tokenmill.perf.terms import BANDWIDTH, GROUPS, LATENCY, LAUNCH, NUM_PAIRS, ROW, STEP, Deployment

COMPUTE, MEMORY = "compute", "memory bandwidth"
LINK_BANDWIDTH, LINK_LATENCY, HOST = "interconnect bandwidth", "interconnect latency", "host overhead"
BOUNDS = (COMPUTE, MEMORY, LINK_BANDWIDTH, LINK_LATENCY, HOST)


@dataclass(frozen=True, slots=True)
class StepTime:
    seconds: float
    low_s: float
    high_s: float
    """Within these 90 % of measurements are expected."""
    bound: str
    """One of ``BOUNDS``: what takes the largest part."""
    parts: Mapping[str, float]
    """Seconds by group of operations, of messages and of the host; their sum is ``seconds``."""
    by_bound: Mapping[str, float]
    """The same seconds by what binds them."""


def predict_step(
    shape: ModelShape, formats: Formats, layout: Layout, hardware: Hardware, work: Work, calibration: Calibration
) -> StepTime:
    """How long one step takes, and why."""
    terms = Deployment(shape, formats, layout, hardware).terms(work)
    return step_time(terms, calibration)


def step_time(terms: Sequence[float], calibration: Calibration) -> StepTime:
    """What ``terms`` amount to."""
    f = calibration.factors
    parts, by_bound = {}, dict.fromkeys(BOUNDS, 0.0)
    for index, group in enumerate(GROUPS):
        memory, compute = f[2 * index] * terms[2 * index], f[2 * index + 1] * terms[2 * index + 1]
        parts[group] = together(memory, compute)
        by_bound[MEMORY if memory >= compute else COMPUTE] += parts[group]
    parts["messages"] = f[LATENCY] * terms[LATENCY] + f[BANDWIDTH] * terms[BANDWIDTH]
    by_bound[LINK_LATENCY] += f[LATENCY] * terms[LATENCY]
    by_bound[LINK_BANDWIDTH] += f[BANDWIDTH] * terms[BANDWIDTH]
    parts["launches"] = f[LAUNCH] * terms[LAUNCH]
    parts["host"] = f[STEP] * terms[STEP] + f[ROW] * terms[ROW]
    by_bound[HOST] += parts["launches"] + parts["host"]
    seconds = sum(parts.values())
    low, high = calibration.interval(seconds)
    return StepTime(seconds, low, high, max(by_bound, key=lambda name: by_bound[name]), parts, by_bound)


def together(memory: float, compute: float) -> float:
    """Of what is bound by both: the larger, rounded off where they are near."""
    if memory <= 0.0 or compute <= 0.0:
        return max(memory, compute)
    large, small = (memory, compute) if memory > compute else (compute, memory)
    ratio = small / large
    ratio *= ratio
    return float(large * (1.0 + ratio * ratio) ** 0.25)


def seconds_of(terms: Sequence[float], factors: Sequence[float]) -> float:
    """``step_time(...).seconds`` and nothing else."""
    total = 0.0
    for index in range(0, 2 * NUM_PAIRS, 2):
        total += together(factors[index] * terms[index], factors[index + 1] * terms[index + 1])
    for index in range(2 * NUM_PAIRS, len(terms)):
        total += factors[index] * terms[index]
    return total


def shares_of(terms: Sequence[float], factors: Sequence[float]) -> list[float]:
    """Of ``seconds_of`` what belongs to each term: its derivative by the logarithm of the term's factor."""
    parts = [factor * term for factor, term in zip(factors, terms, strict=True)]
    for index in range(0, 2 * NUM_PAIRS, 2):
        memory, compute = parts[index], parts[index + 1]
        seconds = together(memory, compute)
        if seconds > 0.0:
            parts[index] = seconds * (memory / seconds) ** 4
            parts[index + 1] = seconds * (compute / seconds) ** 4
    return parts


class Roofline:
    """``StepCost`` of one deployment, quick enough to be asked at every step."""

    def __init__(self, deployment: Deployment, calibration: Calibration) -> None:
        self.deployment = deployment
        self.calibration = calibration
        self._profile = Profile(self.deployment)

    def predict(self, plan: StepPlan) -> PredictedCost:
        """The step's time and bound."""
        terms = self._profile.of_plan(plan.starts, plan.counts)
        f = self.calibration.factors
        total = memory_s = compute_s = 0.0
        for index in range(0, 2 * NUM_PAIRS, 2):
            memory, compute = f[index] * terms[index], f[index + 1] * terms[index + 1]
            seconds = together(memory, compute)
            total += seconds
            if memory >= compute:
                memory_s += seconds
            else:
                compute_s += seconds
        latency, bandwidth = f[LATENCY] * terms[LATENCY], f[BANDWIDTH] * terms[BANDWIDTH]
        host = f[LAUNCH] * terms[LAUNCH] + f[STEP] * terms[STEP] + f[ROW] * terms[ROW]
        by_bound = (compute_s, memory_s, bandwidth, latency, host)
        return PredictedCost(total + latency + bandwidth + host, BOUNDS[by_bound.index(max(by_bound))])

    def explain(self, work: Work) -> StepTime:
        """The same with its account and interval."""
        return step_time(self.deployment.terms(work), self.calibration)
