"""``RemoteService``: the ``Service`` whose engine runs in a process of its own, and which outlives that process.

When the engine's process dies (or hangs, or sends what it should not) it is replaced. ``recovery`` says what
becomes of the requests that it had::

    resume   all go on in the new engine with the tokens that they had: nobody sees more than a pause
    fail     streams that have begun end with an error frame; the others, of which nothing was seen, are done anew

Meanwhile nothing new is taken (503, with a time to come back) and ``/health/ready`` says so; ``/health/live``
holds, since this process helps itself. Three deaths within a minute are a loop: then the service is dead, and the
process ends.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from tokenmill.core.clock import Clock
from tokenmill.core.engine_config import EngineConfig
from tokenmill.core.errors import Aborted, PoisonRequest, RequestError, TokenmillError, Unavailable
from tokenmill.core.events import Account, Failed, FinishedRecord, StepEvents
from tokenmill.core.grammar import Grammar
from tokenmill.core.request import Request
from tokenmill.engine.front import Front
from tokenmill.engine.remote.child import Child, Tell
from tokenmill.engine.remote.ledger import Entry, Ledger, PoisonList
from tokenmill.engine.remote.options import RemoteSettings
from tokenmill.engine.remote.wire import (
    Abort,
    Add,
    Answer,
    Brought,
    Build,
    Close,
    Compile,
    Died,
    Explain,
    Observed,
    ProtocolError,
    Pulse,
    Ready,
    Report,
    Stop,
    Taking,
)
from tokenmill.engine.scheduler.fits import check_fits
from tokenmill.engine.telemetry import Observation
from tokenmill.engine.text import TextCodec
from tokenmill.engine.watchdog import State

log = logging.getLogger(__name__)

TICK_S = 1.0
SILENT_TICKS = 8
"""Ticks without a word, pulses included, after which a process is taken to hang. Ticks, not seconds: if it was this
process that did not run, they did not pass."""
BACKOFF_S = (0.0, 1.0, 4.0)
"""Before the first, second, … restart in a row."""

POISON = "computing this request takes the engine down; it is not tried again"

_GONE = (EOFError, OSError, ProtocolError)


class RemoteService(Front):
    """``engine/service.py``'s ``Service`` over an engine in a child process. Made by ``launch``."""

    def __init__(
        self,
        child: Child,
        ready: Ready,
        codec: TextCodec,
        clock: Clock,
        *,
        model_name: str,
        argv: Sequence[str],
        config: EngineConfig,
        options: RemoteSettings,
    ) -> None:
        super().__init__(codec, ready.limits, clock, model_name=model_name)
        self.fingerprint = ready.fingerprint
        self.num_blocks, self.block_size = ready.num_blocks, ready.block_size
        self._argv = tuple(argv)
        self._options = options
        # What was promised to requests must hold for the next engine too, however much memory is free by then.
        pinned = replace(config.cache, num_blocks=ready.num_blocks, kv_memory_bytes=None)
        source = replace(config.source, max_context=ready.limits.max_context)
        self._config = replace(config, cache=pinned, source=source)
        self._num_engines = 1
        self._child: Child | None = child
        self._ledger = Ledger()
        self._poison = PoisonList()
        self._state: State = "ready"
        self._why = ""
        self._closing = False
        self._fenced = False
        self._silent_ticks = 0
        self._stats = ready.stats
        self._observed: Observed | None = None
        self._deaths: deque[float] = deque()
        self._answers: dict[int, asyncio.Future[Answer]] = {}
        self._next_answer = 0
        self._tasks: list[asyncio.Task[None]] = []

    @classmethod
    async def launch(
        cls,
        argv: Sequence[str],
        config: EngineConfig,
        codec: TextCodec,
        clock: Clock,
        *,
        model_name: str,
        options: RemoteSettings | None = None,
        tell: Tell = lambda loading: None,
    ) -> RemoteService:
        """Start the first engine process and wait until it is ready; raises what ``Child.start`` raises."""
        options = options or RemoteSettings()
        child, ready = await Child.start(argv, Build(config, options.stuck_after_s), tell)
        return cls(child, ready, codec, clock, model_name=model_name, argv=argv, config=config, options=options)

    # ---- life --------------------------------------------------------------------------------------

    async def start(self) -> None:
        self._tasks = [asyncio.create_task(self._supervise()), asyncio.create_task(self._watch())]

    async def close(self) -> None:
        self.draining = self._closing = True
        if self._child is not None:
            self._child.send(Close())
            await self._child.end()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._child is not None:
            await self._child.kill()
        self._state, self._why = "dead", "the engine has been closed"

    @property
    def pid(self) -> int | None:
        """Of the engine's process; None while there is none."""
        return self._child.pid if self._child is not None else None

    def _judge(self) -> tuple[State, str]:
        if self._state == "ready" and self._silent_ticks > SILENT_TICKS // 2:
            return "slow", "nothing is heard of the engine's process"
        return self._state, self._why

    # ---- requests ----------------------------------------------------------------------------------

    def _check_fits(self, request: Request) -> None:
        if self._poison.knows(request, self.clock.now()):
            raise PoisonRequest(POISON)
        check_fits(request, self.num_blocks, self.block_size)

    def _add(self, request: Request) -> None:
        entry = self._ledger.add(request)
        if not self._ledger.trying:
            self._send(entry)

    def _send(self, entry: Entry) -> None:
        if self._child is not None and not entry.sent:
            entry.sent = True
            self._child.send(Add(entry.to_send()))

    def abort(self, request_id: str) -> None:
        entry = self._ledger.entries.get(request_id)
        if entry is None:
            return
        entry.aborted = True
        if entry.sent and self._child is not None:
            self._child.send(Abort(request_id))
        else:
            self._end_here(entry, Aborted("the request was aborted"))

    def stop(self, request_id: str, index: int) -> None:
        entry = self._ledger.entries.get(request_id)
        if entry is None:
            return
        entry.ended.add(index)
        if entry.sent and self._child is not None:
            self._child.send(Stop(request_id, index))
        elif entry.complete:
            self._end_here(entry, None)

    async def compile(self, grammar: Grammar, *, param: str = "response_format", tenant: str = "") -> None:
        number, answer = self._question()
        self._ask(Compile(number, grammar, param, tenant))
        problem = (await answer).problem
        if problem is not None:
            raise problem.error()

    async def _explain_live(self, request_id: str) -> Account | None:
        if request_id not in self._ledger.entries or self._child is None:
            return None
        number, answer = self._question()
        self._ask(Explain(number, request_id))
        try:
            return (await answer).account
        except Unavailable:
            return None

    def _question(self) -> tuple[int, asyncio.Future[Answer]]:
        self._next_answer += 1
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._answers[self._next_answer] = answer
        return self._next_answer, answer

    def _ask(self, question: Compile | Explain) -> None:
        if self._child is None:
            self._answers.pop(question.number, None)
            raise Unavailable(self._why, retry_after_s=5.0)
        self._child.send(question)

    def stats(self) -> dict[str, Any]:
        return {**self._stats, **self._counters}

    def observation(self) -> Observation | None:
        return self._observed.observation() if self._observed is not None else None

    # ---- what the engine's process says ------------------------------------------------------------

    async def _supervise(self) -> None:
        """Follow one engine process after the other; should that itself fail, nobody is left waiting."""
        try:
            await self._follow()
        except Exception:
            log.exception("the engine's process can no longer be followed")
            self._give_up("the engine's process can no longer be followed")

    async def _follow(self) -> None:
        while not self._closing:
            assert self._child is not None
            try:
                while True:
                    self._take(await self._child.receive())
            except _GONE as error:
                why = error
            if self._closing:
                return
            await self._recover(self._child, why)
            if self._state == "dead":
                return

    def _take(self, report: Report) -> None:
        self._silent_ticks = 0
        if isinstance(report, Brought):
            self._stats = report.stats
            events = report.events()
            events.finished = [self._ledger.true_record(record) for record in events.finished]
            try:
                self._ledger.brought(events, self.clock.now())
            except IndexError as error:
                raise ProtocolError("a token of a choice that nobody asked for") from error
            for decision in events.decisions:
                if isinstance(decision, Failed):
                    self._ledger.drop(decision.request_id)
            self.deliver(events)
            self._go_on()
        elif isinstance(report, Taking):
            self._ledger.took(report.request_ids)
        elif isinstance(report, Pulse):
            self._stats = report.stats
            self._observed = report.observed or self._observed
            self._take_motion(report)
        elif isinstance(report, Answer):
            answer = self._answers.pop(report.number, None)
            if answer is not None and not answer.done():
                answer.set_result(report)
        elif not isinstance(report, Died):
            raise ProtocolError(f"{type(report).__name__} comes from an engine that runs")

    def _take_motion(self, pulse: Pulse) -> None:
        assert self._child is not None
        if pulse.motion == "stuck":
            self._fence("its engine is stuck")
        elif self._state in ("ready", "slow"):
            slow = pulse.motion == "slow"
            self._state, self._why = ("slow", "a step takes too long") if slow else ("ready", "")

    async def _watch(self) -> None:
        """Notice a process that says nothing any more."""
        while not self._closing:
            await asyncio.sleep(TICK_S)
            if self._child is None or self._state == "restarting":
                continue
            self._silent_ticks += 1
            if self._silent_ticks >= SILENT_TICKS:
                self._silent_ticks = 0
                self._fence("nothing is heard of it")

    def _fence(self, why: str) -> None:
        assert self._child is not None
        log.error("the engine's process %d is killed: %s", self._child.pid, why)
        self._fenced = True
        self._child.fence()

    # ---- when it dies ------------------------------------------------------------------------------

    async def _recover(self, child: Child, why: BaseException) -> None:
        """The process is gone: tell whom it concerns, start another, and go on."""
        self._child = None
        self._state, self._why = "restarting", "the engine's process died and is being replaced"
        status = await child.kill() if isinstance(why, ProtocolError) else await child.died()
        killed_from_outside = status == -signal.SIGKILL and not self._fenced and not isinstance(why, ProtocolError)
        self._fenced = False
        log.error("the engine's process %d died with status %d: %s", child.pid, status, why or type(why).__name__)
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(Unavailable(self._why, retry_after_s=5.0))
        self._answers.clear()
        culprit = self._ledger.engine_died(crashed=not killed_from_outside)
        self._counters["engine_deaths"] += 1
        if culprit is not None:
            self._poison.add(culprit.request, self.clock.now())
            if self._deaths:
                self._deaths.pop()  # the first one was this request's doing too
            self._end_here(culprit, PoisonRequest(POISON))
        else:
            self._deaths.append(self.clock.now())
        self._settle_accounts()
        await self._restart()

    def _settle_accounts(self) -> None:
        """End what need not, or by the operator's choice shall not, be gone on with."""
        for entry in list(self._ledger.entries.values()):
            if entry.aborted:
                self._end_here(entry, Aborted("the request was aborted"))
            elif entry.complete:
                self._end_here(entry, None)
            elif entry.begun and self._options.recovery == "fail":
                lost = Unavailable("the engine failed; the request was lost", code="engine_failed", retry_after_s=5.0)
                self._end_here(entry, lost)

    async def _restart(self) -> None:
        """Start engines until one is ready, or it is clear that none will be."""
        while True:
            now = self.clock.now()
            while self._deaths and now - self._deaths[0] > self._options.death_window_s:
                self._deaths.popleft()
            if len(self._deaths) >= self._options.max_deaths:
                self._give_up(f"the engine's process died {len(self._deaths)} times in a short while")
                return
            await asyncio.sleep(BACKOFF_S[min(max(0, len(self._deaths) - 1), len(BACKOFF_S) - 1)])
            try:
                self._child, _ = await Child.start(self._argv, self._next_build())
            except (TokenmillError, TimeoutError, *_GONE) as error:
                log.error("no new engine could be started: %s", error)
                self._deaths.append(self.clock.now())
                continue
            self._silent_ticks = 0
            self._state, self._why = "ready", ""
            log.warning("the engine's process %d is ready", self._child.pid)
            self._go_on()
            return

    def _next_build(self) -> Build:
        """As the first engine, but with a journal of its own: the last one's tells how it died."""
        self._num_engines += 1
        journal = self._config.journal
        config = replace(self._config, journal=f"{journal}.{self._num_engines}" if journal else None)
        return Build(config, self._options.stuck_after_s)

    def _give_up(self, why: str) -> None:
        log.critical("%s; it is not started again", why)
        self._state, self._why = "dead", why
        self.abandon()

    def _go_on(self) -> None:
        """Send the engine what is due: the next suspect alone, or everybody."""
        suspect = self._ledger.next_suspect()
        if suspect is not None:
            self._send(suspect)
        for entry in self._ledger.unsent():
            self._send(entry)

    def _end_here(self, entry: Entry, error: RequestError | Unavailable | None) -> None:
        """End a request that no engine has, well (None) or not."""
        request, now = entry.request, self.clock.now()
        self._ledger.drop(request.id)
        if isinstance(error, Unavailable):
            handle = self._handles.get(request.id)
            if handle is not None:
                handle.events.put_nowait(error)
        outcome: Literal["finished", "failed", "aborted"] = "finished"
        if error is not None:
            outcome = "aborted" if isinstance(error, Aborted) else "failed"
        record = FinishedRecord(
            request_id=request.id,
            tenant=request.tenant,
            outcome=outcome,
            arrival_s=request.arrival_s,
            first_token_s=entry.first_token_s,
            finish_s=now,
            prompt_tokens=len(request.prompt_token_ids),
            cached_tokens=0,
            generated_tokens=sum(map(len, entry.tokens)),
            account=_account_of(entry, now),
        )
        failed = [Failed(request.id, error)] if isinstance(error, RequestError) else []
        self.deliver(StepEvents(decisions=list(failed), finished=[record]))


def _account_of(entry: Entry, now: float) -> Account:
    """Of a request that ended while there was no engine: what is known from here."""
    arrival_s = entry.request.arrival_s
    first_s = now if entry.first_token_s is None else entry.first_token_s
    waited_s, decode_s = first_s - arrival_s, now - first_s
    causes = {"queue:engine_restart": waited_s, "decode": decode_s}
    return Account(now - arrival_s, waited_s, 0.0, decode_s, causes, 0, 0)
