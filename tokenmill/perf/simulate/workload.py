"""What is asked of the engines: arrivals and lengths, and which prompts share a prefix.

A trace has no text. Prompts are made of fake tokens, one constant per piece of content: even numbers for content
that a trace says is shared (its prefix hashes), odd ones for what is a request's own. Equal content thus has equal
tokens, in prompts of any length, and the engine's own prefix cache finds what it would have found.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from tokenmill.core.errors import ConfigError
from tokenmill.core.params import SamplingParams
from tokenmill.core.request import Request


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """One request of a trace."""

    arrival_s: float
    """Since the trace began."""
    prompt_tokens: int
    output_tokens: int
    prefix_ids: tuple[int, ...] = ()
    """Names of the prompt's pieces of ``piece_tokens`` tokens from its start: equal name, equal content."""
    piece_tokens: int = 0
    tenant: str = "default"


@dataclass(frozen=True, slots=True)
class Trace:
    """Requests in order of arrival, and what was done to get them."""

    name: str
    format: str
    requests: tuple[TraceRequest, ...]
    notes: dict[str, int] = field(default_factory=dict)
    """How many were ``empty`` (left out), ``clipped`` …"""

    @property
    def shares_prefixes(self) -> bool:
        """The trace knows which prompts begin alike."""
        return any(request.prefix_ids for request in self.requests)

    @property
    def span_s(self) -> float:
        """From the first arrival to the last."""
        return self.requests[-1].arrival_s - self.requests[0].arrival_s if self.requests else 0.0

    @property
    def rate_per_s(self) -> float | None:
        """Mean rate of arrival; None where all arrive at once."""
        return (len(self.requests) - 1) / self.span_s if self.span_s > 0 else None


def make_trace(name: str, form: str, requests: Iterable[TraceRequest], **notes: int) -> Trace:
    """Order by arrival, count the first one as second 0, leave out what has no prompt or no answer.

    Raises:
        ConfigError: nothing is left.
    """
    found = list(requests)
    whole = sorted((r for r in found if r.prompt_tokens and r.output_tokens), key=lambda r: r.arrival_s)
    if not whole:
        raise ConfigError(f"{name}: holds no request with at least one prompt token and one output token")
    first_s = whole[0].arrival_s
    shifted = tuple(replace(r, arrival_s=r.arrival_s - first_s) for r in whole) if first_s else tuple(whole)
    empty = len(found) - len(whole)
    return Trace(name, form, shifted, {**({"empty": empty} if empty else {}), **notes})


def select(
    trace: Trace,
    *,
    first: int | None = None,
    window_s: tuple[float, float] | None = None,
    speed: float = 1.0,
    max_context: int | None = None,
) -> Trace:
    """A part of ``trace``, faster or slower.

    Args:
        first: only so many requests.
        window_s: only those that arrive from the first moment until before the second (of the trace's own time).
        speed: arrivals come so many times as fast.
        max_context: prompt and answer together at most; longer ones lose the beginning of their answer's room
            last: the prompt is cut to leave the answer, the answer only if it alone is too long.

    Raises:
        ConfigError: nothing is left, or a value is out of range.
    """
    if not speed > 0:
        raise ConfigError(f"the speed of a trace must be above 0, not {speed}")
    requests: Iterable[TraceRequest] = trace.requests
    if window_s is not None:
        requests = [r for r in requests if window_s[0] <= r.arrival_s < window_s[1]]
    requests = list(requests)[:first]
    if not requests:
        raise ConfigError(f"{trace.name}: no request is left of {len(trace.requests)}")
    if speed != 1.0:
        requests = [replace(r, arrival_s=r.arrival_s / speed) for r in requests]
    notes = dict(trace.notes)
    if max_context is not None:
        fitting = [_clip(r, max_context) for r in requests]
        notes["clipped"] = sum(a is not b for a, b in zip(fitting, requests, strict=True))
        requests = fitting
    return make_trace(trace.name, trace.format, requests, **notes)


def _clip(request: TraceRequest, max_context: int) -> TraceRequest:
    if request.prompt_tokens + request.output_tokens <= max_context:
        return request
    output = min(request.output_tokens, max_context - 1)
    return replace(request, prompt_tokens=max_context - output, output_tokens=output)


class Prompts:
    """Turns entries of a trace into requests, one by one, so that only the prompts under way are held."""

    def __init__(self) -> None:
        self._names: dict[int, int] = {}
        self._params = SamplingParams(ignore_eos=True)

    def __call__(self, requests: Iterable[TraceRequest]) -> Iterator[Request]:
        for number, entry in enumerate(requests):
            own = 2 * number + 1
            yield Request(
                id=str(number),
                prompt_token_ids=self._tokens(entry, own),
                params=self._params,
                max_new_tokens=entry.output_tokens,
                seed=own,
                arrival_s=entry.arrival_s,
                tenant=entry.tenant,
            )

    def _tokens(self, entry: TraceRequest, own: int) -> tuple[int, ...]:
        if not entry.prefix_ids:
            return (own,) * entry.prompt_tokens
        names, tokens = self._names, list[int]()
        for prefix_id in entry.prefix_ids:
            tokens += [2 * names.setdefault(prefix_id, len(names))] * entry.piece_tokens
        missing = entry.prompt_tokens - len(tokens)
        return (*tokens, *([own] * missing)) if missing >= 0 else tuple(tokens[: entry.prompt_tokens])
