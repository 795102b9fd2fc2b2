"""What measurements mean: percentiles, goodput, utilisation, cost. Numbers in, numbers out.

Times are in seconds and rates per second unless a name says otherwise. A percentile interpolates linearly
between the two nearest ranks (Hyndman & Fan 1996, type 7; NumPy's default). Quote medians and tails, not
means: one request of 3 s among nine of 0.1 s makes a mean that no request had.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tokenmill.core.errors import ConfigError

PERCENTILES = (50, 90, 95, 99)


def percentile(values: Iterable[float], q: float) -> float:
    """The ``q``-th percentile (0 … 100) of ``values``; NaN where there are none."""
    ordered = sorted(values)
    if not ordered:
        return math.nan
    rank = (len(ordered) - 1) * q / 100
    low = math.floor(rank)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (rank - low)


def summarize(values: Iterable[float]) -> dict[str, float]:
    """``mean``, ``p50``, ``p90``, ``p95``, ``p99`` and ``max``; empty where there are no values."""
    ordered = sorted(values)
    if not ordered:
        return {}
    found = {"mean": sum(ordered) / len(ordered)}
    found |= {f"p{q}": percentile(ordered, q) for q in PERCENTILES}
    return found | {"max": ordered[-1]}


@dataclass(frozen=True, slots=True)
class Timeline:
    """What a client saw of one answer, in seconds after it meant to send the request."""

    ttft_s: float
    """Time to first token: until the first token arrived."""
    e2e_s: float
    """End to end: until the answer was complete."""
    itl_s: tuple[float, ...]
    """Inter-token latencies: the gaps between arrivals, in order."""
    output_tokens: int

    @property
    def tpot_s(self) -> float:
        """Time per output token after the first; 0 where there is no second."""
        return (self.e2e_s - self.ttft_s) / (self.output_tokens - 1) if self.output_tokens > 1 else 0.0

    @property
    def normalized_s(self) -> float:
        """End-to-end time per output token."""
        return self.e2e_s / max(self.output_tokens, 1)


@dataclass(frozen=True, slots=True)
class SLO:
    """What counts as good service: the limits that are given must all hold."""

    ttft_s: float | None = None
    tpot_s: float | None = None
    itl_s: float | None = None
    """For the request's 99th percentile of inter-token latency."""
    e2e_s: float | None = None

    def met_by(self, timeline: Timeline) -> bool:
        pairs = (
            (self.ttft_s, timeline.ttft_s),
            (self.tpot_s, timeline.tpot_s),
            (self.itl_s, percentile(timeline.itl_s, 99) if timeline.itl_s else 0.0),
            (self.e2e_s, timeline.e2e_s),
        )
        return all(limit is None or value <= limit for limit, value in pairs)


_TIME = re.compile(r"([-+\w.]+?)\s*(ms|us|s|min)?", re.IGNORECASE)
_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0}


def parse_limit(key: str, text: str) -> float:
    """``0.2``, ``200ms`` → seconds, for the key of an ``--slo``.

    Raises:
        ConfigError: it is no time above 0; names the key.
    """
    match = _TIME.fullmatch(text.strip())
    try:
        seconds = float(match[1]) * _UNITS[(match[2] or "s").lower()] if match else math.nan
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise ConfigError(f"--slo: {key} must be a time above 0, like {key}=0.5 or {key}=200ms, not {text!r}")
    return seconds


def goodput(timelines: Sequence[Timeline], slo: SLO, duration_s: float) -> float:
    """Requests per second that met ``slo`` (DistServe, arXiv 2401.09670); one that failed is not in ``timelines``."""
    return sum(slo.met_by(timeline) for timeline in timelines) / duration_s


def bandwidth_used(num_parameters: float, bytes_per_parameter: float, tokens_per_s: float) -> float:
    """Bytes per second of weights that decoding at batch 1 streams: every weight once a token."""
    return num_parameters * bytes_per_parameter * tokens_per_s


def bandwidth_utilization(
    num_parameters: float, bytes_per_parameter: float, tokens_per_s: float, peak_bytes_per_s: float
) -> float:
    """Memory-bandwidth utilisation (MBU), 0 … 1, of decoding at batch 1."""
    return bandwidth_used(num_parameters, bytes_per_parameter, tokens_per_s) / peak_bytes_per_s


def cost_per_million(price_per_hour: float, units_per_s: float) -> float:
    """Price of a million tokens (or of anything else made at ``units_per_s``), in the currency of the price."""
    return price_per_hour / 3600 / units_per_s * 1e6


def static_batch_waste(output_tokens: Sequence[int]) -> tuple[int, int]:
    """(idle, all) decode slots of a static batch, which runs until its longest answer is done."""
    slots = len(output_tokens) * max(output_tokens)
    return slots - sum(output_tokens), slots


def prefix_tokens_saved(shared_tokens: int, num_calls: int) -> int:
    """Prompt tokens that need not be computed when ``num_calls`` prompts share a prefix: all but the first."""
    return shared_tokens * (num_calls - 1)
