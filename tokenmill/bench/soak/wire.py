"""HTTP/1.1 as a tester needs it: any bytes out, any status back, a connection that is kept, dropped or read slowly."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

MAX_LINE_BYTES = 2**20


class Cut(Exception):
    """The connection ended before an answer began."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where the server listens."""

    host: str
    port: int

    def request(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        *,
        key: str = "",
        kind: str = "application/json",
        headers: Mapping[str, str] | None = None,
    ) -> bytes:
        """The bytes of a request."""
        lines = [f"{method} {path} HTTP/1.1", f"Host: {self.host}:{self.port}"]
        if key:
            lines.append(f"Authorization: Bearer {key}")
        if body or method == "POST":
            lines += [f"Content-Type: {kind}", f"Content-Length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


@dataclass(slots=True)
class Answer:
    """What came back, whole."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    seconds: float
    events: list[Any] = field(default_factory=list)
    """Of a stream: the JSON of its events, ``[DONE]`` as that text."""
    cut: bool = False
    """The connection ended within the body."""

    @property
    def streamed(self) -> bool:
        return self.headers.get("content-type", "").startswith("text/event-stream")

    def json(self) -> Any:
        """The body; raises ``ValueError`` if it is not JSON."""
        return json.loads(self.body)


class Connection:
    """One connection, for one request after the other. Use ``ask``, or write and read by hand and ``drop``."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def open(cls, address: Address, *, receive_bytes: int | None = None) -> Connection:
        """Connect; ``receive_bytes``: a small buffer, for a client that reads slowly."""
        sock = socket.socket()
        sock.setblocking(False)
        if receive_bytes is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        try:
            await asyncio.get_running_loop().sock_connect(sock, (address.host, address.port))
            limit = MAX_LINE_BYTES if receive_bytes is None else receive_bytes
            return cls(*await asyncio.open_connection(sock=sock, limit=limit))
        except BaseException:
            sock.close()
            raise

    async def ask(self, request: bytes) -> Answer:
        """Send, and read the whole answer, or what there was of it; raises ``Cut`` if not even a head came."""
        began_s = time.perf_counter()
        try:
            self.writer.write(request)
            await self.writer.drain()
            status, headers = await self._head()
        except (asyncio.IncompleteReadError, OSError, ValueError) as error:
            raise Cut(f"{type(error).__name__}: {error}") from error
        pieces: list[bytes] = []
        cut = False
        try:
            await self._body(headers, pieces)
        except (asyncio.IncompleteReadError, OSError, ValueError):
            cut = True
        answer = Answer(status, headers, b"".join(pieces), time.perf_counter() - began_s, cut=cut)
        if answer.streamed:
            answer.events = _events(answer.body)
        return answer

    def close(self) -> None:
        self.writer.close()

    def drop(self) -> None:
        """End without a word, as a client does that was killed."""
        self.writer.transport.abort()

    async def _head(self) -> tuple[int, dict[str, str]]:
        first, *lines = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        pairs = (line.partition(":") for line in lines if line)
        return int(first.split(" ")[1]), {name.strip().lower(): value.strip() for name, _, value in pairs}

    async def _body(self, headers: Mapping[str, str], pieces: list[bytes]) -> None:
        if headers.get("transfer-encoding", "").lower() == "chunked":
            while size := int(await self.reader.readuntil(b"\r\n"), 16):
                pieces.append((await self.reader.readexactly(size + 2))[:-2])
            await self.reader.readexactly(2)
        elif "content-length" in headers:
            pieces.append(await self.reader.readexactly(int(headers["content-length"])))
        else:
            pieces.append(await self.reader.read(-1))


async def ask(address: Address, request: bytes, *, timeout_s: float) -> Answer:
    """One request on a connection of its own.

    Raises:
        Cut: it was cut.
        TimeoutError: there was no whole answer in time.
    """
    async with asyncio.timeout(timeout_s):
        try:
            connection = await Connection.open(address)
        except OSError as error:
            raise Cut(f"no connection: {error}") from error
        try:
            return await connection.ask(request)
        finally:
            connection.close()


def multipart(fields: Mapping[str, str], filename: str, data: bytes) -> tuple[str, bytes]:
    """Content type and body of a form with one file."""
    boundary = "----tokenmill-soak-7f3a9c"
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
        for name, value in fields.items()
    ]
    head = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{filename}"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n"
    )
    tail = f"\r\n--{boundary}--\r\n"
    return f"multipart/form-data; boundary={boundary}", ("".join(parts) + head).encode() + data + tail.encode()


def _events(body: bytes) -> list[Any]:
    """The data of server-sent events; comments are left out."""
    found: list[Any] = []
    for block in body.split(b"\n\n"):
        data = b"\n".join(line[5:].strip() for line in block.split(b"\n") if line.startswith(b"data:"))
        if data:
            found.append("[DONE]" if data == b"[DONE]" else json.loads(data))
    return found
