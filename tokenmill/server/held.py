"""How many bytes of requests are in memory before the engine has taken them, over all clients.

The engine's queue is bounded in tokens, but a body costs memory before anybody has counted its tokens: a thousand
clients with a megabyte each are a gigabyte that waits to be tokenised. So bytes are taken here as they arrive, and what
would go beyond the bound is refused with 503 while it is small.
"""

from __future__ import annotations

from types import TracebackType

from tokenmill.core.errors import Unavailable

RETRY_AFTER_S = 1.0


class HeldBytes:
    """The sum over all requests."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.num_bytes = 0

    def hold(self) -> Hold:
        """One request's share; give it back by leaving its ``with`` block."""
        return Hold(self)


class Hold:
    """What one request has taken so far."""

    __slots__ = ("_held", "_num_bytes")

    def __init__(self, held: HeldBytes) -> None:
        self._held = held
        self._num_bytes = 0

    def check(self, num_bytes: int) -> None:
        """Raise ``Unavailable`` if there is no room for so many more."""
        if self._held.num_bytes + num_bytes > self._held.limit:
            raise Unavailable(
                "The server holds as many request bodies as it may; try again soon.",
                code="server_overloaded",
                retry_after_s=RETRY_AFTER_S,
            )

    def take(self, num_bytes: int) -> None:
        self.check(num_bytes)
        self._held.num_bytes += num_bytes
        self._num_bytes += num_bytes

    def __enter__(self) -> Hold:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held.num_bytes -= self._num_bytes
        self._num_bytes = 0
