"""The engine behind an event loop: one thread runs ``Engine.step``, callers iterate over queues.

The two sides meet in two places only: a list of commands that the engine thread empties before each step,
and ``call_soon_threadsafe`` with each step's events. Everything about text happens on the caller's side,
when the caller asks for the next increment: a slow reader costs itself, not the engine.

A request that fails ends alone. If the engine itself fails, every handle raises ``Unavailable``, ``live``
turns false and nothing new is taken.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import threading
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from tokenmill.core.errors import RequestError, TokenmillError, Unavailable
from tokenmill.core.events import Account, Admitted, Failed, FinishedRecord, StepEvents
from tokenmill.core.request import Request
from tokenmill.core.step import TokenLogprobs
from tokenmill.engine.choice import ChoiceText, Output
from tokenmill.engine.engine import Engine
from tokenmill.engine.explain import explain_account
from tokenmill.engine.resolve import ModelLimits, resolve
from tokenmill.engine.service import Submission, Usage
from tokenmill.engine.telemetry import Observation
from tokenmill.engine.text import TextCodec

log = logging.getLogger(__name__)

MAX_RECORDS = 10_000
"""How many ended requests can still be explained."""

STALL_S = 120.0
"""An engine that has work and ends no step for this long is not live."""


class _Handle:
    """One request on the caller's side: a queue of events, and its choices' text."""

    def __init__(self, service: EngineService, request: Request, submission: Submission) -> None:
        self.request_id = request.id
        self.seed = request.seed
        self.events: asyncio.Queue[Any] = asyncio.Queue()
        self.record: FinishedRecord | None = None
        self.first_token_s: float | None = None
        self._service = service
        self._request = request
        self._cached_tokens = 0
        self._choices = [ChoiceText(i, submission.params, service.codec) for i in range(request.num_sequences)]
        self._prompt_logprobs: list[TokenLogprobs | None] = [None]

    # ---- what the caller sees ----------------------------------------------------------------------

    @property
    def usage(self) -> Usage:
        completion = sum(choice.num_tokens for choice in self._choices)
        return Usage(len(self._request.prompt_token_ids), completion, self._cached_tokens)

    @property
    def account(self) -> Account | None:
        return self.record.account if self.record else None

    @property
    def prompt_logprobs(self) -> list[TokenLogprobs | None] | None:
        complete = len(self._prompt_logprobs) == len(self._request.prompt_token_ids)
        return self._prompt_logprobs if self._request.params.prompt_logprobs is not None and complete else None

    def abort(self) -> None:
        if self.record is None:
            self._service.command(partial(Engine.abort, request_id=self.request_id))

    async def __aiter__(self) -> AsyncIterator[Output]:
        """Not to be iterated twice. Leaving the loop early gives the request up."""
        try:
            outputs = self._outputs()
            async for output in self._best(outputs) if self._ranks else outputs:
                yield output
        finally:
            self.abort()

    def admitted(self, event: Admitted) -> None:
        """The first admission of the first choice says how much of the prompt was cached."""
        if event.index == 0 and not event.resumed:
            self._cached_tokens = event.cached_tokens

    # ---- how it comes about ------------------------------------------------------------------------

    @property
    def _ranks(self) -> bool:
        params = self._request.params
        return params.num_sequences > params.n

    async def _outputs(self) -> AsyncIterator[Output]:
        """Events to outputs, until the engine says that the request is over."""
        while True:
            event = await self.events.get()
            if isinstance(event, FinishedRecord):
                return
            if isinstance(event, TokenmillError):
                raise event
            if isinstance(event, tuple):
                _, index, token_ids, logprobs, reason = event
                choice = self._choices[index]
                if not choice.done:
                    output = choice.push(token_ids, logprobs, reason)
                    if choice.stopped_by_text:
                        self._service.command(partial(Engine.stop, request_id=self.request_id, index=index))
                    yield output
            else:
                self._prompt_logprobs += event.entries

    async def _best(self, outputs: AsyncIterator[Output]) -> AsyncIterator[Output]:
        """All choices to their ends, then the ``n`` with the highest mean log-probability, in that order."""
        collected: list[list[Output]] = [[] for _ in self._choices]
        async for output in outputs:
            collected[output.index].append(output)
        ranking = sorted(self._choices, key=lambda choice: (-choice.mean_logprob, choice.index))
        for index, choice in enumerate(ranking[: self._request.params.n]):
            for output in collected[choice.index]:
                yield replace(output, index=index)


class EngineService:
    """``engine/service.py``'s ``Service`` over an engine in this process.

    Make it, then ``await start()`` on the loop that will use it.
    """

    def __init__(self, engine: Engine, codec: TextCodec, limits: ModelLimits, *, model_name: str) -> None:
        self.engine = engine
        self.codec = codec
        self.limits = limits
        self.model_name = model_name
        self.max_context = limits.max_context
        self.vocab_size = limits.vocab_size
        self.created = int(time.time())
        self.draining = False
        self.error: BaseException | None = None
        """What the engine died of."""
        self._commands: deque[Callable[[Engine], None]] = deque()
        self._wake = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="tokenmill-engine", daemon=True)
        self._heartbeat_s = engine.clock.now()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._handles: dict[str, _Handle] = {}
        self._records: OrderedDict[str, FinishedRecord] = OrderedDict()
        self._listeners: list[Callable[[StepEvents], None]] = []
        self._idle = asyncio.Event()
        self._counters = dict.fromkeys(("requests", "prompt_tokens", "generated_tokens", "finished", "failed"), 0)
        self._counters["aborted"] = 0

    # ---- life --------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Begin to serve; the executor has been started."""
        self._loop = asyncio.get_running_loop()
        self._idle.set()
        self._thread.start()

    @property
    def live(self) -> bool:
        stalled = self.engine.has_work and self.engine.clock.now() - self._heartbeat_s > STALL_S
        return not self.failed and not stalled

    @property
    def failed(self) -> bool:
        return self.error is not None or not self._thread.is_alive()

    @property
    def ready(self) -> bool:
        return self.live and not self.draining

    async def drain(self, timeout_s: float) -> bool:
        self.draining = True
        try:
            await asyncio.wait_for(self._idle.wait(), timeout_s)
        except TimeoutError:
            for handle in list(self._handles.values()):
                handle.events.put_nowait(Unavailable("the server is shutting down", code="server_shutting_down"))
                handle.abort()
            return False
        return True

    async def close(self) -> None:
        self.draining = self._closing = True
        self._wake.set()
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join)
        self.engine.close()

    # ---- requests ----------------------------------------------------------------------------------

    def submit(self, submission: Submission) -> _Handle:
        if not self.ready:
            why = "the server is shutting down" if self.draining else "the engine is not running"
            raise Unavailable(why, code="server_shutting_down" if self.draining else None, retry_after_s=5.0)
        request = resolve(
            submission,
            self.limits,
            self.codec,
            request_id=submission.request_id or f"req_{secrets.token_hex(16)}",
            seed=secrets.randbits(63),
            now=self.engine.clock.now(),
        )
        self.engine.scheduler.check_fits(request)
        handle = _Handle(self, request, submission)
        self._handles[request.id] = handle
        self._idle.clear()
        self._counters["requests"] += 1
        self.command(lambda engine: self._add(engine, request))
        return handle

    def command(self, command: Callable[[Engine], None]) -> None:
        """Have the engine thread call this before its next step."""
        self._commands.append(command)
        self._wake.set()

    def subscribe(self, listener: Callable[[StepEvents], None]) -> None:
        self._listeners.append(listener)

    def explain(self, request_id: str) -> dict[str, Any] | None:
        record = self._records.get(request_id)
        if record is not None:
            return {**asdict(record), "state": record.outcome, **explain_account(record.account)}
        account = self.engine.scheduler.explain(request_id, self.engine.clock.now())
        if account is None:
            return None
        return {"request_id": request_id, "state": "running", "account": asdict(account), **explain_account(account)}

    def stats(self) -> dict[str, Any]:
        scheduler = self.engine.scheduler
        pool = scheduler.cache.pool
        return {
            "running": scheduler.num_running,
            "waiting": scheduler.num_waiting,
            "steps": scheduler.num_steps,
            "preemptions": scheduler.num_preemptions,
            "blocks_total": pool.num_blocks,
            "blocks_free": pool.num_free,
            "blocks_cached": pool.num_cached,
            "blocks_held": pool.num_held,
            "block_size": scheduler.cache.block_size,
            "blocks_evicted": pool.num_evicted,
            "prefix_queried_tokens": scheduler.cache.num_queried_tokens,
            "prefix_hit_tokens": scheduler.cache.num_hit_tokens,
            **self._counters,
        }

    def observation(self) -> Observation | None:
        telemetry = self.engine.telemetry
        return telemetry.observation(self.engine.clock.now()) if telemetry else None

    # ---- the engine's thread -----------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._closing:
                self._wake.clear()
                self._obey()
                self._heartbeat_s = self.engine.clock.now()
                events = self.engine.step()
                self._post(events)
                if events.num_tokens == 0:
                    self._wait()
        except BaseException as error:
            log.exception("the engine failed")
            self.error = error
            self._call(self._die)

    def _obey(self) -> None:
        while self._commands:
            self._commands.popleft()(self.engine)

    def _add(self, engine: Engine, request: Request) -> None:
        try:
            engine.add(request)
        except RequestError as error:
            events = StepEvents(decisions=[Failed(request.id, error)])
            self._post(events)

    def _wait(self) -> None:
        """Until a command comes, or the moment at which the scheduler may find something to do."""
        wake_after_s = self.engine.scheduler.wake_after_s(self.engine.clock.now())
        self._wake.wait(1.0 if wake_after_s is None else min(wake_after_s, 1.0))

    def _post(self, events: StepEvents) -> None:
        if events.num_tokens or events.tokens or events.decisions or events.finished:
            self._call(lambda: self._deliver(events))

    def _call(self, callback: Callable[[], None]) -> None:
        assert self._loop is not None
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(callback)

    # ---- on the loop -------------------------------------------------------------------------------

    def _deliver(self, events: StepEvents) -> None:
        handles = self._handles
        for decision in events.decisions:
            if isinstance(decision, Failed) and (handle := handles.get(decision.request_id)):
                handle.events.put_nowait(decision.error)
            elif isinstance(decision, Admitted) and decision.request_id in handles:
                handles[decision.request_id].admitted(decision)
        for prompt_logprobs in events.prompt_logprobs:
            if handle := handles.get(prompt_logprobs.request_id):
                handle.events.put_nowait(prompt_logprobs)
        for event in events.tokens:
            if handle := handles.get(event[0]):
                handle.events.put_nowait(event)
        for record in events.finished:
            self._finish(record)
        for listener in self._listeners:
            listener(events)

    def _finish(self, record: FinishedRecord) -> None:
        self._records[record.request_id] = record
        while len(self._records) > MAX_RECORDS:
            self._records.popitem(last=False)
        self._counters[record.outcome] += 1
        self._counters["prompt_tokens"] += record.prompt_tokens
        self._counters["generated_tokens"] += record.generated_tokens
        handle = self._handles.pop(record.request_id, None)
        if handle is not None:
            handle.record = record
            if record.first_token_s is not None:
                handle.first_token_s = record.first_token_s - record.arrival_s
            handle.events.put_nowait(record)
        if not self._handles:
            self._idle.set()

    def _die(self) -> None:
        """The engine is gone: nobody waits in vain."""
        for handle in self._handles.values():
            handle.events.put_nowait(Unavailable("the engine failed; the request was lost", code="engine_failed"))
        self._handles.clear()
        self._idle.set()
