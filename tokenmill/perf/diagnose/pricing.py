"""What the observed steps cost, and what they would cost if something were different.

Steps of one class share one ``Work``: the mean of their rows. Its terms (``perf/terms``: datasheet seconds by group of
operations, messages, launches, host) are multiplied by factors; the factors are fitted so that each class takes as long
as it was seen to take, and each group of kernels too where an executor measures them. Few classes cannot fix fifteen
factors, so what the steps do not tell stays near its prior (a ridge on the logarithms). An effect is the ratio of two
prices under the same factors, applied to the seconds that were measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import add

from tokenmill.engine.telemetry import StepAccount, StepClass
from tokenmill.perf.calibrate import Calibration
from tokenmill.perf.costs import Message, Rows, Work
from tokenmill.perf.hardware import Hardware
from tokenmill.perf.roofline import COMPUTE, HOST, LINK_BANDWIDTH, LINK_LATENCY, MEMORY, together
from tokenmill.perf.terms import (
    BANDWIDTH,
    GROUPS,
    LATENCY,
    LAUNCH,
    LAUNCH_S,
    NAMES,
    Deployment,
    message_seconds,
)

MAX_CLASSES = 24
"""The classes with most seconds; the others are counted as one."""

TRUST = 0.25
"""Standard deviation of a factor's logarithm before any step is seen: kernels come about as near to bandwidth and peak
as kernels do, …"""
TIMED_TRUST = 0.7
"""… where each kernel is timed the steps tell it better, …"""
LATENCY_TRUST = 0.8
"""… and what a launch, a message or the host takes differs widely, …"""
MEASURED_TRUST = 0.15
"""… unless it was measured on this machine (``tokenmill probe``)."""
HOST_INSIDE = 0.1
"""Of the usual host work per step, what is left in the executor's seconds where the host's own are measured apart."""
NOISE = 0.03
"""Of a class's mean time, relative; a class with a small share of all seconds counts less."""
ITERATIONS = 12

SLOWEST = 4.0
"""A kernel that takes longer than so many times its roofline is not slow because of bandwidth or peak: the rest is what
starting it and waiting for all its threads takes."""

HOST_TERMS = range(LAUNCH, len(NAMES))
"""Launches, and what the host does per step, row and request."""

_FARTHEST = math.log(SLOWEST)

PART_OF_GROUP = {
    "linear": "weights",
    "experts": "weights",
    "prefill": "attention",
    "decode": "KV",
    "other": "other kernels",
}
MODEL_PARTS = ("weights", "KV", "attention", "other kernels", "collectives", "launch gaps")

KERNEL_PARTS = {"linear": "weights", "attention": "attention", "choose": "sampling"}
"""Beginning of a measured kernel's name → part; the others are ``other kernels``."""

Table = dict[tuple[str, str], float]
"""(part, bound) → seconds."""


@dataclass(frozen=True, slots=True)
class Observed:
    """Steps of one size: how many, how long each took, and an average one's work."""

    steps: float
    seconds: float
    """Of all."""
    work: Work


def work_of(each: StepClass) -> Work:
    """An average step of the class."""
    rows: list[Rows] = []
    if each.decode_rows:
        rows.append(Rows(1, each.decode_positions / each.decode_rows - 1, each.decode_rows / each.steps))
    if each.prefill_rows:
        tokens, start = each.prefill_tokens / each.prefill_rows, each.prefill_starts / each.prefill_rows
        rows.append(Rows(tokens, start, each.prefill_rows / each.steps))
    return Work(tuple(rows), each.outputs / each.steps)


def observed(account: StepAccount, max_classes: int = MAX_CLASSES) -> list[Observed]:
    """The account's classes, the small ones together."""
    ranked = sorted((each for each in account.classes.values() if each.steps), key=lambda each: -each.seconds)
    large, rest = ranked[:max_classes], ranked[max_classes:]
    if rest:
        large.append(StepClass(*(sum(column) for column in zip(*rest, strict=True))))
    return [Observed(each.steps, each.seconds, work_of(each)) for each in large]


