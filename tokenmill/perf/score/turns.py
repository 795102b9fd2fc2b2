"""Learning this engine's own factors from results of ``bench offline``.

Each turn kept its account: steps of about the same size, how many and how long; and what the machine could do just
then. So a class of steps is one measurement, and memory that was slow at one turn does not make the kernels look slow.
The host's seconds between steps belong to a step as well: the classes' seconds are stretched to the turn's whole.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tokenmill.core.errors import ConfigError, SetupError
from tokenmill.engine.telemetry import StepAccount
from tokenmill.perf.calibrate import Calibration, Effects, calibration_for
from tokenmill.perf.diagnose import case_from_json
from tokenmill.perf.diagnose.pricing import observed
from tokenmill.perf.hardware import Figure, Hardware
from tokenmill.perf.result import runs_of
from tokenmill.perf.score.fitting import Case, Fitted, fit_cases
from tokenmill.perf.terms import LAUNCH_S, NAMES

ENGINE = "tokenmill"
MEMORY_TRUST, COMPUTE_TRUST, LAUNCH_TRUST, HOST_TRUST = 0.3, 0.4, 0.7, 0.7
"""Standard deviations of effects before a step is seen: memory's ceiling is measured beside each turn, …"""
LEAST_SHARE = 0.002
"""Of a turn's seconds: rarer classes are noise."""


def fit_results(results: Mapping[str, Mapping[str, Any]]) -> list[Fitted]:
    """Factors by family of processors and format of weights, each under a key of its own.

    Args:
        results: name → a result of ``bench offline``.

    Raises:
        ConfigError: a result holds no turn with its account and ceilings.
    """
    by_key: dict[str, list[Case]] = {}
    priors: dict[str, list[tuple[float, float]]] = {}
    for name, result in results.items():
        found = _cases(name, result)
        if not found:
            raise ConfigError(
                f"{name}: holds no turns to learn from; write it with: tokenmill bench offline MODEL --output FILE, "
                "on a machine whose kernels are compiled"
            )
        for key, (cases, prior) in found.items():
            by_key.setdefault(key, []).extend(cases)
            priors[key] = prior
    return [fit_cases(cases, key, priors[key]) for key, cases in sorted(by_key.items())]


def merged(fitted: Sequence[Fitted]) -> Effects:
    """All of them in one file."""
    effects = Effects({})
    for each in fitted:
        effects = effects.and_(each.effects)
    turns = sum(each.num_rows for each in fitted)
    return Effects(effects.effects, effects.spread, f"fitted to {turns} classes of steps of bench offline")


Prior = list[tuple[float, float]]


def _cases(name: str, result: Mapping[str, Any]) -> dict[str, tuple[list[Case], Prior]]:
    found: dict[str, tuple[list[Case], Prior]] = {}
    try:
        turns = [(point["about"], turn) for point in runs_of(result) for turn in point.get("turns", ())]
        for about, turn in turns:
            if turn["ceilings"] is not None:
                key, cases, prior = _turn(about, turn)
                found.setdefault(key, ([], prior))[0].extend(cases)
    except (KeyError, TypeError, ValueError, SetupError) as error:
        raise ConfigError(f"{name}: not a result of this version's bench offline ({error!r})") from error
    return found


def _turn(about: Mapping[str, Any], turn: Mapping[str, Any]) -> tuple[str, list[Case], Prior]:
    ceilings = dict(turn["ceilings"])
    ceilings["observed"] = {name: Figure(**figure) for name, figure in ceilings["observed"].items()}
    machine = Hardware(**ceilings)
    account = StepAccount.from_dict(turn["account"])
    deployment = case_from_json(about, account, machine).deployment
    assert deployment is not None
    calibration = calibration_for(machine, ENGINE, shape=deployment.shape, formats=deployment.formats)
    classes = [each for each in observed(account) if each.seconds > LEAST_SHARE * account.busy_s]
    stretch = account.busy_s / sum(each.seconds for each in classes)
    cases = [
        Case(each.seconds * stretch / each.steps, [(1.0, deployment.terms(each.work))], calibration) for each in classes
    ]
    key = f"engine:{ENGINE},family:{machine.family},weights:{deployment.formats.weights.name}"
    return key, cases, _prior(machine, calibration)


def _prior(machine: Hardware, calibration: Calibration) -> Prior:
    """Before a step is seen: kernels reach the ceilings that were measured, a launch takes what an empty kernel took.

    Effects come on top of those that ship for everybody, so their means take these away.
    """
    floor = machine.observed.get("kernel_floor_s")
    found = []
    for name, factor in zip(NAMES, calibration.factors, strict=True):
        mean = -math.log(factor)
        if name == "launch":
            found.append((mean + math.log(floor.value / LAUNCH_S) if floor else 0.0, LAUNCH_TRUST))
        elif name.endswith((".memory", ".compute")):
            found.append((mean, MEMORY_TRUST if name.endswith(".memory") else COMPUTE_TRUST))
        else:
            found.append((mean, HOST_TRUST))
    return found
