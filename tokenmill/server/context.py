"""What every endpoint is handed: the service, the settings, the metrics, and the server's own state."""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections.abc import Callable, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from tokenmill import __version__
from tokenmill.core.errors import ContextLengthExceeded, ModelNotFound, Unavailable
from tokenmill.engine.faults import fire
from tokenmill.engine.service import Service
from tokenmill.server.access import OPEN, Access
from tokenmill.server.access.door import Door
from tokenmill.server.access.meters import Meters
from tokenmill.server.admission import Admission
from tokenmill.server.errors import HttpError
from tokenmill.server.held import HeldBytes
from tokenmill.server.metrics import ServerMetrics
from tokenmill.server.observe.observer import Observer
from tokenmill.server.observe.tracing import tracer_to
from tokenmill.server.settings import ServerSettings
from tokenmill.server.slices import Slices

if TYPE_CHECKING:
    from tokenmill.server.batches.runner import BatchRunner
    from tokenmill.server.files.records import Files
    from tokenmill.server.generate import Generation
    from tokenmill.server.responses.state import Responses

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
    """When the last of its header had come, on ``time.monotonic``."""
    submitted: bool = False
    """The engine has taken it: from now on it can fail, but no longer be refused."""
    access: Access = OPEN
    """Who asks: found out by the guard from the key, never from the body."""
    background: bool = False
    """Batch work: it runs in what interactive requests leave, and gives way to them."""
    generation: Generation | None = None
    """What it had the engine do."""
    error: str | None = None
    """The code of the error that it was answered with."""

    def answer_id(self, prefix: str) -> str:
        return prefix + self.request_id.removeprefix("req_")


def tenant_of(ticket: Ticket) -> str:
    """Whose request it is: what is stored for it belongs to this tenant, and no other sees it."""
    return ticket.access.tenant


@dataclass(slots=True)
class Context:
    service: Service
    settings: ServerSettings
    metrics: ServerMetrics
    fingerprint: str
    """``system_fingerprint``: the same for every answer of one engine configuration."""
    files: Files
    batches: BatchRunner = field(init=False)
    """Set by ``create_app``: it calls the app that is made around this context."""
    generating: frozenset[str] = frozenset()
    """Addresses whose POST wants the engine."""
    draining: bool = False
    """No new requests: the process is about to end."""
    cut: Callable[[MutableMapping[str, Any]], None] = _cut_nothing
    """Closes the connection of an ASGI scope at once, dropping what is buffered."""
    responses: Responses = field(init=False)
    """Those that are kept, and those under way in the background."""
    held: HeldBytes = field(init=False)
    """Bodies in memory that the engine has not taken yet."""
    door: Door = field(init=False)
    """Finds out from a request's headers who sends it."""
    meters: Meters = field(init=False)
    """What each key and tenant has used of its limits."""
    admission: Admission = field(init=False)
    """Decides who may wait for the engine."""
    observer: Observer = field(init=False)
    """Tells of each request once it has ended: metrics, log, spans."""
    slices: Slices = field(default_factory=Slices)
    """Lets few requests for the engine begin at one time."""
    _pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(2, "tokenise"))

    def __post_init__(self) -> None:
        self.held = HeldBytes(self.settings.max_held_bytes)
        self.door = Door(self.settings.api_key, self.settings.keys)
        self.meters = Meters()
        reserve = 1.0 if self.door.knows_tenants else 0.0
        self.admission = Admission(self.service, self.settings, self.meters, reserve_weight=reserve)
        self.metrics.watch(self.admission)
        self.observer = Observer(
            self.metrics,
            names_tenants=self.door.knows_tenants,
            details=self.settings.log_requests,
            tracer=None if self.settings.otlp is None else tracer_to(self.settings.otlp),
        )

    @property
    def ready(self) -> bool:
        return self.service.ready and not self.draining

    def check_ready(self) -> None:
        """Raise ``Unavailable`` while new requests are not taken."""
        if self.draining:
            raise Unavailable("The server is shutting down.", code="server_shutting_down", retry_after_s=5.0)
        if not self.service.ready:
            raise Unavailable("The server is not ready for requests.", code="not_ready", retry_after_s=5.0)

    def check_admin(self, ticket: Ticket) -> None:
        """Raise ``HttpError`` 403 for a key that may only see what is its tenant's."""
        if not ticket.access.admin:
            raise HttpError(403, "This address is for keys of administrators.", code="admin_only")

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
            fire("text.tokenise", texts)
            return work()

        return await self.off_loop(num_bytes + 256 * len(texts), bounded)

    def _too_long(self, num_bytes: int, at_least: int, param: str) -> ContextLengthExceeded:
        return ContextLengthExceeded(
            f"This model's maximum context length is {self.service.max_context} tokens, but {param} holds "
            f"{num_bytes} bytes: at least {at_least} tokens.",
            param=param,
        )

    def close(self) -> None:
        """Let the tokenising threads and the stored files go."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self.files.store.close()
        self.observer.close()

    async def off_loop(self, num_bytes: int, work: Callable[[], T], *, inline_bytes: int = INLINE_BYTES) -> T:
        """Do work over ``num_bytes`` of text; above ``inline_bytes`` it does not hold up the event loop."""
        if num_bytes <= inline_bytes:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)


def fingerprint_of(service: Service) -> str:
    """A name for what decides the tokens, as far as the service tells: model, sizes, version."""
    parts = (__version__, service.model_name, str(service.max_context), str(service.vocab_size))
    return "fp_" + hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]
