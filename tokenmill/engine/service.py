"""The asynchronous face of the engine: submit a prompt, iterate over what comes.

One thread runs ``Engine.step``; callers live on an asyncio loop. They meet in two places only: a list of
commands that the engine thread empties before each step, and ``call_soon_threadsafe`` with each step's
events. Everything about text (detokenising, stop strings) happens on the caller's side, per request.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from tokenmill.core.events import Account
from tokenmill.core.params import SamplingParams
from tokenmill.core.request import CacheHints, FinishReason
from tokenmill.core.step import TokenLogprobs

if TYPE_CHECKING:
    from tokenmill.engine.text import TextCodec


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
    cache_salt: str = ""
    cache: CacheHints = CacheHints()


@dataclass(frozen=True, slots=True)
class Output:
    """One increment of one choice. Concatenated per ``index``, the texts are the answer."""

    index: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...] | None
    """One entry per token of ``token_ids`` when asked for."""
    token_texts: tuple[str, ...] | None
    """With logprobs: each token's own text (bytes that are no UTF-8 show as U+FFFD)."""
    finish_reason: FinishReason | None
    stop_reason: int | str | None = None
    """The stop token or stop string that ended it; None for the model's own end or the length."""


@dataclass(frozen=True, slots=True)
class Usage:
    prompt_tokens: int
    completion_tokens: int
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
    def account(self) -> Account | None:
        """Where the time went; None until the request has ended."""
        ...

    @property
    def prompt_logprobs(self) -> list[TokenLogprobs | None] | None:
        """One entry per prompt token (None for the first) when asked for and computed."""
        ...


class ServiceState(Protocol):
    """What health, metrics and pages may ask."""

    @property
    def live(self) -> bool:
        """The engine thread runs and makes progress."""
        ...

    @property
    def ready(self) -> bool:
        """New requests are taken."""
        ...


class Service(Protocol):
    """What the server is handed; ``EngineService`` below is the real one."""

    model_name: str
    created: int
    """Unix time of the start."""
    codec: TextCodec
    max_context: int
    """Longest prompt + answer in tokens."""
    vocab_size: int
    live: bool
    ready: bool

    def submit(self, submission: Submission) -> RequestHandle:
        """Queue a request.

        Raises:
            RequestError: it can never be done (too long, never fits, a token id out of range).
            Unavailable: not ready or draining.
        """
        ...

    def explain(self, request_id: str) -> dict[str, Any] | None:
        """The causal account of a request, running or recent; None if unknown."""
        ...

    def stats(self) -> dict[str, Any]:
        """Numbers of this moment: blocks, queue, batch, counters."""
        ...

    async def drain(self, timeout_s: float) -> bool:
        """Take nothing new, let the running finish; False if some were cut off at the timeout."""
        ...

    async def close(self) -> None: ...
