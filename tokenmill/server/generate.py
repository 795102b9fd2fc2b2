"""One HTTP request's generation, whatever its endpoint: submit, follow, account for, and never leave behind.

A ``Generation`` is one or more prompts submitted together. ``outputs`` brings ``(prompt, Output)`` as the engine
makes them; ``close`` gives up whatever is not done. Whoever makes one closes it, on every path: that
is what frees the blocks of a client that went away.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, MutableMapping, Sequence
from typing import Any, Literal, TypeVar

from tokenmill.core.errors import InvalidRequest, TokenmillError, Unavailable
from tokenmill.core.events import Account
from tokenmill.core.params import SamplingParams
from tokenmill.core.pooling import Pooling
from tokenmill.core.request import CacheHints
from tokenmill.engine.service import Output, RequestHandle, Submission
from tokenmill.server.context import Context, Ticket
from tokenmill.server.errors import ClientGone
from tokenmill.server.observe import Work
from tokenmill.server.protocol.base import EngineRequest, TimingBody, UsageBody, usage_body

AbortCause = Literal["disconnect", "write_stall"]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
T = TypeVar("T")


class Generation:
    """The submissions of one HTTP request; ``handles`` are in the order of the prompts."""

    def __init__(
        self,
        context: Context,
        ticket: Ticket,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams,
        wishes: EngineRequest,
        pooling: Pooling | None = None,
    ) -> None:
        """Submit everything or nothing. With ``pooling`` each prompt becomes an embedding, and nothing is put out.

        Raises:
            RateLimited, Unavailable: see ``Admission.enter``.
            RequestError, Unavailable: see ``Service.submit``; prompts already submitted are aborted.
        """
        self._context = context
        self._metrics = context.metrics
        self.started_s = ticket.started_s
        self.params = params
        self.first_token_s: float | None = None
        self.num_reasoning_tokens: int | None = None
        """Set by whoever tells reasoning from the answer."""
        self._last_s: dict[tuple[int, int], float] = {}
        self._num_tokens: dict[tuple[int, int], int] = {}
        self._ended = False
        self._finish_reasons: list[str] = []
        self._error: str | None = None
        self._listeners: list[Callable[[], None]] = []
        _check_budget(context, len(prompts), params)
        self.handles: list[RequestHandle] = []
        submissions = [
            _submission(ticket, index, prompt, params, wishes, pooling) for index, prompt in enumerate(prompts)
        ]
        self._slot = context.admission.enter(ticket, submissions)
        try:
            for submission in submissions:
                self.handles.append(context.service.submit(submission))
        except BaseException:
            self._end()
            raise
        self._submitted_s = time.monotonic()
        ticket.submitted = True
        ticket.generation = self

    @property
    def num_choices(self) -> int:
        return len(self.handles) * self.params.n

    async def outputs(self) -> AsyncGenerator[tuple[int, Output], None]:
        """Increments as they come, with the number of their prompt; raises what ends the request."""
        try:
            await self._slot.wait_begun()
            async with contextlib.aclosing(_merge(self.handles)) as outputs:
                async for prompt, output in outputs:
                    yield prompt, output
                    self._observe(prompt, output)  # now it has been handed on: a stream has written its frame
        except TokenmillError as error:
            self._error = error.code
            # An engine that is gone tells nothing more of what it had.
            self._end(lost=isinstance(error, Unavailable) and error.code != "queue_timeout")
            self._metrics.failed.labels(error.code).inc()
            raise
        self._end()
        self._metrics.e2e.observe(time.monotonic() - self.started_s)
        for handle in self.handles:
            if handle.account is not None:
                self._metrics.ended(handle.account, handle.usage, self.params.num_sequences)

    def close(self, cause: AbortCause = "disconnect") -> None:
        """Give up what is still running; does nothing once the request has ended."""
        if not self._ended:
            self._error = cause
            self._end()
            self._metrics.aborted.labels(cause).inc()

    def _end(self, *, lost: bool = False) -> None:
        self._ended = True
        self._abort()
        usage = [handle.usage for handle in self.handles]
        used_tokens = sum(each.prompt_tokens + each.completion_tokens for each in usage)
        submitted = [handle.request_id for handle in self.handles]
        self._slot.close(used_tokens, submitted, lost=lost or not self._context.service.live)
        for tell in self._listeners:
            tell()
        self._listeners.clear()

    def when_over(self, tell: Callable[[], None]) -> None:
        """Call ``tell`` once it has ended: now, unless it goes on without its HTTP request (in the background)."""
        if self._ended:
            tell()
        else:
            self._listeners.append(tell)

    def _abort(self) -> None:
        for handle in self.handles:
            handle.abort()

    def _observe(self, prompt: int, output: Output) -> None:
        now, key = time.monotonic(), (prompt, output.index)
        if output.token_ids:
            if self.first_token_s is None:
                self.first_token_s = now - self.started_s
                self._metrics.ttft.observe(self.first_token_s)
            if key in self._last_s:
                self._metrics.itl.observe(now - self._last_s[key])
            self._last_s[key] = now
            self._num_tokens[key] = self._num_tokens.get(key, 0) + len(output.token_ids)
        if output.finish_reason is not None:
            self._finish_reasons.append(output.finish_reason)
            self._metrics.finished.labels(output.finish_reason).inc()

    @property
    def usage(self) -> UsageBody:
        usage = usage_body([handle.usage for handle in self.handles])
        if self.num_reasoning_tokens is not None:
            usage["completion_tokens_details"] = {"reasoning_tokens": self.num_reasoning_tokens}
        return usage

    def work(self) -> Work:
        """What it had the engine do, for those who tell of it once it is over."""
        usage = [handle.usage for handle in self.handles]
        return Work(
            model=self._context.service.model_name,
            params=self.params,
            num_prompts=len(self.handles),
            submitted_s=self._submitted_s,
            prompt_tokens=sum(each.prompt_tokens for each in usage),
            completion_tokens=sum(each.completion_tokens for each in usage),
            cached_tokens=sum(each.cached_tokens for each in usage),
            first_token_s=self.first_token_s,
            finish_reasons=tuple(self._finish_reasons),
            account=self._slowest,
            error=self._error,
        )

    @property
    def _slowest(self) -> Account | None:
        """The account of the prompt that took longest; None before there is one."""
        accounts = [handle.account for handle in self.handles if handle.account is not None]
        return max(accounts, key=lambda account: account.total_s, default=None)

    @property
    def timing(self) -> TimingBody | None:
        """Of the prompt that took longest; None before its account is there."""
        slowest = self._slowest
        if slowest is None:
            return None
        longest, total = max(self._num_tokens.values(), default=0), sum(self._num_tokens.values())
        return {
            "queue_s": slowest.queue_s,
            "prefill_s": slowest.prefill_s,
            "decode_s": slowest.decode_s,
            "total_s": slowest.total_s,
            "ttft_s": self.first_token_s,
            "tpot_s": slowest.decode_s / (longest - 1) if longest > 1 else None,
            "tokens_per_s": total / slowest.total_s if slowest.total_s > 0 and total else None,
            "chunks": slowest.num_chunks,
            "preemptions": slowest.num_preemptions,
        }


def _submission(
    ticket: Ticket,
    index: int,
    prompt: Sequence[int],
    params: SamplingParams,
    wishes: EngineRequest,
    pooling: Pooling | None,
) -> Submission:
    access, request_id = ticket.access, ticket.request_id
    return Submission(
        prompt_token_ids=tuple(prompt),
        params=params,
        request_id=f"{request_id}.{index}" if index else request_id,
        priority=_priority(ticket, wishes),
        timeout_s=wishes.timeout_s,
        tenant=_tenant(ticket, wishes),
        weight=access.weight,
        cache_salt=wishes.cache_salt or "",
        cache=CacheHints(wishes.cache.priority, wishes.cache.ttl_s, wishes.cache.pin),
        background=ticket.background,
        pooling=pooling,
    )


def _tenant(ticket: Ticket, wishes: EngineRequest) -> str:
    """The key's, where keys have tenants; a body that says otherwise is refused, not overruled in silence."""
    access = ticket.access
    if access.names_tenant:
        return wishes.tenant
    if "tenant" in wishes.model_fields_set and wishes.tenant != access.tenant:
        raise InvalidRequest(f"This key belongs to tenant '{access.tenant}': leave 'tenant' out.", param="tenant")
    return access.tenant


