"""Choices: who chose by prediction, how far would they have been from the best that was measured?

An error says how well a number is known; what a planner does with numbers is choose. Wherever the rows answer one
*question* (a model on a device under one load) with several *options* (engine and version, precision, layout), the
prediction picks one, and the **regret** is how much more the pick cost than the best option, both as measured: in time,
or in devices for one rate. Beside it stands what picking blindly would have cost: the mean regret of all options.

Throughput is compared per device; anything else between deployments of the same number of devices, since of any number
the largest would always win. Rows of one option are averaged, so that a repeated measurement is no choice.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Protocol

from tokenmill.perf.score.rows import Row


class Judged(Protocol):
    """A measured row with what was predicted for it."""

    @property
    def row(self) -> Row: ...

    @property
    def group(self) -> str: ...

    @property
    def model(self) -> str: ...

    @property
    def device(self) -> str: ...

    @property
    def value(self) -> float: ...


@dataclass(frozen=True, slots=True)
class Choice:
    """One question with at least two options."""

    group: str
    regret: float
    """Of the option with the best prediction."""
    blind: float
    """Mean regret of all options."""


def choices(judged: Iterable[Judged]) -> list[Choice]:
    """Every question that the rows answer with more than one option."""
    questions: dict[tuple[Any, ...], dict[tuple[Any, ...], list[tuple[float, float]]]] = defaultdict(dict)
    for one in judged:
        row = one.row
        devices = row.devices or (row.tp or 1) * (row.pp or 1)
        shared = None if "throughput" in row.metric else devices
        question = (one.group, row.metric, one.model, one.device, row.load, row.input_len, row.output_len, shared)
        layout = (row.devices, row.tp, row.pp, row.attention_dp, row.expert_parallel, row.pools)
        option = (row.engine, row.release, row.precision, *layout)
        per_device = devices if row.metric.endswith("throughput") else 1
        questions[question].setdefault(option, []).append(
            (_cost(one.value, row, per_device), _cost(row.value, row, per_device))
        )
    return [_choice(question[0], list(options.values())) for question, options in questions.items() if len(options) > 1]


def _cost(value: float, row: Row, devices: int) -> float:
    """The smaller the better: a time as it is, a rate per device upside down."""
    return value if "ms" in row.unit.lower() else devices / value


def _choice(group: str, options: Sequence[Sequence[tuple[float, float]]]) -> Choice:
    predicted = [fmean(cost for cost, _ in rows) for rows in options]
    measured = [fmean(cost for _, cost in rows) for rows in options]
    best = min(measured)
    picked = measured[predicted.index(min(predicted))]
    return Choice(group, picked / best - 1, fmean(cost / best - 1 for cost in measured))


def regrets(found: Sequence[Choice]) -> Mapping[str, dict[str, Any]]:
    """By group: questions, share answered with the best option, mean and 95th percentile of regret, blind regret."""
    groups: dict[str, list[Choice]] = defaultdict(list)
    for choice in found:
        groups[choice.group].append(choice)
    return {group: _figures(groups[group]) for group in sorted(groups)}


def _figures(found: Sequence[Choice]) -> dict[str, Any]:
    ordered = sorted(choice.regret for choice in found)
    return {
        "n": len(ordered),
        "best": round(sum(regret == 0 for regret in ordered) / len(ordered), 4),
        "mean": round(fmean(ordered), 4),
        "p95": round(ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))], 4),
        "blind": round(fmean(choice.blind for choice in found), 4),
    }