class Pricer:
    """Prices steps of ``deployment`` under factors that were fitted to what was measured."""

    def __init__(self, deployment: Deployment, account: StepAccount, prior: Calibration, *, fit: bool = True) -> None:
        self.deployment = deployment
        self._join = joining(deployment.hardware)
        self.classes = observed(account) if fit else observed(account, 8)
        self.kernels = _kernel_parts(account.kernels)
        self._terms = [deployment.terms(each.work) for each in self.classes]
        self._prior, trusts = prior_factors(
            deployment, prior, host_apart="scheduling" in account.parts, timed=bool(self.kernels)
        )
        self.factors = self._fit(self._prior, trusts) if fit and self.classes else self._prior

    # ---- prices --------------------------------------------------------------------------------------------

    @property
    def seconds(self) -> float:
        """What all observed steps cost by the model; near what was measured, if the model is right."""
        return sum(
            each.steps * self._price(terms, self.factors) for each, terms in zip(self.classes, self._terms, strict=True)
        )

    @property
    def error(self) -> float:
        """Mean |model / measured - 1| of a class's seconds, by seconds."""
        pairs = [
            (each.steps * self._price(terms, self.factors), each.seconds)
            for each, terms in zip(self.classes, self._terms, strict=True)
        ]
        total = sum(measured for _, measured in pairs)
        return sum(abs(model - measured) for model, measured in pairs) / total if total else 0.0

    def step_s(self, work: Work, deployment: Deployment | None = None) -> float:
        """One step of ``work``."""
        return self._price((deployment or self.deployment).terms(work), self.factors) if work.rows else 0.0

    def with_deployment(self, deployment: Deployment, factors: Sequence[float] | None = None) -> float:
        """Price of the same steps elsewhere, over their price here."""
        there = sum(
            each.steps * self._price(deployment.terms(each.work), factors or self.factors) for each in self.classes
        )
        return there / self.seconds

    def with_factors(self, change: Mapping[int, float]) -> float:
        """Price with some terms multiplied, over the price as it is."""
        factors = [factor * change.get(index, 1.0) for index, factor in enumerate(self.factors)]
        there = sum(
            each.steps * self._price(terms, factors) for each, terms in zip(self.classes, self._terms, strict=True)
        )
        return there / self.seconds

    def with_rows(self, times: float, deployment: Deployment | None = None, prompts: float = 1.0) -> float:
        """Price of the same work with ``times`` as many sequences generating together, over the price as it is.

        Fewer steps with more rows; what prompts add to a step stays what it is, or becomes a share ``prompts`` of it.
        """
        there = 0.0
        for each in self.classes:
            decode = each.work.only(decode=True)
            if not decode:
                there += each.steps * prompts * self.step_s(each.work, deployment)
                continue
            alone = Work(decode, sum(row.times for row in decode))
            merged = alone.scaled(times)
            beside = max(self.step_s(each.work, deployment) - self.step_s(alone, deployment), 0.0)
            there += each.steps * (self.step_s(merged, deployment) / times + prompts * beside)
        return there / self.seconds

    def with_chunks(self, times: float) -> float:
        """Price of the same work with prompts cut into pieces ``times`` as large, over the price as it is."""
        there = 0.0
        for each in self.classes:
            prompts = each.work.only(decode=False)
            if not prompts:
                there += each.steps * self.step_s(each.work)
                continue
            decode = each.work.only(decode=True)
            alone = Work(decode, sum(row.times for row in decode))
            larger = Work((*decode, *(replace(row, tokens=row.tokens * times) for row in prompts)), each.work.outputs)
            # Of ``times`` steps one takes their prompts together, the others only generate.
            there += each.steps / times * (self.step_s(larger) + (times - 1) * self.step_s(alone))
        return there / self.seconds

    # ---- where the seconds went ----------------------------------------------------------------------------

    def table(self, model_s: float) -> Table:
        """``model_s``, the measured seconds of the model, by part and by what bounds it; adds up to them."""
        table: Table = {}
        for each, terms in zip(self.classes, self._terms, strict=True):
            priced = split(terms, self.factors, self._join)
            scale = each.seconds / (sum(priced.values()) or 1.0)
            for key, seconds in priced.items():
                table[key] = table.get(key, 0.0) + seconds * scale
        if self.kernels:
            table = _held_to(table, self._rooflines(), self.kernels, model_s)
        total = sum(table.values())
        return {key: seconds * model_s / total for key, seconds in table.items()} if total else {}

    def _rooflines(self) -> dict[str, float]:
        """Seconds of each part under the prior, for all steps: about what the ceilings allow."""
        found: dict[str, float] = {}
        for each, terms in zip(self.classes, self._terms, strict=True):
            for (part, _), seconds in split(terms, self._prior, self._join).items():
                found[part] = found.get(part, 0.0) + each.steps * seconds
        return found

    # ---- the fit -------------------------------------------------------------------------------------------

    def _fit(self, prior: Sequence[float], trusts: Sequence[float]) -> tuple[float, ...]:
        """Gauss-Newton on the factors' logarithms, with a ridge towards the prior."""
        logs = [0.0] * len(NAMES)
        targets = self._targets()
        for _ in range(ITERATIONS):
            factors = [factor * math.exp(log) for factor, log in zip(prior, logs, strict=True)]
            step = _newton_step(targets, factors, logs, trusts)
            logs = [log + max(-1.0, min(1.0, change)) for log, change in zip(logs, step, strict=True)]
            logs[:LATENCY] = [max(-_FARTHEST, min(_FARTHEST, log)) for log in logs[:LATENCY]]
            if max(map(abs, step)) < 1e-4:
                break
        return tuple(factor * math.exp(log) for factor, log in zip(prior, logs, strict=True))

    def _targets(self) -> list[tuple[float, float, Callable[[Sequence[float]], float]]]:
        """(measured seconds, weight, price by factors) of each class, and of each measured part."""
        total = sum(each.seconds for each in self.classes)
        targets: list[tuple[float, float, Callable[[Sequence[float]], float]]] = []
        for each, terms in zip(self.classes, self._terms, strict=True):
            if each.seconds > 0.0:
                weight = (each.seconds / total) ** 0.5 / NOISE
                targets.append((each.seconds, weight, self._price_of(each.steps, terms)))
        for part, seconds in self.kernels.items():
            if part != "sampling" and seconds > 0.0:
                targets.append((seconds, (seconds / total) ** 0.5 / NOISE, self._price_of_part(part)))
        return targets

    def _price(self, terms: Sequence[float], factors: Sequence[float]) -> float:
        return sum(split(terms, factors, self._join).values())

    def _price_of(self, steps: float, terms: Sequence[float]) -> Callable[[Sequence[float]], float]:
        return lambda factors: steps * self._price(terms, factors)

    def _price_of_part(self, part: str) -> Callable[[Sequence[float]], float]:
        names = {"attention": ("attention", "KV")}.get(part, (part,))
        join = self._join
        pairs = [2 * i for i, group in enumerate(GROUPS) if PART_OF_GROUP[group] in names]

        def price(factors: Sequence[float]) -> float:
            return sum(
                each.steps * join(factors[i] * terms[i], factors[i + 1] * terms[i + 1])
                for each, terms in zip(self.classes, self._terms, strict=True)
                for i in pairs
            )

        return price


