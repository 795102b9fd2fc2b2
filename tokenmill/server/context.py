"""What every endpoint is handed: the service, the settings, the metrics, and the server's own state."""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections.abc import Callable, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from tokenmill import __version__
from tokenmill.core.errors import ContextLengthExceeded, ModelNotFound, Unavailable
from tokenmill.engine.service import Service
from tokenmill.server.metrics import ServerMetrics
from tokenmill.server.settings import ServerSettings

INLINE_BYTES = 4096
"""Texts up to this size are tokenised on the event loop: handing them over would take longer."""

PLAIN_BYTES_PER_TOKEN = 2
"""Fewer than natural language and code have: with this much per token of the context, a text need not fit."""

T = TypeVar("T")


def _cut_nothing(scope: MutableMapping[str, Any]) -> None:
    """Without a real connection there is nothing to cut."""


@dataclass(slots=True)
class Ticket:
    """One HTTP request's identity: made by the guard, never taken from the client."""

    request_id: str
    """``req_`` and 32 hexadecimal digits; the answer's own id has the same digits."""
    started_s: float
    """When it arrived, on ``time.monotonic``."""
    submitted: bool = False
    """The engine has taken it: from now on it can fail, but no longer be refused."""

    def answer_id(self, prefix: str) -> str:
        return prefix + self.request_id.removeprefix("req_")


@dataclass(slots=True)
class Context:
    service: Service
    settings: ServerSettings
    metrics: ServerMetrics
    fingerprint: str
    """``system_fingerprint``: the same for every answer of one engine configuration."""
    draining: bool = False
    """No new requests: the process is about to end."""
    cut: Callable[[MutableMapping[str, Any]], None] = _cut_nothing
    """Closes the connection of an ASGI scope at once, dropping what is buffered."""
    _pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(2, "tokenise"))

    @property
    def ready(self) -> bool:
        return self.service.ready and not self.draining

    def check_ready(self) -> None:
        """Raise ``Unavailable`` while new requests are not taken."""
        if self.draining:
            raise Unavailable("The server is shutting down.", code="server_shutting_down", retry_after_s=5.0)
        if not self.service.ready:
            raise Unavailable("The server is not ready for requests.", code="not_ready", retry_after_s=5.0)

    def check_model(self, name: str | None) -> None:
        """Raise ``ModelNotFound`` for any name but the served one; None asks for whatever is served."""
        if name is not None and name != self.service.model_name:
            raise ModelNotFound(
                f"The model '{name}' does not exist; this server has '{self.service.model_name}'.", param="model"
            )

    async def tokenise(self, texts: Sequence[str], param: str, work: Callable[[], list[int]]) -> list[int]:
        """``work``, which makes tokens of ``texts``; if they are large, neither on the event loop nor without bound.

        A text that cannot fit the context is refused before ``work``, since tokenising takes some hundred bytes of
        memory per byte: by its length alone, or from a count in pieces once it has bytes enough.

        Raises:
            ContextLengthExceeded: it cannot fit; one that is only a little too long is left to the engine's check.
        """
        limit, codec = self.service.max_context, self.service.codec
        num_bytes = sum(len(text.encode()) for text in texts)
        if num_bytes > limit * codec.max_bytes_per_token:
            raise self._too_long(num_bytes, math.ceil(num_bytes / codec.max_bytes_per_token), param)

        def bounded() -> list[int]:
            if num_bytes > limit * PLAIN_BYTES_PER_TOKEN and codec.exceeds("".join(texts), limit):
                raise self._too_long(num_bytes, limit + 1, param)
            return work()

        return await self.off_loop(num_bytes + 256 * len(texts), bounded)

    def _too_long(self, num_bytes: int, at_least: int, param: str) -> ContextLengthExceeded:
        return ContextLengthExceeded(
            f"This model's maximum context length is {self.service.max_context} tokens, but {param} holds "
            f"{num_bytes} bytes: at least {at_least} tokens.",
            param=param,
        )

    def close(self) -> None:
        """Let the tokenising threads go."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def off_loop(self, num_bytes: int, work: Callable[[], T], *, inline_bytes: int = INLINE_BYTES) -> T:
        """Do work over ``num_bytes`` of text; above ``inline_bytes`` it does not hold up the event loop."""
        if num_bytes <= inline_bytes:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)


def fingerprint_of(service: Service) -> str:
    """A name for what decides the tokens, as far as the service tells: model, sizes, version."""
    parts = (__version__, service.model_name, str(service.max_context), str(service.vocab_size))
    return "fp_" + hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]
