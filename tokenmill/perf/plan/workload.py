"""What is asked of the service: how many requests a second, how long their prompts and answers are.

Throughput follows from means; percentiles of latency need the long prompts and answers too, so lengths carry a few of
their own. A workload that is written as ``input=500,output=200,rate=100`` has equal lengths and Poisson arrivals; one
that is taken from a trace has what the trace has.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from itertools import pairwise

from tokenmill.core.errors import ConfigError
from tokenmill.perf.metrics import PERCENTILES, percentile
from tokenmill.perf.simulate import Trace

STATISTICS = ("mean", *(f"p{q}" for q in PERCENTILES))
LARGEST = 1e9


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens: mean, percentiles in the order of ``STATISTICS``, and the squared coefficient of variation."""

    mean: float
    at: tuple[float, ...]
    cv2: float = 0.0

    @classmethod
    def equal(cls, tokens: float) -> Lengths:
        """All alike."""
        return cls(tokens, (tokens,) * len(STATISTICS))

    @classmethod
    def of(cls, values: Sequence[float]) -> Lengths:
        mean = sum(values) / len(values)
        variance = sum((value - mean) ** 2 for value in values) / len(values)
        return cls(mean, (mean, *(percentile(values, q) for q in PERCENTILES)), variance / mean**2)

    def statistic(self, name: str) -> float:
        """``mean``, ``p50`` …"""
        return self.at[STATISTICS.index(name)]


@dataclass(frozen=True, slots=True)
class Workload:
    inputs: Lengths
    outputs: Lengths
    rate: float
    """Requests a second."""
    cached: float = 0.0
    """Share of a prompt that is found in the prefix cache."""
    burst: float = 1.0
    """Squared coefficient of variation of the gaps between arrivals: 1 is Poisson, 0 is a clock."""
    trace: Trace | None = None
    """The requests themselves, where there are some."""

    @property
    def new_tokens(self) -> float:
        """Of an average prompt, what must be computed; the last token always."""
        return max(self.inputs.mean * (1 - self.cached), 1.0)

    @property
    def context(self) -> float:
        """Of a row in the middle of an average answer."""
        return self.inputs.mean + self.outputs.mean / 2

    @property
    def tokens(self) -> float:
        """Of an average request at its end."""
        return self.inputs.mean + self.outputs.mean

    @property
    def longest(self) -> float:
        return max(self.inputs.at) + max(self.outputs.at)

    def at_rate(self, rate: float) -> Workload:
        return replace(self, rate=rate)

    def __str__(self) -> str:
        cached = f", {self.cached:.0%} of them cached" if self.cached else ""
        return f"{self.rate:g} requests/s of {self.inputs.mean:.0f} tokens in{cached} and {self.outputs.mean:.0f} out"


_BOUNDS = {"input": (1.0, LARGEST), "output": (1.0, LARGEST), "rate": (1e-9, LARGEST), "cached": (0.0, 0.999),
           "burst": (0.0, 1000.0)}  # fmt: skip
_NEEDED = ("input", "output", "rate")


def parse_workload(text: str) -> Workload:
    """``input=500,output=200,rate=100``; also ``cached`` (share of prompts) and ``burst`` (see ``Workload``).

    Raises:
        ConfigError: names the key that is missing, unknown, not a number or out of range.
    """
    values: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        key, sign, value = (word.strip() for word in part.partition("="))
        if not sign:
            raise ConfigError(f"--workload: {part!r} is not KEY=VALUE; it wants input=500,output=200,rate=100")
        if key not in _BOUNDS:
            near = get_close_matches(key, _BOUNDS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(_BOUNDS)}"
            raise ConfigError(f"--workload: unknown key {key!r}; {hint}")
        if key in values:
            raise ConfigError(f"--workload: {key} is given twice")
        values[key] = _number(key, value)
    missing = [key for key in _NEEDED if key not in values]
    if missing:
        raise ConfigError(f"--workload: {missing[0]} is missing; it wants input=500,output=200,rate=100")
    inputs, outputs = Lengths.equal(values["input"]), Lengths.equal(values["output"])
    return Workload(inputs, outputs, values["rate"], values.get("cached", 0.0), values.get("burst", 1.0))


def _number(key: str, text: str) -> float:
    low, high = _BOUNDS[key]
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not low <= value <= high:
        raise ConfigError(f"--workload: {key} must be a number from {low:g} to {high:g}, not {text!r}")
    return value


def workload_of(trace: Trace, rate: float | None = None) -> Workload:
    """The mean load of a trace; ``rate`` plays it faster or slower.

    Raises:
        ConfigError: all requests arrive at once and no rate is given.
    """
    found = rate or trace.rate_per_s
    if found is None:
        raise ConfigError(f"{trace.name}: all requests arrive at once: give a rate as well (--workload rate=10)")
    requests = trace.requests
    gaps = [after.arrival_s - before.arrival_s for before, after in pairwise(requests)]
    return Workload(
        Lengths.of([request.prompt_tokens for request in requests]),
        Lengths.of([request.output_tokens for request in requests]),
        found,
        min(_shared(trace) / sum(request.prompt_tokens for request in requests), 0.999),
        Lengths.of(gaps).cv2 if any(gaps) else 1.0,
        trace,
    )


def _shared(trace: Trace) -> float:
    """Prompt tokens that an unbounded prefix cache finds: the pieces at a prompt's beginning that came before."""
    known: set[int] = set()
    found = 0.0
    for request in trace.requests:
        hits = next((i for i, name in enumerate(request.prefix_ids) if name not in known), len(request.prefix_ids))
        found += min(hits * request.piece_tokens, request.prompt_tokens - 1)
        known.update(request.prefix_ids)
    return found
