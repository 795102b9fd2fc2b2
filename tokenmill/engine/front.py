"""The side of a service on which its callers stand: one handle a request, text made when it is asked for.

Where the engine runs is behind three verbs (``_add``, ``abort``, ``stop``) and one way back (``deliver``): a thread
of this process (``async_service.py``) or a process of its own (``remote/``). Everything about text happens here, when
the caller asks for the next increment: a slow reader costs itself, not the engine.

What fails in one request's text, or in a listener, ends there. If the engine is gone, every handle raises
``Unavailable``: nobody waits in vain.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict, replace
from typing import Any

from tokenmill.core.clock import Clock
from tokenmill.core.errors import TokenmillError, Unavailable
from tokenmill.core.events import Account, Admitted, EmbeddingEvent, Failed, FinishedRecord, StepEvents
from tokenmill.core.request import Request
from tokenmill.core.step import TokenLogprobs
from tokenmill.engine.choice import ChoiceText, Output
from tokenmill.engine.explain import explain_account
from tokenmill.engine.faults import fire
from tokenmill.engine.resolve import ModelLimits, resolve
from tokenmill.engine.service import Submission, Usage
from tokenmill.engine.text import TextCodec
from tokenmill.engine.watchdog import NOT_LIVE, Condition, State

log = logging.getLogger(__name__)

MAX_RECORDS = 10_000
"""How many ended requests can still be explained."""


class Handle:
    """One request on the caller's side: a queue of events, and its choices' text."""

    def __init__(self, front: Front, request: Request, submission: Submission) -> None:
        self.request_id = request.id
        self.seed = request.seed
        self.events: asyncio.Queue[Any] = asyncio.Queue()
        self.record: FinishedRecord | None = None
        self.first_token_s: float | None = None
        self.embedding: bytes | None = None
        self.keeps: object = None
        """Something that must last as long as the request: its compiled grammar."""
        self._front = front
        self._request = request
        self._admitted = False
        self._cached_tokens = 0
        self._choices = [ChoiceText(i, submission.params, front.codec) for i in range(request.num_sequences)]
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
            self._front.abort(self.request_id)

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
        if event.index == 0 and not self._admitted:
            self._admitted = True
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
                    fire("text.detokenise", self._request, tokens=lambda: self._request.prompt_token_ids)
                    output = choice.push(token_ids, logprobs, reason)
                    if choice.stopped_by_text:
                        self._front.stop(self.request_id, index)
                    yield output
            elif isinstance(event, EmbeddingEvent):
                self.embedding = event.values
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


class Front(ABC):
    """Everything of ``engine/service.py``'s ``Service`` that does not depend on where the engine runs."""

    def __init__(self, codec: TextCodec, limits: ModelLimits, clock: Clock, *, model_name: str) -> None:
        self.codec = codec
        self.limits = limits
        self.clock = clock
        """The engine's: arrivals and deadlines are moments on it."""
        self.model_name = model_name
        self.max_context = limits.max_context
        self.vocab_size = limits.vocab_size
        self.created = int(time.time())
        self.draining = False
        self._condition = Condition("starting", time.time())
        self._handles: dict[str, Handle] = {}
        self._records: OrderedDict[str, FinishedRecord] = OrderedDict()
        self._listeners: list[Callable[[StepEvents], None]] = []
        self._idle = asyncio.Event()
        self._idle.set()
        names = ("requests", "prompt_tokens", "generated_tokens", "finished", "failed", "aborted", "engine_deaths")
        self._counters = dict.fromkeys(names, 0)

    # ---- where the engine runs ---------------------------------------------------------------------

    @abstractmethod
    def _judge(self) -> tuple[State, str]:
        """The engine's state at this moment, and why."""

    @abstractmethod
    def _check_fits(self, request: Request) -> None:
        """Raise ``NeverFits`` if the pool is too small for it."""

    @abstractmethod
    def _add(self, request: Request) -> None:
        """Hand a request over to the engine."""

    @abstractmethod
    def abort(self, request_id: str) -> None:
        """Have the engine give a request up; unknown ids are fine."""

    @abstractmethod
    def stop(self, request_id: str, index: int) -> None:
        """Have the engine end one choice; unknown ids are fine."""

    @abstractmethod
    async def _explain_live(self, request_id: str) -> Account | None:
        """The account so far of a request under way."""

    # ---- state -------------------------------------------------------------------------------------

    @property
    def condition(self) -> Condition:
        """What it is now, and since when."""
        state, why = self._judge()
        if state == "ready" and self.draining:
            state, why = "draining", "the server is shutting down"
        if (state, why) != (self._condition.state, self._condition.why):
            since = self._condition.since if state == self._condition.state else time.time()
            self._condition = Condition(state, since, why)
        return self._condition

    @property
    def live(self) -> bool:
        return self.condition.state not in NOT_LIVE

    @property
    def failed(self) -> bool:
        return not self.live

    @property
    def ready(self) -> bool:
        return self.condition.state == "ready"

    async def drain(self, timeout_s: float) -> bool:
        self.draining = True
        try:
            await asyncio.wait_for(self._idle.wait(), timeout_s)
        except TimeoutError:
            self.abandon(Unavailable("the server is shutting down", code="server_shutting_down"))
            return False
        return True

    def abandon(self, error: Unavailable | None = None) -> None:
        """The engine is gone, or will be: everybody who waits is told."""
        error = error or Unavailable("the engine failed; the request was lost", code="engine_failed", retry_after_s=5.0)
        for handle in list(self._handles.values()):
            handle.events.put_nowait(error)
            handle.abort()
        if self.failed:
            self._handles.clear()
            self._idle.set()

    # ---- requests ----------------------------------------------------------------------------------

    def submit(self, submission: Submission) -> Handle:
        condition = self.condition
        if condition.state != "ready":
            why, code = condition.why or f"the engine is {condition.state}", None
            if self.draining:
                why, code = "the server is shutting down", "server_shutting_down"
            raise Unavailable(why, code=code, retry_after_s=5.0)
        request = resolve(
            submission,
            self.limits,
            self.codec,
            request_id=submission.request_id or f"req_{secrets.token_hex(16)}",
            seed=secrets.randbits(63),
            now=self.clock.now(),
        )
        self._check_fits(request)
        handle = Handle(self, request, submission)
        self._handles[request.id] = handle
        self._idle.clear()
        self._counters["requests"] += 1
        self._add(request)
        return handle

    def subscribe(self, listener: Callable[[StepEvents], None]) -> None:
        self._listeners.append(listener)

    async def explain(self, request_id: str) -> dict[str, Any] | None:
        record = self._records.get(request_id)
        if record is not None:
            return {**asdict(record), "state": record.outcome, **explain_account(record.account)}
        account = await self._explain_live(request_id)
        if account is None:
            return None
        return {"request_id": request_id, "state": "running", "account": asdict(account), **explain_account(account)}

    # ---- what comes back ---------------------------------------------------------------------------

    def deliver(self, events: StepEvents) -> None:
        """Hand a step's events to whom they concern. On the event loop."""
        handles = self._handles
        failed = []
        for decision in events.decisions:
            if isinstance(decision, Failed) and (handle := handles.get(decision.request_id)):
                handle.events.put_nowait(decision.error)
                failed.append(decision.request_id)
            elif isinstance(decision, Admitted) and decision.request_id in handles:
                handles[decision.request_id].admitted(decision)
        for prompt_logprobs in events.prompt_logprobs:
            if handle := handles.get(prompt_logprobs.request_id):
                handle.events.put_nowait(prompt_logprobs)
        for embedding in events.embeddings:
            if handle := handles.get(embedding.request_id):
                handle.events.put_nowait(embedding)
        for event in events.tokens:
            if handle := handles.get(event[0]):
                handle.events.put_nowait(event)
        for record in events.finished:
            self._finish(record)
        for request_id in failed:
            if handles.pop(request_id, None):  # the scheduler never took it in, so there is no record
                self._counters["failed"] += 1
                self._settle()
        for listener in self._listeners:
            try:
                listener(events)
            except Exception:  # whoever only watches must not keep tokens from those who wait
                log.exception("a listener failed")

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
        self._settle()

    def _settle(self) -> None:
        if not self._handles:
            self._idle.set()
