"""The engine behind an event loop: one thread runs ``Engine.step``, callers iterate over queues.

The two sides meet in two places only: a list of commands that the engine thread empties before each step,
and ``call_soon_threadsafe`` with each step's events. The callers' side is ``front.py``.

A request that fails ends alone. If the engine itself fails, or its watchdog sees it stuck, every handle raises
``Unavailable``, ``live`` turns false and nothing new is taken.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from tokenmill.core.errors import RequestError
from tokenmill.core.events import Account, Failed, StepEvents
from tokenmill.core.grammar import Grammar
from tokenmill.core.request import Request
from tokenmill.engine.engine import Engine
from tokenmill.engine.faults import fire
from tokenmill.engine.front import Front, Handle
from tokenmill.engine.grammar.compiler import GrammarCompiler
from tokenmill.engine.resolve import ModelLimits
from tokenmill.engine.service import Submission
from tokenmill.engine.telemetry import Observation
from tokenmill.engine.text import TextCodec
from tokenmill.engine.watchdog import STUCK_AFTER_S, State, Watchdog

log = logging.getLogger(__name__)


class EngineThread:
    """Runs an engine in a thread: commands go in, every step's events come out.

    Args:
        post: called in that thread with the events of each step that brought any.
        died: called in that thread with what the engine died of.
    """

    def __init__(
        self,
        engine: Engine,
        post: Callable[[StepEvents], None],
        died: Callable[[BaseException], None],
        *,
        stuck_after_s: float = STUCK_AFTER_S,
    ) -> None:
        self.engine = engine
        self.watchdog = Watchdog(engine.clock, stuck_after_s=stuck_after_s, expected=engine.expected_s)
        self.error: BaseException | None = None
        """What the engine died of."""
        self._post = post
        self._died = died
        self._commands: deque[Callable[[Engine], None]] = deque()
        self._wake = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="tokenmill-engine", daemon=True)

    def start(self) -> None:
        self.watchdog.turn()
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self.error is None and self._thread.is_alive()

    def command(self, command: Callable[[Engine], None]) -> None:
        """Have the thread call this before its next step."""
        self._commands.append(command)
        self._wake.set()

    def add(self, request: Request) -> None:
        """Have the engine take a request in; if it will not, events say so."""
        self.command(partial(self._add, request=request))

    def judge(self) -> tuple[State, str]:
        """What state it is in, and why."""
        if self.error is not None:
            return "dead", "the engine failed"
        if self._thread.ident is None:
            return "starting", "the engine has not been started"
        if not self._thread.is_alive():
            return "dead", "the engine has been closed" if self._closing else "the engine's thread is gone"
        motion = self.watchdog.judge()
        if motion == "moving":
            return "ready", ""
        return motion, "the engine has made no progress for too long"

    def close(self) -> None:
        """Wait for the step under way, and release everything; a thread that is stuck is left behind."""
        self._closing = True
        self._wake.set()
        while self._thread.is_alive() and self.watchdog.judge() != "stuck":
            self._thread.join(0.5)
        if not self._thread.is_alive():
            self.engine.close()

    def _run(self) -> None:
        try:
            while not self._closing:
                self._wake.clear()
                while self._commands:
                    self._commands.popleft()(self.engine)
                self.watchdog.turn()
                events = self.engine.step()
                if events.num_tokens or events.tokens or events.decisions or events.finished:
                    self._post(events)
                if events.num_tokens == 0:
                    self._wait()
        except BaseException as error:
            log.exception("the engine failed")
            self.error = error
            self._died(error)

    def _add(self, engine: Engine, request: Request) -> None:
        try:
            fire("engine.add", request)
            engine.add(request)
        except Exception as error:
            if not isinstance(error, RequestError):
                log.exception("request %s could not be taken in", request.id)
                error = RequestError("the engine could not take the request in", code="server_error")
            self._post(StepEvents(decisions=[Failed(request.id, error)]))

    def _wait(self) -> None:
        """Until a command comes, or the moment at which the scheduler may find something to do."""
        wake_after_s = self.engine.scheduler.wake_after_s(self.engine.clock.now())
        self._wake.wait(1.0 if wake_after_s is None else min(wake_after_s, 1.0))


def stats_of(engine: Engine) -> dict[str, int]:
    """Numbers of this moment; any thread may ask."""
    scheduler = engine.scheduler
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
        "max_seqs": scheduler.config.max_seqs,
        "max_step_tokens": scheduler.config.max_step_tokens,
        "fair_share": int(scheduler.config.policy == "fair"),
    }


class EngineService(Front):
    """``engine/service.py``'s ``Service`` over an engine in this process.

    Make it, then ``await start()`` on the loop that will use it.
    """

    def __init__(
        self,
        engine: Engine,
        codec: TextCodec,
        limits: ModelLimits,
        *,
        model_name: str,
        grammars: GrammarCompiler | None = None,
        stuck_after_s: float = STUCK_AFTER_S,
    ) -> None:
        super().__init__(codec, limits, engine.clock, model_name=model_name)
        self.engine = engine
        self.grammars = grammars or GrammarCompiler(codec, limits.vocab_size, limits.eos_token_ids)
        self._runner = EngineThread(engine, self._post, self._die, stuck_after_s=stuck_after_s)
        self._loop: asyncio.AbstractEventLoop | None = None

    # ---- life --------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Begin to serve; the executor has been started."""
        self._loop = asyncio.get_running_loop()
        self.grammars.warm_up()
        self._runner.start()

    def _judge(self) -> tuple[State, str]:
        return self._runner.judge()

    async def close(self) -> None:
        self.draining = True
        await asyncio.to_thread(self._runner.close)
        await asyncio.to_thread(self.grammars.close)

    # ---- requests ----------------------------------------------------------------------------------

    async def compile(self, grammar: Grammar, *, param: str = "response_format", tenant: str = "") -> None:
        await self.grammars.ready(grammar, param=param, tenant=tenant)

    def submit(self, submission: Submission) -> Handle:
        handle = super().submit(submission)
        if submission.params.grammar is not None:
            handle.keeps = self.grammars.find(submission.params.grammar)
        return handle

    def _check_fits(self, request: Request) -> None:
        self.engine.scheduler.check_fits(request)

    def _add(self, request: Request) -> None:
        self._runner.add(request)

    def abort(self, request_id: str) -> None:
        self._runner.command(partial(Engine.abort, request_id=request_id))

    def stop(self, request_id: str, index: int) -> None:
        self._runner.command(partial(Engine.stop, request_id=request_id, index=index))

    async def _explain_live(self, request_id: str) -> Account | None:
        return self.engine.scheduler.explain(request_id, self.engine.clock.now())

    def stats(self) -> dict[str, Any]:
        grammars = {f"grammar_{name}": value for name, value in self.grammars.stats().items()}
        return {**stats_of(self.engine), **grammars, **self._counters}

    def observation(self) -> Observation | None:
        telemetry = self.engine.telemetry
        return telemetry.observation(self.engine.clock.now()) if telemetry else None

    # ---- the engine's thread -----------------------------------------------------------------------

    def _post(self, events: StepEvents) -> None:
        self._call(lambda: self.deliver(events))

    def _die(self, error: BaseException) -> None:
        self._call(self.abandon)

    def _call(self, callback: Callable[[], None]) -> None:
        assert self._loop is not None
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(callback)
