"""When requests come: renewal and on/off processes, from a seed.

========================  ==============================================================================
``poisson``               independent: gaps exponential (coefficient of variation, CV, 1)
``gamma:cv=3``            gaps gamma distributed: burstier than Poisson above 1, more even below
``bursty:on=5,off=20``    Poisson during on-phases, nothing during off-phases; phases exponential with
                          these means in seconds, the rate on average as asked
``uniform``               equal gaps
``all``                   everybody at once
========================  ==============================================================================
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from itertools import islice

from tokenmill.core.errors import ConfigError

Process = Callable[[float, random.Random, Mapping[str, float]], Iterator[float]]
"""(requests a second, source of chance, options) → moments of arrival, endlessly, the first near 0."""


def arrival_times(process: str, count: int, rate: float | None, rng: random.Random) -> list[float]:
    """``count`` moments in ascending order.

    Args:
        process: as in the table above.
        rate: requests a second on average; ``all`` needs none.

    Raises:
        ConfigError: an unknown process or option, a value out of range, or no rate where one is needed.
    """
    name, options = _parse(process)
    if name == "all":
        return [0.0] * count
    if rate is None or not rate > 0:
        raise ConfigError(f"arrivals {name!r} need a rate above 0 requests a second, not {rate}")
    return list(islice(_PROCESSES[name][0](rate, rng, options), count))


def gamma_gaps(cv: float, mean_s: float, rng: random.Random) -> float:
    """One gap of a gamma process."""
    shape = 1 / cv**2
    return rng.gammavariate(shape, mean_s / shape)


def _poisson(rate: float, rng: random.Random, options: Mapping[str, float]) -> Iterator[float]:
    now = 0.0
    while True:
        now += rng.expovariate(rate)
        yield now


def _gamma(rate: float, rng: random.Random, options: Mapping[str, float]) -> Iterator[float]:
    now = 0.0
    while True:
        now += gamma_gaps(options["cv"], 1 / rate, rng)
        yield now


def _uniform(rate: float, rng: random.Random, options: Mapping[str, float]) -> Iterator[float]:
    number = 0
    while True:
        yield number / rate
        number += 1


def _bursty(rate: float, rng: random.Random, options: Mapping[str, float]) -> Iterator[float]:
    on_s, off_s = options["on"], options["off"]
    inside = rate * (on_s + off_s) / on_s
    begin_s = 0.0
    while True:
        end_s = begin_s + rng.expovariate(1 / on_s)
        now = begin_s + rng.expovariate(inside)
        while now < end_s:
            yield now
            now += rng.expovariate(inside)
        begin_s = end_s + rng.expovariate(1 / off_s)


_PROCESSES: Mapping[str, tuple[Process, Mapping[str, float]]] = {
    "poisson": (_poisson, {}),
    "gamma": (_gamma, {"cv": 2.0}),
    "uniform": (_uniform, {}),
    "bursty": (_bursty, {"on": 10.0, "off": 10.0}),
    "all": (_uniform, {}),
}


def _parse(text: str) -> tuple[str, Mapping[str, float]]:
    name, _, rest = text.partition(":")
    if name not in _PROCESSES:
        raise ConfigError(f"arrivals {name!r} are unknown: there are {', '.join(_PROCESSES)}")
    options = dict(_PROCESSES[name][1])
    for part in filter(None, rest.split(",")):
        key, _, value = part.partition("=")
        try:
            options[key], known = float(value), key in options
        except ValueError:
            known = False
        if not known or not 0 < options[key] < 1e9:
            has = ", ".join(_PROCESSES[name][1]) or "no options"
            raise ConfigError(f"arrivals {text!r}: {part!r} is not right; {name} has {has}, each above 0")
    return name, options
