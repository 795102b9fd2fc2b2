"""Learning factors from rows: what ``tokenmill calibrate`` does.

The logarithm of a predicted time is smooth in the logarithms of the factors, and its derivative by each is the share of
the time that the term takes. So a few Gauss-Newton steps with a Gaussian prior around what ships (ridge regression)
find the most probable factors: a term that the rows hardly contain stays where it was, one that all of them contain
moves. Residuals beyond twice the usual count less (Student's t), so that a few wrong rows do not bend the rest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenmill.core.errors import ConfigError
from tokenmill.perf.calibrate import Calibration, Effects, calibration_for
from tokenmill.perf.hardware import find
from tokenmill.perf.roofline import seconds_of, shares_of
from tokenmill.perf.score.deployed import NotPredicted, engine_of
from tokenmill.perf.score.rows import Row, read_rows
from tokenmill.perf.score.scenario import Scenario, scenario_of
from tokenmill.perf.terms import NAMES, REQUEST, REQUEST_S

TRUST = 0.5
"""Standard deviation of a factor's logarithm before a row is seen …"""
OWN_TRUST = 1.5
"""… and of what is the engine's own: launches, host, requests."""
NOISE = 0.08
ROUNDS = 12


@dataclass(frozen=True, slots=True)
class Fitted:
    key: str
    """What the factors belong to (``perf/calibrate``)."""
    effects: Effects
    num_rows: int
    error_before: float
    error_after: float
    """Medians of |predicted / measured − 1|."""
    factors: dict[str, float]


@dataclass(slots=True)
class Case:
    """One measurement: seconds, and the terms of the steps that took them, each so many times."""

    measured_s: float
    steps: list[tuple[float, tuple[float, ...]]]
    calibration: Calibration

    def seconds(self, theta: Sequence[float]) -> float:
        factors = self.factors(theta)
        return sum(weight * seconds_of(terms, factors) for weight, terms in self.steps)

    def factors(self, theta: Sequence[float]) -> list[float]:
        return [factor * math.exp(t) for factor, t in zip(self.calibration.factors, theta, strict=True)]


def fit_files(
    paths: Sequence[Path], *, engine: str | None = None, version: str | None = None, hardware: str | None = None
) -> Fitted:
    """Factors for what the chosen rows have in common.

    Raises:
        ConfigError: a row is malformed, or no row is left that can be predicted.
    """
    device = find(hardware).name if hardware else None
    cases: list[Case] = []
    chosen: list[tuple[Row, Scenario]] = []
    for path in paths:
        for row in read_rows(path):
            if (engine and engine.lower() not in (engine_of(row), row.engine.lower())) or (
                version and version != row.version
            ):
                continue
            try:
                scenario = scenario_of(row)
            except NotPredicted:
                continue
            if device in (None, scenario.deployment.hardware.name):
                chosen.append((row, scenario))
                cases.append(_case(row, scenario))
    if not cases:
        wanted = ", ".join(
            f"{k} {v}" for k, v in (("engine", engine), ("version", version), ("hardware", hardware)) if v
        )
        raise ConfigError(
            f"{', '.join(map(str, paths))}: no row that can be predicted{' for ' + wanted if wanted else ''}"
        )
    return fit_cases(cases, _common_key(chosen))


def fit_cases(cases: Sequence[Case], key: str, prior: Sequence[tuple[float, float]] | None = None) -> Fitted:
    """The factors that these measurements make most probable, as effects of ``key``.

    Args:
        prior: of each effect, in the order of ``NAMES``, mean and standard deviation before a row is seen; None: none
            at all, within the usual widths.
    """
    theta = _fit(cases, prior or [(0.0, OWN_TRUST if name.startswith(("launch", "host")) else TRUST) for name in NAMES])
    effects = {name: {key: value} for name, value in zip(NAMES, theta, strict=True) if abs(value) >= 0.005}
    before, after = _errors(cases, [0.0] * len(NAMES)), _errors(cases, theta)
    rests = sorted(abs(math.log(case.seconds(theta) / case.measured_s)) for case in cases)
    spread = {key: max(_quantile(rests, 0.9) / 1.645, 0.02)}
    factors = {name: math.exp(value) for name, value in zip(NAMES, theta, strict=True) if abs(value) >= 0.005}
    note = f"fitted to {len(cases)} rows"
    return Fitted(
        key, Effects(effects, spread, note), len(cases), _quantile(before, 0.5), _quantile(after, 0.5), factors
    )


