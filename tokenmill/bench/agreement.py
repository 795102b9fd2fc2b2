"""Do the server's own metrics and this client tell the same story?

Both measure the same requests from their two ends: the server from the moment at which it has read a request's header,
the client from its send; the server until the last token was handed out, the client until it was read. What lies
*between* is the same whatever is asked: the way there and back, and two event loops that must come round to it. It is
measured by itself, as the mean round trip of a request that has its answer at once (``/health``, on a connection that
is kept, all through the run), and is neither one's to answer for. So server and client agree if the server's mean is
the client's less what lies between. On one machine that is a millisecond: nothing beside a second, a tenth of a first
token after ten. Where the two do not agree, one of them is wrong, or too busy to be believed. Tokens must be equal:
they are counted, not timed.

Compared is what a histogram grew by over the run (its sum over its count) with the client's mean over all requests of
the run, warm-up included. So nobody else may use the server meanwhile, and a request that failed spoils the comparison.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tokenmill.bench.serve import Outcome

PREFIXES = ("tokenmill_", "vllm:")
HISTOGRAMS = {"ttft_s": "time_to_first_token_seconds", "e2e_s": "e2e_request_latency_seconds"}
COUNTERS = {"input_tokens": "prompt_tokens_total", "output_tokens": "generation_tokens_total"}


def names_wanted() -> frozenset[str]:
    """The metrics that ``agreement`` reads."""
    histograms = [f"{name}_{part}" for name in HISTOGRAMS.values() for part in ("sum", "count")]
    return frozenset(prefix + name for prefix in PREFIXES for name in (*histograms, *COUNTERS.values()))


def agreement(
    outcomes: Sequence[Outcome],
    before: Mapping[str, float],
    after: Mapping[str, float],
    round_trips_s: Sequence[float] = (),
) -> dict[str, Any] | None:
    """Each figure as the ``client`` and the ``server`` have it, and server over client (``ratio``).

    Of times, with ``round_trips_s``, also what lies ``between_s`` and server over what the client has less that
    (``accounted``).

    None where they cannot be compared: the server has no such metrics, or some requests did not complete.
    """
    grown = {_bare(name): value - before.get(name, 0.0) for name, value in after.items() if name in names_wanted()}
    if not outcomes or any(outcome.status not in ("completed", "truncated") for outcome in outcomes):
        return None
    count = len(outcomes)
    client = {
        "requests": float(count),
        "ttft_s": sum(outcome.first_s - outcome.sent_s for outcome in outcomes) / count,
        "e2e_s": sum(outcome.end_s - outcome.sent_s for outcome in outcomes) / count,
        "input_tokens": float(sum(outcome.prompt_tokens for outcome in outcomes)),
        "output_tokens": float(sum(outcome.output_tokens for outcome in outcomes)),
    }
    server = {"requests": grown.get(f"{HISTOGRAMS['e2e_s']}_count", 0.0)}
    for figure, name in HISTOGRAMS.items():
        if grown.get(f"{name}_count"):
            server[figure] = grown[f"{name}_sum"] / grown[f"{name}_count"]
    server |= {figure: grown[name] for figure, name in COUNTERS.items() if name in grown}
    found = {
        figure: {"client": ours, "server": server[figure], "ratio": server[figure] / ours}
        for figure, ours in client.items()
        if ours > 0 and server.get(figure)
    }
    if round_trips_s:
        between_s = sum(round_trips_s) / len(round_trips_s)
        for figure in HISTOGRAMS.keys() & found.keys():
            ours = found[figure]["client"] - between_s
            found[figure] |= {"between_s": between_s} | (
                {"accounted": found[figure]["server"] / ours} if ours > 0 else {}
            )
    return found or None


def _bare(name: str) -> str:
    return next(name.removeprefix(prefix) for prefix in PREFIXES if name.startswith(prefix))
