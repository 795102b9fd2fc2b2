"""A row's predicted value: physics, corrections, and the interval that held-out rows kept to."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any

from tokenmill.perf.calibrate import Effects, calibration_for
from tokenmill.perf.calibrate.effects import model_class
from tokenmill.perf.costs import Formats, Layout, Work
from tokenmill.perf.roofline import seconds_of
from tokenmill.perf.score.features import features_of
from tokenmill.perf.score.rows import Row
from tokenmill.perf.score.scenario import Scenario, scenario_of
from tokenmill.perf.terms import REQUEST, REQUEST_S, Deployment

USUAL_INTERVAL = (0.6, 1.7)
"""Measured over predicted, where no held-out row says."""

UNSEEN_GROUP = "max_throughput_unseen_hardware"
UNSEEN_WIDER = 1.9
"""How many times wider, as logarithms, intervals are on a device that no fitted row was measured on (leave one out)."""


@dataclass(frozen=True, slots=True)
class Prediction:
    row: Row
    group: str
    value: float
    low: float
    high: float
    """In the row's unit."""
    model: str
    model_class: str
    device: str

    @property
    def error(self) -> float:
        """|predicted / measured − 1|."""
        return abs(self.value / self.row.value - 1)

    @property
    def covered(self) -> bool:
        return self.low <= self.row.value <= self.high


@dataclass(frozen=True, slots=True)
class Corrections:
    """Coefficients by feature, and by group the share of the prediction within which 90 % of held-out rows lay."""

    coefficients: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]]
    devices: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """By group, the devices whose rows were among those that it was fitted to."""

    def seen(self, group: str, device: str) -> bool:
        return group not in self.devices or device in self.devices[group]

    def interval(self, group: str, device: str) -> tuple[float, float]:
        """Measured over predicted, for nine rows of ten."""
        low, high = self.intervals.get(group, USUAL_INTERVAL)
        if self.seen(group, device):
            return low, high
        return low**UNSEEN_WIDER, high**UNSEEN_WIDER

    def of(self, features: Mapping[str, float]) -> float:
        known = self.coefficients
        return sum(known.get(name, 0.0) * value for name, value in features.items())


NO_CORRECTIONS = Corrections({}, {})


@cache
def shipped_corrections() -> Corrections:
    text = resources.files("tokenmill.perf.calibration").joinpath("corrections.json").read_text(encoding="utf-8")
    return corrections_from(json.loads(text))


def corrections_from(data: Mapping[str, Any]) -> Corrections:
    intervals = {group: (float(low), float(high)) for group, (low, high) in data["intervals"].items()}
    return Corrections(data["coefficients"], intervals, data["devices"])


class Predictor:
    """Predicts rows; remembers the steps that rows have in common.

    Args:
        effects: instead of the shipped ones.
        corrections: instead of the shipped ones; ``NO_CORRECTIONS`` leaves the physics alone.
    """

    def __init__(self, effects: Effects | None = None, corrections: Corrections | None = None) -> None:
        self._effects = effects
        self._corrections = shipped_corrections() if corrections is None else corrections
        self._terms: dict[tuple[str, str, float, Formats, Layout, Work], tuple[float, ...]] = {}

    def predict(self, row: Row) -> Prediction:
        """Raises ``NotPredicted`` with the reason."""
        scenario = scenario_of(row)
        deployment = scenario.deployment
        seconds = self._seconds(row, scenario)
        features = features_of(row, scenario)
        seconds *= math.exp(self._corrections.of(features))
        value = seconds * 1e3 if scenario.amount is None else scenario.amount / seconds
        device, group = deployment.hardware.name, scenario.group
        low, high = self._corrections.interval(group, device)
        if group.startswith("max_throughput") and not self._corrections.seen(group, device):
            group = UNSEEN_GROUP
        return Prediction(
            row, group, value, value * low, value * high, deployment.shape.name, model_class(deployment.shape), device
        )

    def _seconds(self, row: Row, scenario: Scenario) -> float:
        d = scenario.deployment
        calibration = calibration_for(
            d.hardware, scenario.engine, row.release or None, shape=d.shape, formats=d.formats, effects=self._effects
        )
        total = scenario.requests * calibration.factors[REQUEST] * REQUEST_S
        for weight, work in scenario.steps:
            if weight > 0:
                total += weight * seconds_of(self._terms_of(d, work), calibration.factors)
        return total

    def _terms_of(self, d: Deployment, work: Work) -> tuple[float, ...]:
        key = (d.shape.name, d.hardware.name, d.hardware.memory_bytes_per_s, d.formats, d.layout, work)
        found = self._terms.get(key)
        if found is None:
            found = self._terms[key] = d.terms(work)
        return found
