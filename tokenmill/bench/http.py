"""A small HTTP/1.1 client for measuring: one connection per request, every event stamped when it arrives.

Written on asyncio alone, because a general client spends as much time per event as the server under test, and
on the same cores. It knows just what servers of this kind send: bodies by length, in chunks, or until the end.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
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

    async def get(self, path: str) -> str:
        """The body of a GET; raises ``HttpFailure``."""
        return await self._whole("GET", path, None)

    async def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """The JSON answer to a JSON body; raises ``HttpFailure``."""
        return json.loads(await self._whole("POST", path, body))

    async def stream(self, path: str, body: Mapping[str, Any]) -> AsyncGenerator[tuple[float, Any]]:
        """Server-sent events of a POST as (moment of arrival on ``time.perf_counter``, JSON), up to ``[DONE]``.

        Raises:
            HttpFailure: also when the stream ends without ``[DONE]``, or an event carries an error.
        """
        async with self._answer("POST", path, body) as pieces:
            buffer = b""
            async for piece in pieces:
                arrival = time.perf_counter()
                *events, buffer = (buffer + piece).replace(b"\r\n", b"\n").split(b"\n\n")
                for event in events:
                    data = _event_data(event)
                    if data == b"[DONE]":
                        return
                    if data:
                        yield arrival, _checked_event(data)
        raise HttpFailure("the stream ended without [DONE]")

    async def _whole(self, method: str, path: str, body: Mapping[str, Any] | None) -> str:
        async with self._answer(method, path, body) as pieces:
            return b"".join([piece async for piece in pieces]).decode("utf-8", "replace")

    @asynccontextmanager
    async def _answer(
        self, method: str, path: str, body: Mapping[str, Any] | None
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """Send, check the status, hand out the body piece by piece."""
        try:
            async with asyncio.timeout(self.timeout_s):
                reader, writer = await self._connect()
                try:
                    writer.write(self._request(method, path, body))
                    await writer.drain()
                    status, headers = await _read_head(reader)
                    pieces = _read_body(reader, headers)
                    if status != 200:
                        text = b"".join([piece async for piece in pieces]).decode("utf-8", "replace")
                        raise HttpFailure(f"{method} {path}: HTTP {status}: {_error_message(text)}", status=status)
                    yield pieces
                finally:
                    writer.close()
        except TimeoutError as error:
            raise HttpFailure(f"{method} {path}: no answer within {self.timeout_s:g} s") from error
        except asyncio.IncompleteReadError as error:
            raise HttpFailure(f"{method} {path}: the connection ended before the answer did") from error
        except (OSError, ValueError) as error:
            raise HttpFailure(f"{method} {self.base_url}{path}: {error or type(error).__name__}") from error

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        url = urlsplit(self.base_url)
        secure = ssl.create_default_context() if url.scheme == "https" else None
        port = url.port or (443 if secure else 80)
        return await asyncio.open_connection(url.hostname, port, ssl=secure, limit=MAX_LINE_BYTES)

    def _request(self, method: str, path: str, body: Mapping[str, Any] | None) -> bytes:
        content = b"" if body is None else json.dumps(body).encode()
        url = urlsplit(self.base_url)
        lines = [f"{method} {url.path.rstrip('/')}{path} HTTP/1.1", f"Host: {url.netloc}", "Connection: close"]
        if self.api_key:
            lines.append(f"Authorization: Bearer {self.api_key}")
        if body is not None:
            lines += ["Content-Type: application/json", f"Content-Length: {len(content)}"]
        return "\r\n".join([*lines, "", ""]).encode() + content


async def _read_head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    version, _, rest = first.partition(" ")
    if not version.startswith("HTTP/1.") or not rest[:3].isdigit():
        raise ValueError(f"not an HTTP/1.1 answer: {first[:60]!r}")
    pairs = (line.partition(":") for line in lines if line)
    return int(rest[:3]), {name.strip().lower(): value.strip() for name, _, value in pairs}


async def _read_body(reader: asyncio.StreamReader, headers: Mapping[str, str]) -> AsyncIterator[bytes]:
    if headers.get("transfer-encoding", "").lower() == "chunked":
        while size := int((await reader.readuntil(b"\r\n")).partition(b";")[0], 16):
            yield await reader.readexactly(size)
            await reader.readexactly(2)
    elif "content-length" in headers:
        yield await reader.readexactly(int(headers["content-length"]))
    else:
        while piece := await reader.read(65536):
            yield piece


def _event_data(event: bytes) -> bytes:
    """The ``data:`` lines of one server-sent event, joined; empty for a comment."""
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
