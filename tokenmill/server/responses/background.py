"""Responses that go on without a connection: begun by a request, followed by others, until they are over.

A ``Run`` keeps the events of one response as they went over the wire, so that any number of clients can read them from
any point, at their own pace, and none of them holds it up. When it is over, the response is in the store; the events
stay for a while, in a bounded space.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import aclosing

from tokenmill.core.errors import Aborted, TokenmillError, Unavailable
from tokenmill.server.generate import cancel
from tokenmill.server.protocol.base import ErrorBody
from tokenmill.server.responses.answer import Answer, error_frame
from tokenmill.server.sse import PING

log = logging.getLogger(__name__)

KEPT_BYTES = 2**25
"""Of events of responses that are over."""
CLOSE_S = 1.0
"""At the server's end: how long runs may take to end by themselves."""


class Run:
    """One response in the background."""

    def __init__(self, answer: Answer) -> None:
        self.tenant = answer.tenant
        self.response = answer.response
        """As far as it has come: it grows."""
        self.error: Exception | None = None
        """What a reader of its events is told at their end; None where that is a clean one."""
        self.over = False
        self.num_bytes = 0
        self._why_cancelled: TokenmillError = Aborted("The response was cancelled.", code="response_cancelled")
        self._frames: list[bytes] = []
        self._grown = asyncio.Event()

    @property
    def response_id(self) -> str:
        return self.response["id"]

    async def work(self, answer: Answer) -> None:
        """Generate to the end, whatever that is, and store it."""
        try:
            async with aclosing(answer.frames()) as frames:
                async for frame in frames:
                    self._add(frame)
        except asyncio.CancelledError:
            self.error = self._why_cancelled
            answer.fail(None if isinstance(self.error, Aborted) else self.error)
        except Exception as error:
            self.error = error
            if not isinstance(error, TokenmillError):
                log.exception("request %s failed", answer.request_id)
        finally:
            answer.generation.close()
        if self.error is not None:
            await answer.keep()
        self.over = True
        self._wake()

    def end_with_server(self) -> None:
        """When it is cancelled now, nobody wished so."""
        why = "The server was shut down before this was complete."
        self._why_cancelled = Unavailable(why, code="server_shutting_down")

    async def follow(self, after: int | None) -> AsyncGenerator[bytes, None]:
        """The events after number ``after``, those to come included; raises what ended them badly."""
        at = first = 0 if after is None else after + 1
        while True:
            grown = self._grown
            while at < len(self._frames):
                yield self._frames[at]
                at += 1
            if self.over:
                break
            await grown.wait()
        if self.error is not None:
            if at == first:
                yield PING  # the failure is this response's, not that of the request that asks for its events
            raise self.error

    def error_frame(self, body: ErrorBody) -> bytes:
        """The very last event, where there is an ``error``."""
        return error_frame(body, len(self._frames))

    def _add(self, frame: bytes) -> None:
        self._frames.append(frame)
        self.num_bytes += len(frame)
        self._wake()

    def _wake(self) -> None:
        self._grown.set()
        self._grown = asyncio.Event()


class Background:
    """All runs: those under way, and the latest that are over."""

    def __init__(self) -> None:
        self._runs: dict[str, Run] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._over: deque[Run] = deque()
        self._kept_bytes = 0

    def start(self, answer: Answer) -> Run:
        run = Run(answer)
        self._runs[run.response_id] = run
        self._tasks[run.response_id] = asyncio.create_task(self._work(run, answer))
        return run

    def find(self, tenant: str, response_id: str) -> Run | None:
        """The tenant's run with this id, if it is still known."""
        run = self._runs.get(response_id)
        return run if run is not None and run.tenant == tenant else None

    async def stop(self, run: Run) -> None:
        """Cancel what is under way; returns when it is over and stored."""
        if (task := self._tasks.get(run.response_id)) is not None:
            await cancel(task)

    def forget(self, run: Run) -> None:
        """Drop the events of a run that is over."""
        if self._runs.pop(run.response_id, None) is not None:
            self._over.remove(run)
            self._kept_bytes -= run.num_bytes

    async def close(self) -> None:
        """End all: most have by now, since the engine has given them up."""
        if tasks := list(self._tasks.values()):
            _, late = await asyncio.wait(tasks, timeout=CLOSE_S)
            for run in self._runs.values():
                run.end_with_server()
            await cancel(*late)

    async def _work(self, run: Run, answer: Answer) -> None:
        try:
            await run.work(answer)
        except Exception:
            log.exception("response %s could not be stored", run.response_id)
        finally:
            run.over = True
            del self._tasks[run.response_id]
            self._over.append(run)
            self._kept_bytes += run.num_bytes
            while self._kept_bytes > KEPT_BYTES:
                self.forget(self._over[0])
