"""The asynchronous face of the engine, as a contract: submit a prompt, iterate over what comes.

Whoever serves the engine to others (``server/``) knows these names and nothing behind them.
``engine/async_service.py`` holds the one that runs the engine in a thread of this process.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from tokenmill.core.errors import Unavailable
from tokenmill.core.events import Account, StepEvents
from tokenmill.core.grammar import Grammar
from tokenmill.core.params import SamplingParams
from tokenmill.core.pooling import Pooling
from tokenmill.core.request import CacheHints
from tokenmill.core.step import TokenLogprobs
from tokenmill.engine.choice import Output
from tokenmill.engine.watchdog import Condition

if TYPE_CHECKING:
    from tokenmill.engine.telemetry import Observation
    from tokenmill.engine.text import TextCodec

__all__ = ["Output", "RequestHandle", "Service", "Submission", "Usage"]


@dataclass(frozen=True, slots=True)
class Submission:
    """A prompt as the outside hands it over: tokens, wishes, and who asks."""

    prompt_token_ids: tuple[int, ...]
    params: SamplingParams
    request_id: str | None = None
    """None: made by the service. Never taken from a client."""
    priority: int = 0
    timeout_s: float | None = None
    """Fail with ``DeadlineExceeded`` when not done after this long; also what policy ``deadline`` orders by."""
    tenant: str = "default"
    weight: float = 1.0
    """Of the tenant, in the fair share."""
    cache_salt: str = ""
    cache: CacheHints = CacheHints()
    background: bool = False
    """Batch work: it runs in what interactive requests leave, and gives way to them."""
    pooling: Pooling | None = None
    """If given, an embedding is wanted, and ``params`` is ``core.pooling.NO_TOKENS``."""


@dataclass(frozen=True, slots=True)
class Usage:
    prompt_tokens: int
    completion_tokens: int
    """Over all choices generated, those of ``best_of`` that are not returned included."""
    cached_tokens: int


class RequestHandle(Protocol):
    """A request under way. Iterate it to the end; leave early with ``abort``."""

    request_id: str
    seed: int

    def __aiter__(self) -> AsyncIterator[Output]:
        """Increments as they come; raises ``RequestError`` if the request fails, ``Unavailable`` if the engine does."""
        ...

    def abort(self) -> None:
        """Give up: blocks are freed before the next step. Safe to call at any time, and twice."""
        ...

    @property
    def usage(self) -> Usage:
        """Tokens so far; final once the iteration ended."""
        ...

    @property
    def first_token_s(self) -> float | None:
        """Seconds from submission to the first token; None before it."""
        ...

    @property
    def account(self) -> Account | None:
        """Where the time went; None until the request has ended."""
        ...

    @property
    def embedding(self) -> bytes | None:
        """Little-endian float32, where that was asked for and the iteration (which brings no outputs) has ended."""
        ...

    @property
    def prompt_logprobs(self) -> list[TokenLogprobs | None] | None:
        """One entry per prompt token (None for the first) when asked for and computed."""
        ...


class Service(Protocol):
    """What the server is handed."""

    model_name: str
    created: int
    """Unix time of the start."""
    codec: TextCodec
    max_context: int
    """Longest prompt + answer in tokens."""
    vocab_size: int

    @property
    def condition(self) -> Condition:
        """The engine's state, judged by its progress; since when, and why."""
        ...

    @property
    def live(self) -> bool:
        """The engine runs and makes progress, or will again by itself."""
        ...

    @property
    def failed(self) -> bool:
        """The engine is gone for good; only a new process helps."""
        ...

    @property
    def ready(self) -> bool:
        """New requests are taken."""
        ...

    @property
    def draining(self) -> bool:
        """It was told to stop, and only finishes what it has."""
        ...

    async def compile(self, grammar: Grammar, *, param: str = "response_format", tenant: str = "") -> None:
        """Make sure of a grammar before a request that has it is submitted; off the event loop and off the step.
        Tenants take turns.

        Raises:
            InvalidRequest: it is malformed, unsupported or too complex; names ``param`` and the place inside it.
            Unavailable: too many others are being compiled.
        """
        ...

    def submit(self, submission: Submission) -> RequestHandle:
        """Queue a request.

        Raises:
            RequestError: it can never be done (too long, never fits, a token id out of range).
            Unavailable: not ready or draining.
        """
        ...

    def subscribe(self, listener: Callable[[StepEvents], None]) -> None:
        """Call ``listener`` with every step's events, on the event loop."""
        ...

    async def explain(self, request_id: str) -> dict[str, Any] | None:
        """The causal account of a request, running or recent; None if unknown."""
        ...

    def stats(self) -> dict[str, Any]:
        """Numbers of this moment: blocks, queue, batch, counters."""
        ...

    def observation(self) -> Observation | None:
        """Where the engine's time went; None if nobody observes it."""
        ...

    def abandon(self, error: Unavailable | None = None) -> None:
        """Everything under way ends with ``error`` (None: the engine failed), so that nobody waits in vain."""
        ...

    async def drain(self, timeout_s: float) -> bool:
        """Take nothing new, let the running finish; False if some were cut off at the timeout."""
        ...

    async def close(self) -> None: ...
