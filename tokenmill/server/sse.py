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
import logging
import secrets
import time
from collections.abc import AsyncGenerator, Callable

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from tokenmill.core.errors import TokenmillError
from tokenmill.server import jsonio
from tokenmill.server.context import Context
from tokenmill.server.errors import problem_of
from tokenmill.server.generate import AbortCause, cancel, gone
from tokenmill.server.protocol.base import ErrorBody

log = logging.getLogger(__name__)

DONE = b"data: [DONE]\n\n"
PING = b": ping\n\n"
LOOKS = 4
"""How many times the shortest of a stream's periods is looked at: a period may be this fraction too long."""
PADDED_BYTES = 256
"""An increment of some 170 bytes of text is padded to this; longer ones to a multiple."""
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


def obfuscation(part: object) -> str:
    """Random characters that fill ``part``, as JSON, up to a multiple of ``PADDED_BYTES``.

    Whoever sees encrypted packets sees their sizes, and the lengths of a text's tokens often tell the text (Weiss et
    al., "What Was Your Prompt? A Remote Keylogging Attack on AI Assistants", 2024). ``part`` is what differs from one
    increment to the next; all that fit one multiple are of one size.
    """
    num_chars = -len(jsonio.dumps(part)) % PADDED_BYTES
    return secrets.token_urlsafe(num_chars)[:num_chars]


class EventStream(Response):
    """Sends ``frames`` to the end. ``close`` is called once however it ends, with the cause if it ended early."""

    def __init__(
        self,
        context: Context,
        request_id: str,
        frames: AsyncGenerator[bytes, None],
        close: Callable[[AbortCause], None],
        error_frame: Callable[[ErrorBody], bytes] = frame,
    ) -> None:
        """``error_frame`` makes the last frame of a stream that failed."""
        self.status_code = 200
        self.background = None
        self._context = context
        self._request_id = request_id
        self._frames = frames
        self._close = close
        self._error_frame = error_frame

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        line = _Line(send)
        pump = asyncio.ensure_future(self._pump(line))
        watchers = [asyncio.ensure_future(gone(receive)), asyncio.ensure_future(self._watch(line))]
        cause: AbortCause = "disconnect"
        try:
            await asyncio.wait({pump, *watchers}, return_when=asyncio.FIRST_COMPLETED)
            for task in (pump, *watchers):
                if task.done():
                    task.result()
        except _WriteStalled:
            cause = "write_stall"
            self._context.cut(scope)
        finally:
            await cancel(pump, *watchers)
            await self._frames.aclose()
            self._close(cause)

    async def _pump(self, line: _Line) -> None:
        try:
            async for data in self._frames:
                await line.write(data)
                await asyncio.sleep(0)  # with a backlog nothing above waits: let the loop see a client that left
        except Exception as error:
            if not line.started:
                raise
            if not isinstance(error, TokenmillError):
                log.exception("request %s failed", self._request_id)
            await line.write(self._error_frame(problem_of(error, self._request_id).body))
            return  # without the closing chunk: the connection is cut
        await line.finish()

    async def _watch(self, line: _Line) -> None:
        """Say something when there was nothing to say; raise when the client does not take what was said.

        One look now and then for a whole stream costs less than a deadline for every write.
        """
        settings = self._context.settings
        while True:
            await asyncio.sleep(min(settings.ping_s, settings.write_stall_s) / LOOKS)
            idle_s = time.monotonic() - line.last_s
            if line.writing and idle_s >= settings.write_stall_s:
                raise _WriteStalled
            if not line.writing and idle_s >= settings.ping_s:
                try:
                    async with asyncio.timeout(settings.write_stall_s):
                        await line.write(PING)
                except TimeoutError:
                    raise _WriteStalled from None


class _WriteStalled(Exception):
    """The client takes nothing off the connection."""


class _Line:
    """The sending half of a connection: has it begun, is a write waiting for the client, and since when?"""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.started = False
        self.writing = False
        self.last_s = time.monotonic()
        """The last beginning or end of a write."""

    async def write(self, data: bytes) -> None:
        await self._begin()
        await self._put({"type": "http.response.body", "body": data, "more_body": True})

    async def finish(self) -> None:
        await self._begin()  # there may have been nothing to say
        await self._put({"type": "http.response.body", "body": b"", "more_body": False})

    async def _begin(self) -> None:
        if not self.started:
            self.started = True
            await self._put(_START)

    async def _put(self, message: Message) -> None:
        self.writing, self.last_s = True, time.monotonic()
        await self._send(message)
        self.writing, self.last_s = False, time.monotonic()
