"""From what became of each request to the figures of a run (``perf/result.py``): two windows, and the client's audit.

The whole run begins with a warm-up that is left out, and ends in a tail in which ever fewer requests are under way: its
rates are lower than what the server sustains. The *steady* window leaves out both ends: it begins when as many
requests are first under way as the load keeps there (all clients of a closed loop; of an open loop, the mean number)
and ends with the last send. Its latencies are those of the requests that were sent in it, its rates count what arrived
in it, of whatever request. A load that is sent all at once has no steady window.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tokenmill.bench.serve import Outcome, Run
from tokenmill.core.errors import ConfigError
from tokenmill.perf.metrics import SLO, summarize
from tokenmill.perf.result import Counts, Delivered, Seen, Window, make_run

MAX_SAMPLES = 1000
"""Requests whose own figures a result keeps."""
SAMPLE_DIGITS = 6


@dataclass(frozen=True, slots=True)
class Warmup:
    """What to leave out: the first so many requests, or those that were meant for the first so many seconds."""

    requests: int = 0
    seconds: float = 0.0

    def holds(self, index: int, outcome: Outcome) -> bool:
        return index < self.requests or outcome.planned.send_s < self.seconds


NO_WARMUP = Warmup()


def parse_warmup(text: str) -> Warmup:
    """``"20"`` (requests) or ``"5s"`` (seconds).

    Raises:
        ConfigError: anything else.
    """
    try:
        found = Warmup(seconds=float(text[:-1])) if text.endswith("s") else Warmup(requests=int(text))
    except ValueError:
        found = Warmup(requests=-1)
    if not (found.requests >= 0 and 0 <= found.seconds < float("inf")):
        raise ConfigError(f"--warmup {text!r}: write a number of requests, or seconds such as 5s")
    return found


def figures(run: Run, slo: SLO, warmup: Warmup = NO_WARMUP) -> dict[str, Any]:
    """The run, its steady part (None where there is none), its requests one by one, and the client's own audit.

    Raises:
        ConfigError: the warm-up leaves nothing.
    """
    measured = [outcome for index, outcome in enumerate(run.outcomes) if not warmup.holds(index, outcome)]
    if not measured:
        raise ConfigError(f"--warmup takes all {len(run.outcomes)} requests: send more, or warm up with fewer")
    num_warmup = len(run.outcomes) - len(measured)
    completed = _completed(measured)
    begin_s = min(outcome.planned.send_s for outcome in measured)
    whole = Window("measured", begin_s, max(outcome.end_s for outcome in measured))
    window = _steady_window(run, begin_s)
    errors = Counter(outcome.error for outcome in measured if outcome.error is not None)
    return {
        **make_run(_seen(measured), _counts(measured, num_warmup), _sum(completed), whole, slo),
        "errors": dict(errors.most_common(10)),
        "counted_by": dict(Counter(outcome.counted_by for outcome in completed)),
        "steady": None if window is None else _steady(run, measured, window, slo),
        "client": _audit(run),
        "samples": _samples(completed[:MAX_SAMPLES]),
    }


def _steady(run: Run, measured: Sequence[Outcome], window: Window, slo: SLO) -> dict[str, Any]:
    sent = [outcome for outcome in measured if window.begin_s <= outcome.sent_s <= window.end_s]
    return make_run(_seen(sent), _counts(sent, 0), _arrived(run.outcomes, window), window, slo)


def _steady_window(run: Run, begin_s: float) -> Window | None:
    last_send_s = max(outcome.sent_s for outcome in run.outcomes)
    changes = sorted(change for outcome in run.outcomes for change in ((outcome.sent_s, 1), (outcome.end_s, -1)))
    wanted = float(run.concurrency) if run.concurrency else _mean_under_way(changes, begin_s, last_send_s)
    under_way = 0
    for moment_s, change in changes:
        under_way += change
        if under_way >= wanted and begin_s <= moment_s < last_send_s:
            return Window("steady", moment_s, last_send_s)
    return None


def _mean_under_way(changes: Sequence[tuple[float, int]], begin_s: float, end_s: float) -> float:
    """Requests under way between the two moments, on average over time."""
    area, under_way, since_s = 0.0, 0, begin_s
    for moment_s, change in changes:
        until_s = min(max(moment_s, begin_s), end_s)
        area += under_way * (until_s - since_s)
        under_way, since_s = under_way + change, until_s
    return area / max(end_s - begin_s, 1e-9)


def _counts(outcomes: Sequence[Outcome], num_warmup: int) -> Counts:
    found = Counter[str](outcome.status for outcome in outcomes)
    return Counts(**found, warmup=num_warmup)


def _completed(outcomes: Sequence[Outcome]) -> list[Outcome]:
    return [outcome for outcome in outcomes if outcome.status == "completed"]


def _sum(outcomes: Sequence[Outcome]) -> Delivered:
    return Delivered(
        len(outcomes),
        sum(outcome.prompt_tokens for outcome in outcomes),
        sum(outcome.output_tokens for outcome in outcomes),
        sum(outcome.cached_tokens for outcome in outcomes),
    )


def _arrived(outcomes: Sequence[Outcome], window: Window) -> Delivered:
    """What arrived within the window: an answer's tokens are spread evenly over its pieces."""

    def within(moment_s: float) -> bool:
        return window.begin_s <= moment_s <= window.end_s

    answered = [outcome for outcome in outcomes if outcome.status in ("completed", "truncated")]
    started = [outcome for outcome in answered if within(outcome.first_s)]
    output = sum(sum(map(within, o.arrivals_s)) / len(o.arrivals_s) * o.output_tokens for o in answered if o.arrivals_s)
    return Delivered(
        sum(within(outcome.last_s) for outcome in _completed(answered)),
        sum(outcome.prompt_tokens for outcome in started),
        output,
        sum(outcome.cached_tokens for outcome in started),
    )


def _seen(outcomes: Sequence[Outcome]) -> Seen:
    completed = _completed(outcomes)
    return Seen(
        [outcome.timeline() for outcome in completed],
        {
            "ttft_after_send_s": (outcome.first_s - outcome.sent_s for outcome in completed),
            "tokens_per_piece": (o.output_tokens / len(o.arrivals_s) for o in completed if o.arrivals_s),
        },
    )


def _audit(run: Run) -> dict[str, Any]:
    return {
        "send_lag_s": summarize(outcome.sent_s - outcome.planned.send_s for outcome in run.outcomes),
        "loop_lag_s": summarize(run.loop_lags_s),
        "cpu_share": run.cpu_share,
    }


def _samples(completed: Sequence[Outcome]) -> dict[str, list[float]]:
    """One column per figure, one entry per request."""

    def column(values: Iterator[float]) -> list[float]:
        return [round(value, SAMPLE_DIGITS) for value in values]

    timelines = [outcome.timeline() for outcome in completed]
    return {
        "send_s": column(outcome.planned.send_s for outcome in completed),
        "input_tokens": [outcome.prompt_tokens for outcome in completed],
        "cached_tokens": [outcome.cached_tokens for outcome in completed],
        "output_tokens": [outcome.output_tokens for outcome in completed],
        "ttft_s": column(timeline.ttft_s for timeline in timelines),
        "tpot_s": column(timeline.tpot_s for timeline in timelines),
        "e2e_s": column(timeline.e2e_s for timeline in timelines),
    }