def _priority(ticket: Ticket, wishes: EngineRequest) -> int:
    best = ticket.access.best_priority
    if best is not None and wishes.priority < best:
        raise InvalidRequest(f"This key's requests may have a priority of {best} and above.", param="priority")
    return wishes.priority


def _check_budget(context: Context, num_prompts: int, params: SamplingParams) -> None:
    limit = context.service.max_context if params.max_tokens is None else params.max_tokens
    wanted = num_prompts * params.num_sequences * min(limit, context.service.max_context)
    if wanted > context.settings.max_request_tokens:
        raise InvalidRequest(
            f"{num_prompts} prompts × {params.num_sequences} choices × {limit} tokens are more than the "
            f"{context.settings.max_request_tokens} tokens that one request may ask for; lower n or max_tokens",
            param="n",
        )


async def _merge(handles: Sequence[RequestHandle]) -> AsyncGenerator[tuple[int, Output], None]:
    """The increments of several handles as they come; the first failure ends them all."""
    if len(handles) == 1:
        async for output in handles[0]:
            yield 0, output
        return
    queue: asyncio.Queue[tuple[int, Output | BaseException | None]] = asyncio.Queue(maxsize=4 * len(handles))
    tasks = [asyncio.create_task(_forward(index, handle, queue)) for index, handle in enumerate(handles)]
    try:
        running = len(tasks)
        while running:
            index, item = await queue.get()
            if isinstance(item, BaseException):
                raise item
            if item is None:
                running -= 1
            else:
                yield index, item
    finally:
        await cancel(*tasks)


async def _forward(
    index: int, handle: RequestHandle, queue: asyncio.Queue[tuple[int, Output | BaseException | None]]
) -> None:
    try:
        async for output in handle:
            await queue.put((index, output))
        await queue.put((index, None))
    except Exception as error:  # noqa: BLE001  (passed on: the reader raises it)
        await queue.put((index, error))


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Do ``work`` while watching the connection.

    Raises:
        ClientGone: the client closed it first; ``work`` has been cancelled and has ended.
    """
    worker = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(gone(receive))
    try:
        await asyncio.wait({worker, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if not worker.done():
            raise ClientGone
        return worker.result()
    finally:
        await cancel(worker, watcher)


async def gone(receive: Receive) -> None:
    """Return when the client has closed the connection."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def cancel(*tasks: asyncio.Future[Any]) -> None:
    """Cancel and wait until all have ended."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
