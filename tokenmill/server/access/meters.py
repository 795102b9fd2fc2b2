"""Rate limits: token buckets, one pair for each key and one for each tenant.

A bucket holds a minute's worth and fills up at an even rate, so that a client may come in a burst and not above its
rate for long. A request pays one from the first bucket when it arrives. From the second it reserves its prompt and the
most that may be generated for it; what it did not use is given back when it ends. Who does not say how much may be
generated reserves ``UNSTATED_TOKENS`` a choice and pays the difference afterwards: a bucket may be in debt, and
nothing is taken from it until it has filled up again.

Work of batches is not limited here: it runs in what others leave.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from tokenmill.core.errors import RateLimited
from tokenmill.server.access.identity import Access, Limits

UNSTATED_TOKENS = 1024
"""Reserved for a choice whose request names no limit."""

MINUTE_S = 60.0


class Bucket:
    """So many a minute. Limits come in with each call, since the file of keys may change them at any time."""

    __slots__ = ("_level", "_since_s")

    def __init__(self, limit: int, now: float) -> None:
        self._level = float(limit)
        self._since_s = now

    def level(self, limit: int, now: float) -> float:
        """How much is left; below 0: how much is owed."""
        self._level = min(float(limit), self._level + (now - self._since_s) * limit / MINUTE_S)
        self._since_s = now
        return self._level

    def take(self, amount: float) -> None:
        """After ``level``; less than nothing gives back."""
        self._level -= amount

    def wait_s(self, amount: float, limit: int, now: float) -> float:
        """Until ``amount`` can be taken; 0: now."""
        return max(0.0, (amount - self.level(limit, now)) * MINUTE_S / limit)


@dataclass(slots=True)
class Meter:
    """What one key, or one tenant, has used."""

    buckets: dict[str, Bucket] = field(default_factory=dict)
    """By kind: ``requests``, ``tokens``."""
    concurrent: int = 0


class Reservation:
    """A request that is under way, and what is held for it."""

    def __init__(self, meters: Meters, access: Access, tokens: int) -> None:
        self._meters = meters
        self._access = access
        self._tokens = tokens
        self._open = True

    def close(self, used: int) -> None:
        """It has ended with so many tokens: give the rest back, or pay what is missing. Once is enough."""
        if self._open:
            self._open = False
            self._meters.settle(self._access, used - self._tokens)


class Meters:
    """All meters of a server. On the event loop only."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._meters: dict[tuple[str, str], Meter] = {}

    def charge_request(self, access: Access) -> None:
        """One request has arrived.

        Raises:
            RateLimited: its key, or its tenant, has none left.
        """
        now = self._clock()
        scopes = list(self._buckets(access, "requests", now))
        for whose, limit, bucket in scopes:
            wait_s = bucket.wait_s(1.0, limit, now)
            if wait_s > 0:
                raise RateLimited(
                    f"Rate limit reached for {whose}: {limit} requests a minute. Try again in {wait_s:.1f} s.",
                    retry_after_s=wait_s,
                )
        for _, _, bucket in scopes:
            bucket.take(1.0)

    def reserve(self, access: Access, tokens: int) -> Reservation:
        """Hold ``tokens`` for a request that now begins.

        Raises:
            RateLimited: there are not so many left, or too many of its requests are under way.
        """
        now = self._clock()
        scopes = list(self._buckets(access, "tokens", now))
        for whose, limit, bucket in scopes:
            if tokens > limit:
                raise RateLimited(
                    f"This request may take {tokens} tokens; the limit for {whose} is {limit} a minute: "
                    "shorten the prompt, or lower max_tokens.",
                    param="max_tokens",
                )
            wait_s = bucket.wait_s(tokens, limit, now)
            if wait_s > 0:
                left = max(0, int(bucket.level(limit, now)))
                raise RateLimited(
                    f"Rate limit reached for {whose}: {limit} tokens a minute, of which {left} are left and {tokens} "
                    f"were asked for. Try again in {wait_s:.1f} s.",
                    retry_after_s=wait_s,
                )
        for whose, limits, meter in self._scopes(access):
            if limits.max_concurrent is not None and meter.concurrent >= limits.max_concurrent:
                raise RateLimited(
                    f"Too many requests at the same time for {whose}: at most {limits.max_concurrent}.",
                    retry_after_s=1.0,
                )
        for _, _, bucket in scopes:
            bucket.take(tokens)
        for _, _, meter in self._scopes(access):
            meter.concurrent += 1
        return Reservation(self, access, tokens)

    def settle(self, access: Access, more: int) -> None:
        """A request has ended; it used ``more`` than was reserved, or less than that if negative."""
        for _, _, meter in self._scopes(access):
            meter.concurrent -= 1
        for _, _, bucket in self._buckets(access, "tokens", self._clock()):
            bucket.take(more)

    def headers(self, access: Access) -> list[tuple[bytes, bytes]]:
        """``x-ratelimit-…`` as OpenAI has them, of whichever limit is nearest; nothing where there is none."""
        now = self._clock()
        found: list[tuple[bytes, bytes]] = []
        for kind in ("requests", "tokens"):
            levels = [(bucket.level(limit, now), limit) for _, limit, bucket in self._buckets(access, kind, now)]
            if levels:
                level, limit = min(levels, key=lambda each: each[0] / each[1])
                reset_s = (limit - level) * MINUTE_S / limit
                for what, value in (
                    ("limit", str(limit)), ("remaining", str(max(0, int(level)))), ("reset", _duration(reset_s)),
                ):  # fmt: skip
                    found.append((f"x-ratelimit-{what}-{kind}".encode(), value.encode()))
        return found

    def _scopes(self, access: Access) -> Iterator[tuple[str, Limits, Meter]]:
        if access.key_id is None:
            return
        for kind, name, limits in (
            ("key", access.key_id, access.limits),
            ("tenant", access.tenant, access.tenant_limits),
        ):
            meter = self._meters.get((kind, name))
            if meter is None:
                meter = self._meters[kind, name] = Meter()
            yield f"{kind} {name}", limits, meter

    def _buckets(self, access: Access, kind: str, now: float) -> Iterator[tuple[str, int, Bucket]]:
        """The buckets of one kind that limit this access."""
        for whose, limits, meter in self._scopes(access):
            limit = limits.requests_per_minute if kind == "requests" else limits.tokens_per_minute
            if limit is None:
                continue
            bucket = meter.buckets.get(kind)
            if bucket is None:
                bucket = meter.buckets[kind] = Bucket(limit, now)
            yield whose, limit, bucket


def _duration(seconds: float) -> str:
    """``20ms``, ``1.5s``, ``6m0s``: as OpenAI writes them."""
    if seconds < 1.0:
        return f"{round(1000 * seconds)}ms"
    minutes, rest = divmod(round(seconds, 3), 60.0)
    return f"{minutes:.0f}m{rest:g}s" if minutes else f"{rest:g}s"
