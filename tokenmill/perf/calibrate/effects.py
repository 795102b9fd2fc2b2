"""``Effects``: logarithms by term and by what they belong to; ``Calibration``: their sum for one deployment."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources

from tokenmill.perf.calibrate.files import read_effects
from tokenmill.perf.costs import Formats
from tokenmill.perf.hardware import Hardware
from tokenmill.perf.shape import GroupedAttention, LatentAttention, ModelShape, RecurrentMixer
from tokenmill.perf.terms import NAMES

UNCERTAIN = 0.35
"""Spread (standard deviation of the logarithm) of a step's time where only the datasheet is known."""


@dataclass(frozen=True, slots=True)
class Effects:
    """term → what it belongs to → logarithm of a factor. ``spread``: what it belongs to → of the remaining error."""

    effects: Mapping[str, Mapping[str, float]]
    spread: Mapping[str, float] = field(default_factory=dict)
    note: str = ""

    def total(self, term: str, keys: Iterable[str]) -> float:
        found = self.effects.get(term, {})
        return sum(found.get(key, 0.0) for key in keys)

    def and_(self, further: Effects) -> Effects:
        """Both; where ``further`` has a spread for something, that one holds."""
        terms = {
            term: _added(self.effects.get(term, {}), further.effects.get(term, {}))
            for term in {**self.effects, **further.effects}
        }
        return Effects(terms, {**self.spread, **further.spread}, further.note or self.note)


def _added(first: Mapping[str, float], second: Mapping[str, float]) -> dict[str, float]:
    return {key: first.get(key, 0.0) + second.get(key, 0.0) for key in {**first, **second}}


@dataclass(frozen=True, slots=True)
class Calibration:
    """Factors for one deployment, in the order of ``terms.NAMES``; 1: as the datasheet says."""

    factors: tuple[float, ...] = (1.0,) * len(NAMES)
    spread: float = UNCERTAIN
    """Standard deviation of the logarithm of a step's time."""
    keys: tuple[str, ...] = ()
    """What effects were looked up for."""

    def interval(self, seconds: float) -> tuple[float, float]:
        """Within which 90 % are expected."""
        width = math.exp(1.645 * self.spread)
        return seconds / width, seconds * width


def calibration_for(
    hardware: Hardware,
    engine: str | None = None,
    version: str | None = None,
    *,
    shape: ModelShape | None = None,
    formats: Formats | None = None,
    effects: Effects | None = None,
) -> Calibration:
    """The factors that the shipped effects, or ``effects``, give for this combination."""
    found = effects or shipped_effects()
    keys = keys_of(hardware, engine, version, shape, formats)
    factors = tuple(math.exp(found.total(name, keys)) for name in NAMES)
    known = [key for key in keys if key in found.spread]
    return Calibration(factors, found.spread[known[-1]] if known else UNCERTAIN, keys)


def keys_of(
    hardware: Hardware,
    engine: str | None = None,
    version: str | None = None,
    shape: ModelShape | None = None,
    formats: Formats | None = None,
) -> tuple[str, ...]:
    """What effects may belong to, from the general to the particular.

    Model and arithmetic count by class: how an engine does with experts or in FP8 is learnt from all such models.
    """
    keys = ["", f"family:{hardware.family}", f"device:{hardware.name}"]
    if formats is not None:
        arithmetic = (
            formats.of_experts.arithmetic if shape is not None and shape.has_experts else formats.weights.arithmetic
        )
        keys += [f"arithmetic:{arithmetic}", f"family:{hardware.family},arithmetic:{arithmetic}"]
    if shape is not None:
        keys.append(f"class:{model_class(shape)}")
    if engine:
        keys += [f"engine:{engine}", f"engine:{engine},family:{hardware.family}"]
        if formats is not None:
            keys.append(f"engine:{engine},family:{hardware.family},weights:{formats.weights.name}")
        if shape is not None:
            keys.append(f"engine:{engine},class:{model_class(shape)}")
        if version:
            keys.append(f"engine:{engine},version:{version.replace(',', ';')}")
    return tuple(keys)


def model_class(shape: ModelShape) -> str:
    """``dense``, ``experts``, ``latent`` (attention over compressed vectors) or ``recurrent``."""
    mixers = [run.mixer for run in shape.layers]
    if any(isinstance(mixer, RecurrentMixer) for mixer in mixers):
        return "recurrent"
    if any(isinstance(mixer, LatentAttention) for mixer in mixers):
        return "latent"
    if shape.has_experts:
        return "experts"
    return "dense" if any(isinstance(mixer, GroupedAttention) for mixer in mixers) else "other"


@cache
def shipped_effects() -> Effects:
    """What ships: fitted to kernel tables and published measurements (docs/explanation/roofline.md)."""
    text = resources.files("tokenmill.perf.calibration").joinpath("effects.json").read_text(encoding="utf-8")
    return read_effects(text, "the shipped effects")
