"""A small HTTP/1.1 client for measuring: every piece of an answer is stamped when it is read.

Written on asyncio's transports alone, because a general client spends as much time per event as the server under test,
and on the same cores. While an answer comes, a piece costs one read, one look at the framing and one append; JSON is
made of it once the answer has ended (``replay``), or as it comes for whoever must decide meanwhile (``stream``). It
knows just what servers of this kind send: bodies by length, in chunks, or until the end.

A ``Client`` opens a connection for each request. Within ``pooled`` it keeps them and takes the one that was free last,
as the usual clients do; a kept connection that turns out to be closed is replaced by a new one, once.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import urlsplit

from tokenmill.core.errors import TokenmillError

MAX_LINE_BYTES = 2**20


class HttpFailure(TokenmillError):
    """No usable answer: connection refused or cut, a status that is not 200, a broken stream."""

    code = "http_failure"

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Client:
    """A server's address and how to ask it. ``base_url``: ``http://127.0.0.1:8000``."""

    base_url: str
    api_key: str | None = None
    timeout_s: float = 600.0
    kept: list[Line] | None = field(default=None, compare=False, repr=False)
    """Connections that are free; None: none are kept."""

    @asynccontextmanager
    async def pooled(self) -> AsyncIterator[Client]:
        """The same client, which keeps its connections while the ``with`` lasts."""
        kept: list[Line] = []
        try:
            yield replace(self, kept=kept)
        finally:
            for line in kept:
                line.close()

    async def get(self, path: str) -> str:
        """The body of a GET; raises ``HttpFailure``."""
        return await self._whole("GET", path, None)

    async def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """The JSON answer to a JSON body; raises ``HttpFailure``."""
        return json.loads(await self._whole("POST", path, body))

    async def stream(self, path: str, request: bytes) -> AsyncGenerator[tuple[float, Any]]:
        """Server-sent events of a POST to ``path`` as (moment of arrival on ``time.perf_counter``, JSON), up to
        ``[DONE]``; ``request`` is made by the method of that name.

        Raises:
            HttpFailure: also when the stream ends without ``[DONE]``, or an event carries an error.
        """
        async with self._answer("POST", path, request) as line:
            events = _Events()
            while (piece := await line.next_piece()) is not None:
                for event in events.of(*piece):
                    yield event
                if events.done:
                    return
        raise HttpFailure("the stream ended without [DONE]")

    async def replay(self, path: str, request: bytes, take: Callable[[float, Any], None]) -> float:
        """The same, but ``take`` is called for each event once the answer has ended: that costs least meanwhile.

        Returns:
            When the last piece of the answer came.

        Raises:
            HttpFailure: as ``stream``, after ``take`` was called for what had come.
        """
        async with self._answer("POST", path, request) as line:
            try:
                await line.ended()
            finally:
                events = _Events()
                for piece in line.pieces:
                    for arrival_s, event in events.of(*piece):
                        take(arrival_s, event)
        if not events.done:
            raise HttpFailure("the stream ended without [DONE]")
        return line.pieces[-1][0]

    def request(self, method: str, path: str, body: Mapping[str, Any] | None) -> bytes:
        """A request as it goes over the line."""
        content = b"" if body is None else json.dumps(body).encode()
        url = urlsplit(self.base_url)
        lines = [f"{method} {url.path.rstrip('/')}{path} HTTP/1.1", f"Host: {url.netloc}"]
        if self.kept is None:
            lines.append("Connection: close")
        if self.api_key:
            lines.append(f"Authorization: Bearer {self.api_key}")
        if body is not None:
            lines += ["Content-Type: application/json", f"Content-Length: {len(content)}"]
        return "\r\n".join([*lines, "", ""]).encode() + content

    async def _whole(self, method: str, path: str, body: Mapping[str, Any] | None) -> str:
        async with self._answer(method, path, self.request(method, path, body)) as line:
            await line.ended()
            return line.text()

    @asynccontextmanager
    async def _answer(self, method: str, path: str, request: bytes) -> AsyncIterator[Line]:
        """Send, check the status, hand out the connection for its body."""
        line = None
        try:
            async with asyncio.timeout(self.timeout_s):
                line = await self._send(request)
                if line.status != 200:
                    await line.ended()
                    message = f"{method} {path}: HTTP {line.status}: {_error_message(line.text())}"
                    raise HttpFailure(message, status=line.status)
                yield line
        except TimeoutError as error:
            raise HttpFailure(f"{method} {path}: no answer within {self.timeout_s:g} s") from error
        except EOFError as error:
            raise HttpFailure(f"{method} {path}: the connection ended before the answer did") from error
        except (OSError, ValueError) as error:
            raise HttpFailure(f"{method} {self.base_url}{path}: {error or type(error).__name__}") from error
        finally:
            if line is not None and self.kept is not None and line.free:
                self.kept.append(line)
            elif line is not None:
                line.close()

    async def _send(self, request: bytes) -> Line:
        """A connection on which the request has been sent and the head of its answer has come."""
        while self.kept:
            line = self.kept.pop()
            if line.free:
                try:
                    return await line.ask(request)
                except (EOFError, OSError):
                    line.close()  # the server closed it meanwhile: no answer had begun
        url = urlsplit(self.base_url)
        secure = ssl.create_default_context() if url.scheme == "https" else None
        port = url.port or (443 if secure else 80)
        loop = asyncio.get_running_loop()
        _, line = await loop.create_connection(lambda: Line(loop), url.hostname or "", port, ssl=secure)
        try:
            return await line.ask(request)
        except BaseException:
            line.close()
            raise