def prior_factors(
    deployment: Deployment, prior: Calibration, *, host_apart: bool, timed: bool = False
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Factors before any step is seen, and how far each may be from the truth (in its logarithm).

    Args:
        host_apart: the host's planning and text are measured; what the executor says is almost the model's alone.
        timed: so are the kernels.
    """
    factors, trusts = list(prior.factors), [TIMED_TRUST if timed else TRUST] * len(NAMES)
    for index in (LATENCY, *HOST_TERMS):
        trusts[index] = LATENCY_TRUST
        if host_apart and index not in (LATENCY, LAUNCH):
            factors[index] *= HOST_INSIDE
    for index, name, unit_s in (
        (LAUNCH, "kernel_floor_s", LAUNCH_S),
        (LATENCY, "all_reduce_latency_s", _smallest_message_s(deployment)),
    ):
        figure = deployment.hardware.observed.get(name)
        if figure is not None and figure.confidence == "measured" and unit_s:
            factors[index] = figure.value / unit_s
            trusts[index] = LATENCY_TRUST if timed else MEASURED_TRUST
    return tuple(factors), tuple(trusts)


def _smallest_message_s(deployment: Deployment) -> float:
    """What the terms take for an all-reduce of nothing; 0 on one device."""
    ranks = deployment.layout.tp
    return message_seconds(Message("all_reduce", ranks, 4.0), deployment.hardware)[0] if ranks > 1 else 0.0


def _newton_step(
    targets: Sequence[tuple[float, float, Callable[[Sequence[float]], float]]],
    factors: Sequence[float],
    logs: Sequence[float],
    trusts: Sequence[float],
) -> list[float]:
    """The change of the logarithms that a linear model of the residuals asks for."""
    size, nudge = len(factors), 1e-4
    matrix = [[0.0] * size for _ in range(size)]
    right = [-log / trust**2 for log, trust in zip(logs, trusts, strict=True)]
    for index, trust in enumerate(trusts):
        matrix[index][index] = 1.0 / trust**2
    for measured, weight, price in targets:
        now = price(factors)
        if now <= 0.0:
            continue
        slopes = []
        for index in range(size):
            moved = list(factors)
            moved[index] *= 1.0 + nudge
            slopes.append(weight * (price(moved) / now - 1.0) / nudge)
        residual = weight * math.log(measured / now)
        for i, slope in enumerate(slopes):
            if slope:
                right[i] += slope * residual
                row = matrix[i]
                for j, other in enumerate(slopes):
                    row[j] += slope * other
    return _solve(matrix, right)


def _solve(matrix: list[list[float]], right: list[float]) -> list[float]:
    """Of a positive definite system, by elimination."""
    size = len(right)
    for i in range(size):
        for j in range(i + 1, size):
            ratio = matrix[j][i] / matrix[i][i]
            if ratio:
                for k in range(i, size):
                    matrix[j][k] -= ratio * matrix[i][k]
                right[j] -= ratio * right[i]
    found = [0.0] * size
    for i in reversed(range(size)):
        rest = sum(matrix[i][k] * found[k] for k in range(i + 1, size))
        found[i] = (right[i] - rest) / matrix[i][i]
    return found


Join = Callable[[float, float], float]
"""(seconds of memory, seconds of arithmetic) → seconds of both."""


def joining(hardware: Hardware) -> Join:
    """How reading and computing share the time of a group of operations.

    An accelerator does both at once, so the longer one shows. The instructions of a processor's kernels alternate
    between loading, converting and multiplying: there both show (the 8-bit products of Qwen3 0.6B take 14 ms a step at
    one row, 21 at eight and 54 at 32: a straight line; results/step-qwen3-0.6b-int8.json).
    """
    return add if hardware.kind == "cpu" else together


def split(terms: Sequence[float], factors: Sequence[float], join: Join) -> Table:
    """One step's seconds by part and bound."""
    table: Table = {}
    for index, group in enumerate(GROUPS):
        memory, compute = factors[2 * index] * terms[2 * index], factors[2 * index + 1] * terms[2 * index + 1]
        if not memory and not compute:
            continue
        part = PART_OF_GROUP[group]
        found = [(MEMORY, memory), (COMPUTE, compute)]
        if join is together:
            found = [(MEMORY if memory >= compute else COMPUTE, together(memory, compute))]
        for bound, seconds in found:
            table[part, bound] = table.get((part, bound), 0.0) + seconds
    table["collectives", LINK_LATENCY] = factors[LATENCY] * terms[LATENCY]
    table["collectives", LINK_BANDWIDTH] = factors[BANDWIDTH] * terms[BANDWIDTH]
    table["launch gaps", HOST] = sum([factors[index] * terms[index] for index in HOST_TERMS])
    return table


def _kernel_parts(kernels: Mapping[str, float]) -> dict[str, float]:
    """Measured seconds by part; attention over prompts and single tokens is one kernel."""
    found: dict[str, float] = {}
    for name, seconds in kernels.items():
        part = next((part for begin, part in KERNEL_PARTS.items() if name.startswith(begin)), "other kernels")
        found[part] = found.get(part, 0.0) + seconds
    return found


def _held_to(table: Table, rooflines: Mapping[str, float], kernels: Mapping[str, float], model_s: float) -> Table:
    """``table`` with each part as long as its kernels were measured to be; the rest of the model's time is gaps.

    What a part takes beyond ``SLOWEST`` times its roofline is bound by neither memory nor arithmetic.
    """
    found: Table = {}
    for part, members in (("weights", ("weights",)), ("attention", ("attention", "KV")), _OTHER):
        inside = {key: seconds for key, seconds in table.items() if key[0] in members}
        total, measured = sum(inside.values()), kernels.get(part, 0.0)
        if not total:
            continue
        bound = min(measured, SLOWEST * sum(rooflines.get(name, 0.0) for name in members))
        for (name, by), seconds in inside.items():
            found[name, by] = seconds * bound / total
            found[name, HOST] = found.get((name, HOST), 0.0) + seconds * (measured - bound) / total
    found["launch gaps", HOST] = max(0.0, model_s - sum(found.values()))
    return found


_OTHER = ("other kernels", ("other kernels",))
