"""Server-sent events: the one way in which a stream leaves this server.

A stream has exactly one of four ends, and the client can tell them apart:

- complete: ``data: [DONE]``, then the closing chunk of HTTP;
- failed: a last frame ``data: {"error": …}``, no ``[DONE]``, and the connection is cut without the closing
  chunk, so that no client takes half an answer for a whole one;
- the client is gone: nothing more is sent, the request is given up;
- the client does not read: after ``write_stall_s`` the request is given up and the connection dropped with
  what is still buffered.

The response starts with the first frame: what fails before it is answered with a proper status. If the
first frame takes longer than ``ping_s``, it starts with a comment instead.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from tokenmill.server import jsonio
from tokenmill.server.context import Context
from tokenmill.server.errors import problem_of
from tokenmill.server.generate import AbortCause, cancel, gone

DONE = b"data: [DONE]\n\n"
PING = b": ping\n\n"
_START: Message = {
    "type": "http.response.start",
    "status": 200,
    "headers": [
        (b"content-type", b"text/event-stream; charset=utf-8"),
        (b"cache-control", b"no-cache"),
        (b"x-accel-buffering", b"no"),
    ],
}


def frame(value: object) -> bytes:
    """One event."""
    return b"data: " + jsonio.dumps(value) + b"\n\n"


class EventStream(Response):
    """Sends ``frames`` to the end. ``close`` is called once however it ends, with the cause if it ended early."""

    def __init__(
        self,
        context: Context,
        request_id: str,
        frames: AsyncGenerator[bytes, None],
        close: Callable[[AbortCause], None],
    ) -> None:
        self.status_code = 200
        self.background = None
        self._context = context
        self._request_id = request_id
        self._frames = frames
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        line = _Line(send, self._context.settings.write_stall_s)
        pump = asyncio.ensure_future(self._pump(line))
        helpers = [asyncio.ensure_future(gone(receive)), asyncio.ensure_future(self._keep_alive(line))]
        cause: AbortCause = "disconnect"
        try:
            await asyncio.wait({pump, *helpers}, return_when=asyncio.FIRST_COMPLETED)
            if pump.done():
                pump.result()
            for helper in helpers:
                if helper.done():
                    helper.result()
        except _WriteStalled:
            cause = "write_stall"
            self._context.cut(scope)
        finally:
            await cancel(pump, *helpers)
            await self._frames.aclose()
            self._close(cause)

    async def _pump(self, line: _Line) -> None:
        try:
            async for data in self._frames:
                await line.write(data)
        except Exception as error:
            if isinstance(error, _WriteStalled) or not line.started:
                raise
            await line.write(frame(problem_of(error, self._request_id).body))
            return  # without the closing chunk: the connection is cut
        await line.finish()

    async def _keep_alive(self, line: _Line) -> None:
        period_s = self._context.settings.ping_s
        while True:
            await asyncio.sleep(max(0.01, line.last_s + period_s - time.monotonic()))
            if time.monotonic() >= line.last_s + period_s:
                await line.write(PING)


class _WriteStalled(Exception):
    """The client takes nothing off the connection."""


class _Line:
    """The sending half of a connection, with a limit on how long a write may wait for the client."""

    def __init__(self, send: Send, stall_s: float) -> None:
        self._send = send
        self._stall_s = stall_s
        self.started = False
        self.last_s = time.monotonic()

    async def write(self, data: bytes) -> None:
        if not self.started:
            self.started = True
            await self._put(_START)
        await self._put({"type": "http.response.body", "body": data, "more_body": True})
        self.last_s = time.monotonic()

    async def finish(self) -> None:
        await self._put({"type": "http.response.body", "body": b"", "more_body": False})

    async def _put(self, message: Message) -> None:
        try:
            async with asyncio.timeout(self._stall_s):
                await self._send(message)
        except TimeoutError:
            raise _WriteStalled from None