class Line(asyncio.Protocol):
    """One connection, and what has come of the answer to its latest request."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._wakes_at_piece = False
        self._error: Exception | None = None
        self._body = _Body()
        self._complete = True

    # ---- from the transport ------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if self._complete:
            self._end(ValueError("more came than the answer"))
            return
        try:
            self._complete = self._body.feed(time.perf_counter(), data)
        except ValueError as error:
            self._end(error)
        if self._complete or self._wakes_at_piece:
            self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._complete and self._body.ends_with_connection and exc is None:
            self._complete = True
        self._end(exc or EOFError())

    # ---- for the client ----------------------------------------------------------------------------

    @property
    def status(self) -> int:
        return self._body.status

    @property
    def free(self) -> bool:
        """Another request can be sent on it."""
        return self._error is None and self._complete and not self._body.closes

    async def ask(self, request: bytes) -> Line:
        """Send; return when the head of the answer has come. Raises EOFError, OSError, ValueError."""
        assert self._transport is not None
        self._body, self._complete = _Body(), False
        self._transport.write(request)
        while not self._body.status:
            await self._next()
        return self

    async def next_piece(self) -> tuple[float, bytes] | None:
        """The next piece of the body and when it came; None at the end. Raises EOFError, OSError, ValueError."""
        pieces = self._body.pieces
        while not pieces:
            if self._complete:
                return None
            await self._next()
        return pieces.pop(0)

    async def ended(self) -> None:
        """Return when the whole answer has come, or ``[DONE]``. Raises EOFError, OSError, ValueError."""
        self._wakes_at_piece = False
        while not self._complete:
            if self._error is not None and self._body.ends_in_done:
                return
            await self._next(at_piece=False)

    @property
    def pieces(self) -> list[tuple[float, bytes]]:
        return self._body.pieces

    def text(self) -> str:
        return b"".join(data for _, data in self._body.pieces).decode("utf-8", "replace")

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    # ---- own ---------------------------------------------------------------------------------------

    async def _next(self, *, at_piece: bool = True) -> None:
        if self._error is not None:
            raise self._error
        self._wakes_at_piece = at_piece
        self._waiter = self._loop.create_future()
        await self._waiter

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _end(self, error: Exception) -> None:
        self._error = self._error or error
        self._wake()


class _Body:
    """Takes an answer apart as it comes: head, then pieces of the body with the moment of each."""

    __slots__ = ("_chunked", "_left", "_raw", "closes", "ends_with_connection", "pieces", "status")

    def __init__(self) -> None:
        self.status = 0
        """0: the head is not complete."""
        self.closes = False
        self.ends_with_connection = False
        self.pieces: list[tuple[float, bytes]] = []
        self._chunked = False
        self._raw = b""
        self._left = 0

    @property
    def ends_in_done(self) -> bool:
        return bool(self.pieces) and b"data: [DONE]" in self.pieces[-1][1]

    def feed(self, arrival_s: float, data: bytes) -> bool:
        """Take what came; whether the answer is complete. Raises ``ValueError``: it is no HTTP."""
        if not self.status:
            head, end, data = (self._raw + data).partition(b"\r\n\r\n")
            if not end:
                if len(head) > MAX_LINE_BYTES:
                    raise ValueError("the head of the answer has no end")
                self._raw = head
                return False
            self._raw = b""
            self._read_head(head.decode("latin-1"))
        if self._chunked:
            return self._feed_chunks(arrival_s, data)
        if data:
            self.pieces.append((arrival_s, data))
        if self.ends_with_connection:
            return False
        self._left -= len(data)
        return self._left <= 0

    def _read_head(self, head: str) -> None:
        first, *lines = head.split("\r\n")
        version, _, rest = first.partition(" ")
        if not version.startswith("HTTP/1.") or not rest[:3].isdigit():
            raise ValueError(f"not an HTTP/1.1 answer: {first[:60]!r}")
        pairs = (line.partition(":") for line in lines)
        headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
        self._chunked = headers.get("transfer-encoding", "").lower() == "chunked"
        self.ends_with_connection = not self._chunked and "content-length" not in headers
        self.closes = self.ends_with_connection or headers.get("connection", "").lower() == "close"
        self._left = 0 if self._chunked else int(headers.get("content-length", 0))
        self.status = int(rest[:3])

    def _feed_chunks(self, arrival_s: float, data: bytes) -> bool:
        """``_left``: of the present chunk, the line that ends it included; 0: a size is due; -1: the end of all."""
        data = self._raw + data if self._raw else data
        at = 0
        found: list[bytes] = []
        while at < len(data):
            if self._left == 0:
                end = data.find(b"\r\n", at)
                if end < 0:
                    break
                size = int(data[at:end].partition(b";")[0], 16)
                at, self._left = end + 2, size + 2 if size else -1
            elif self._left < 0:
                end = data.find(b"\r\n", at)  # an empty line, or trailers before it
                if end == at:
                    self._take(arrival_s, found)
                    return True
                if end < 0:
                    break
                at = end + 2
            else:
                part = data[at : at + self._left]
                found.append(part[: max(0, self._left - 2)])
                at, self._left = at + len(part), self._left - len(part)
        self._raw = data[at:]
        self._take(arrival_s, found)
        return False

    def _take(self, arrival_s: float, found: list[bytes]) -> None:
        if found:
            self.pieces.append((arrival_s, b"".join(found)))


class _Events:
    """Server-sent events out of pieces."""

    def __init__(self) -> None:
        self._rest = b""
        self.done = False
        """``[DONE]`` has come: nothing counts after it."""

    def of(self, arrival_s: float, piece: bytes) -> Iterator[tuple[float, Any]]:
        """The events that ``piece`` completes. Raises ``HttpFailure``: one carries an error."""
        *events, self._rest = (self._rest + piece).replace(b"\r\n", b"\n").split(b"\n\n")
        for event in events:
            data = _event_data(event)
            if self.done or data == b"[DONE]":
                self.done = True
            elif data:
                yield arrival_s, _checked_event(data)


def _event_data(event: bytes) -> bytes:
    """The ``data:`` lines of one server-sent event, joined; empty for a comment."""
    if event.startswith(b"data: ") and b"\n" not in event:
        return event[6:]
    lines = (line[5:].removeprefix(b" ") for line in event.split(b"\n") if line.startswith(b"data:"))
    return b"\n".join(lines)


def _checked_event(data: bytes) -> Any:
    event = json.loads(data)
    if isinstance(event, dict) and "error" in event:
        raise HttpFailure(f"error in the stream: {_error_message(data.decode())}")
    return event


def _error_message(text: str) -> str:
    """The message of an OpenAI error body; else the text itself, cut."""
    try:
        return str(json.loads(text)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return text[:200].replace("\n", " ")
