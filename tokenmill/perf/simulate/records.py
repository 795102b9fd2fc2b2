"""What is kept of a simulated run: one line per request, and the gaps between tokens."""

from __future__ import annotations

from array import array
from dataclasses import dataclass

from tokenmill.perf.metrics import Timeline
from tokenmill.perf.simulate.histogram import Histogram


@dataclass(slots=True)
class Served:
    """One request as its client saw it. Moments are seconds since the run began."""

    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    """Wanted; and what it got, if it was done."""
    first_token_s: float | None = None
    finish_s: float | None = None
    """None until it is done; of one that failed, when."""
    queue_s: float = 0.0
    """Waiting for a place in a batch, in all its parts."""
    cached_tokens: int = 0
    num_preemptions: int = 0
    num_restarts: int = 0
    """How often a node died under it."""
    error: str | None = None
    gaps_s: array[float] | None = None
    """Seconds between its tokens, if they were asked for."""

    @property
    def done(self) -> bool:
        return self.finish_s is not None and self.error is None

    def timeline(self) -> Timeline:
        """Of one that is done."""
        assert self.finish_s is not None
        first_s = self.finish_s if self.first_token_s is None else self.first_token_s
        gaps = tuple(self.gaps_s) if self.gaps_s is not None else ()
        return Timeline(first_s - self.arrival_s, self.finish_s - self.arrival_s, gaps, self.output_tokens)


class Gaps:
    """Inter-token latencies of all requests under way.

    Args:
        keep: give each request its own gaps too (a limit on them needs that; 8 bytes a token).
    """

    def __init__(self, *, keep: bool = False) -> None:
        self.histogram = Histogram()
        self._last_s: dict[str, float] = {}
        self._own: dict[str, array[float]] | None = {} if keep else None

    def tokens(self, request_ids: list[str], now: float, until_s: float | None = None) -> None:
        """Each of these got a token at ``now``; further ones, told apart, until ``until_s``."""
        own = self._own
        before_s = list(map(self._last_s.get, request_ids))
        self._last_s.update(dict.fromkeys(request_ids, now if until_s is None else until_s))
        for moment_s in dict.fromkeys(before_s):  # as a rule one for all that go on, and none for those that begin
            if moment_s is not None:
                self.histogram.add(now - moment_s, before_s.count(moment_s))
        if own is not None:
            for request_id, moment_s in zip(request_ids, before_s, strict=True):
                if moment_s is not None:
                    own.setdefault(request_id, array("d")).append(now - moment_s)

    def run(self, request_ids: list[str], ends: list[float]) -> None:
        """Each of these got a token at every one of ``ends``."""
        self.tokens(request_ids, ends[0], ends[-1])
        if len(ends) == 1:
            return
        gaps = [after - before for before, after in zip(ends, ends[1:])]  # noqa: B905, RUF007 (speed)
        self.histogram.add_run(gaps, len(request_ids))
        if self._own is not None:
            for request_id in request_ids:
                self._own.setdefault(request_id, array("d")).extend(gaps)

    def end(self, request_id: str) -> array[float] | None:
        """The request is over, or starts anew; its own gaps, if they are kept."""
        self._last_s.pop(request_id, None)
        return self._own.pop(request_id, array("d")) if self._own is not None else None
