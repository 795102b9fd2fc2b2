"""Diagnosing from Prometheus text: what servers of this kind say of themselves, under vLLM's names or this project's.

Two pages some seconds apart, and gauges read in between, are enough for an account: how many steps, of how many rows,
how long each, and whether a queue stood for memory or for a place. What happens inside a step such a page does not say;
with the model and the device known, the cost model splits it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tokenmill.core.errors import SetupError
from tokenmill.engine.telemetry import StepAccount, StepClass
from tokenmill.perf.diagnose.case import Case, Limits
from tokenmill.perf.terms import Deployment

_LINE = re.compile(r"^([A-Za-z_:][\w:]*)(?:\{(.*)\})?[ \t]+(\S+)", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')

FULL = 0.9
"""From this share of its KV cache on an engine that lets requests wait, waits for memory."""

LATENCIES = {
    "ttft": ("time_to_first_token_seconds",),
    "itl": ("inter_token_latency_seconds",),
    "tpot": ("request_time_per_output_token_seconds", "time_per_output_token_seconds", "inter_token_latency_seconds"),
    "e2e": ("e2e_request_latency_seconds",),
}
"""Limit → histograms that show it, the best first."""


@dataclass(frozen=True, slots=True)
class Page:
    """One reading: samples by name, labels and value."""

    samples: Mapping[str, Sequence[tuple[Mapping[str, str], float]]]
    prefix: str
    """``tokenmill_`` or ``vllm:``."""

    @classmethod
    def parse(cls, text: str) -> Page:
        """Raises ``SetupError`` if neither engine wrote it."""
        found: dict[str, list[tuple[Mapping[str, str], float]]] = {}
        for name, labels, value in _LINE.findall(text):
            try:
                number = float(value)
            except ValueError:
                continue
            if math.isfinite(number):
                found.setdefault(name, []).append((dict(_LABEL.findall(labels)), number))
        for prefix in ("tokenmill_", "vllm:"):
            if any(name.startswith(prefix) for name in found):
                return cls(found, prefix)
        raise SetupError(
            "this is not the metrics page of Tokenmill or vLLM: give the server's own address, without a path"
        )

    def value(self, *names: str) -> float | None:
        """The sum over the series of the first of ``names`` that is there."""
        for name in names:
            series = self.samples.get(self.prefix + name)
            if series:
                return sum(value for _, value in series)
        return None

    def buckets(self, name: str) -> dict[float, float]:
        """Upper bound → cumulative count, over all series of a histogram."""
        found: dict[float, float] = {}
        for labels, value in self.samples.get(f"{self.prefix}{name}_bucket", ()):
            bound = float(labels.get("le", "inf"))
            found[bound] = found.get(bound, 0.0) + value
        return found


class Window:
    """Two pages, the gauges between them, and the seconds from the first to the last."""

    def __init__(self, pages: Sequence[Page], seconds: float) -> None:
        self.first, self.last, self.pages, self.seconds = pages[0], pages[-1], pages, seconds

    def grown(self, *names: str) -> float | None:
        """By how much a counter grew."""
        now = self.last.value(*names)
        return None if now is None else now - (self.first.value(*names) or 0.0)

    def mean_of(self, histogram: str) -> float | None:
        count, total = self.grown(f"{histogram}_count"), self.grown(f"{histogram}_sum")
        return total / count if count and total is not None else None

    def gauge(self, *names: str) -> float | None:
        """Mean over the readings."""
        values = [value for page in self.pages if (value := page.value(*names)) is not None]
        return sum(values) / len(values) if values else None

    def p99(self, histogram: str) -> float | None:
        """The 99th percentile of what came within the window, interpolated in its bucket."""
        now, then = self.last.buckets(histogram), self.first.buckets(histogram)
        points = sorted((bound, count - then.get(bound, 0.0)) for bound, count in now.items())
        if not points or points[-1][1] <= 0:
            return None
        wanted, below, reached = 0.99 * points[-1][1], 0.0, 0.0
        for bound, count in points:
            if count >= wanted:
                if not math.isfinite(bound):
                    return below
                share = (wanted - reached) / (count - reached) if count > reached else 1.0
                return below + (bound - below) * share
            below, reached = bound, count
        return below

    def latencies(self) -> dict[str, float]:
        """99th percentiles in seconds, by the names of limits."""
        found = {}
        for name, histograms in LATENCIES.items():
            value = next((p for histogram in histograms if (p := self.p99(histogram)) is not None), None)
            if value is not None:
                found[name] = value
        return found


UNKNOWN_INSIDE = "its metrics do not say how a step's time is shared by kernels and host: `model` holds both"
UNKNOWN_PRICES = "what bounds a step cannot be told without knowing what runs on what: give --model and --hardware"


def foreign_case(window: Window, deployment: Deployment | None, limits: Limits | None = None) -> Case:
    """A case from vLLM's names.

    Raises:
        SetupError: a metric that nothing can be said without is not there.
    """
    generated = window.grown("generation_tokens_total", "generation_tokens")
    if generated is None:
        raise SetupError("the metrics page has no generation_tokens_total: is this an engine's own page?")
    rows = window.gauge("num_requests_running") or 0.0
    waiting = window.gauge("num_requests_waiting") or 0.0
    usage = window.gauge("kv_cache_usage_perc", "gpu_cache_usage_perc")
    preempted = window.grown("num_preemptions_total", "num_preemptions") or 0.0
    each = _class_of(window, generated, rows)
    busy_s = min(each.seconds, window.seconds) if each else 0.0
    cause = "kv_blocks" if preempted or (usage is not None and usage >= FULL) else "max_seqs"
    waits = waiting >= 0.5
    account = StepAccount(
        parts={"model": busy_s, "idle": window.seconds - busy_s},
        classes={0: each} if each else {},
        blocked_s={cause: busy_s} if waits else {},
        waiting_s=waiting * busy_s if waits else 0.0,
        requests=window.grown("request_success_total", "request_success") or 0.0,
        preemptions=preempted,
    )
    unknown = [UNKNOWN_INSIDE, *([] if deployment else [UNKNOWN_PRICES])]
    if waits and usage is None:
        unknown.append("the page has no KV cache usage: the queue may stand for memory as well as for a place")
    return Case(account, deployment, limits or Limits(), engine="vllm", unknown=tuple(unknown))


def _class_of(window: Window, generated: float, rows: float) -> StepClass | None:
    """The average step; None if none ran."""
    if generated <= 0.0:
        return None
    steps = window.grown("iteration_tokens_total_count") or generated / max(rows, 1.0)
    step_s = window.mean_of("inter_token_latency_seconds") or window.mean_of("time_per_output_token_seconds")
    if step_s is None:
        step_s = window.seconds / steps
    prompts = window.grown("prompt_tokens_total", "prompt_tokens") or 0.0
    started = window.grown("time_to_first_token_seconds_count") or 0.0
    length = prompts / started if started else (window.mean_of("request_prompt_tokens") or 0.0)
    answer = window.mean_of("request_generation_tokens") or 0.0
    decoded = max(generated - started, 0.0)
    return StepClass(
        steps,
        min(steps * step_s, window.seconds),
        decoded,
        decoded * (length + answer / 2 + 1),
        started,
        prompts,
        0.0,
        generated,
    )