def _case(row: Row, scenario: Scenario) -> Case:
    d = scenario.deployment
    calibration = calibration_for(d.hardware, scenario.engine, row.release or None, shape=d.shape, formats=d.formats)
    steps = [(weight, d.terms(work)) for weight, work in scenario.steps if weight > 0]
    if scenario.requests:
        steps.append((scenario.requests, (0.0,) * REQUEST + (REQUEST_S,)))
    measured = row.value / 1e3 if scenario.amount is None else scenario.amount / row.value
    return Case(measured, steps, calibration)


def _common_key(chosen: Sequence[tuple[Row, Scenario]]) -> str:
    engines = {scenario.engine for _, scenario in chosen}
    versions = {row.version for row, _ in chosen}
    devices = {scenario.deployment.hardware.name for _, scenario in chosen}
    if len(engines) == 1:
        own = f"engine:{engines.pop()}"
        version = versions.pop() if len(versions) == 1 else ""
        return f"{own},version:{version}" if version else own
    return f"device:{devices.pop()}" if len(devices) == 1 else ""


def _errors(cases: Sequence[Case], theta: Sequence[float]) -> list[float]:
    return sorted(abs(case.seconds(theta) / case.measured_s - 1) for case in cases)


def _quantile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]


def _fit(cases: Sequence[Case], prior: Sequence[tuple[float, float]]) -> list[float]:
    size = len(NAMES)
    theta = [mean for mean, _ in prior]
    for _ in range(ROUNDS):
        hessian = [[1 / prior[i][1] ** 2 if i == j else 0.0 for j in range(size)] for i in range(size)]
        gradient = [(mean - theta[i]) / width**2 for i, (mean, width) in enumerate(prior)]
        for case in cases:
            seconds, slopes = _slopes(case, theta)
            rest = math.log(case.measured_s / seconds)
            weight = 1 / (NOISE * NOISE + rest * rest / 4)
            for i in range(size):
                if slopes[i]:
                    gradient[i] += weight * slopes[i] * rest
                    for j in range(size):
                        hessian[i][j] += weight * slopes[i] * slopes[j]
        step = solve(hessian, gradient)
        theta = [t + min(max(s, -0.7), 0.7) for t, s in zip(theta, step, strict=True)]
    return theta


def _slopes(case: Case, theta: Sequence[float]) -> tuple[float, list[float]]:
    """Seconds, and of their logarithm the derivative by each factor's."""
    factors = case.factors(theta)
    total, slopes = 0.0, [0.0] * len(NAMES)
    for weight, terms in case.steps:
        for index, part in enumerate(shares_of(terms, factors)):
            slopes[index] += weight * part
            total += weight * part
    return total, [slope / total for slope in slopes]


def solve(matrix: Sequence[Sequence[float]], right: Sequence[float]) -> list[float]:
    """x of matrix · x = right, for a symmetric positive definite matrix (Cholesky)."""
    size = len(right)
    lower = [[0.0] * size for _ in range(size)]
    for i in range(size):
        for j in range(i + 1):
            value = matrix[i][j] - sum(lower[i][k] * lower[j][k] for k in range(j))
            lower[i][j] = math.sqrt(value) if i == j else value / lower[j][j]
    y = [0.0] * size
    for i in range(size):
        y[i] = (right[i] - sum(lower[i][k] * y[k] for k in range(i))) / lower[i][i]
    x = [0.0] * size
    for i in reversed(range(size)):
        x[i] = (y[i] - sum(lower[k][i] * x[k] for k in range(i + 1, size))) / lower[i][i]
    return x
