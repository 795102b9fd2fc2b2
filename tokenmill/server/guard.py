"""The door: what holds for every request whatever its address, as one ASGI layer around the app.

It gives each request its ticket (an id that no client can choose), lets in whoever has the key, and sees to
it that every answer carries its id and that a connection whose body was not read to the end is closed.
Decisions look at ``scope["path"]``, never at an address put together from headers.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import secrets
import time

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tokenmill.server import jsonio
from tokenmill.server.context import Context, Ticket
from tokenmill.server.errors import HttpError, Problem, problem_of

log = logging.getLogger(__name__)

LINGER_S = 1.0
LINGER_BYTES = 64 * 2**20
"""How long, and how much of, a body that nobody wants is still taken and thrown away."""

OPEN_PATHS = frozenset({"/health", "/health/live", "/health/ready"})
"""Addresses that need no key: whoever watches the process has none."""


class Guard:
    """Wraps ``app``. Anything that app lets escape is answered with a plain 500 and logged with its id."""

    def __init__(self, app: ASGIApp, context: Context) -> None:
        self.app = app
        self.context = context
        key = context.settings.api_key
        self._key_hash = None if key is None else _hash(key.encode())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        ticket = Ticket(f"req_{secrets.token_hex(16)}", time.monotonic())
        scope.setdefault("state", {})["ticket"] = ticket
        call = _Call(scope, receive, send, ticket, self.context)
        try:
            self._check_key(scope)
            await self.app(scope, call.receive, call.send)
        except Exception as error:
            if not isinstance(error, HttpError):
                log.exception("request %s failed", ticket.request_id)
            if not call.started:
                await problem_response(problem_of(error, ticket.request_id))(scope, call.receive, call.send)
        self.context.metrics.responses.labels(_label(scope), call.status).inc()

    def _check_key(self, scope: Scope) -> None:
        if self._key_hash is None or scope["path"] in OPEN_PATHS:
            return
        values = [value for name, value in scope["headers"] if name == b"authorization"]
        scheme, _, key = values[0].partition(b" ") if len(values) == 1 else (b"", b"", b"")
        if scheme.lower() != b"bearer" or not hmac.compare_digest(_hash(key.strip()), self._key_hash):
            raise HttpError(
                401,
                "The API key is missing or wrong; send it as 'Authorization: Bearer <key>'.",
                code="invalid_api_key",
                headers={"www-authenticate": "Bearer"},
            )


class _Call:
    """One request's channels, watched: has the body been read, has the answer begun?"""

    def __init__(self, scope: Scope, receive: Receive, send: Send, ticket: Ticket, context: Context) -> None:
        names = {name for name, _ in scope["headers"]}
        lengths = [value for name, value in scope["headers"] if name == b"content-length"]
        self._body_left = b"transfer-encoding" in names or any(value.strip(b"0 ") for value in lengths)
        self._closes = False
        self._receive = receive
        self._send = send
        self._ticket = ticket
        self._context = context
        self.status = 0
        """0 while no answer has begun."""

    @property
    def started(self) -> bool:
        return self.status != 0

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            self._body_left = False
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = [*message["headers"], *self._headers()]
            message = {**message, "headers": headers}
        elif self._closes and not message.get("more_body", False):
            await self._send({**message, "more_body": True})
            await self._linger()
            message = {"type": "http.response.body", "body": b"", "more_body": False}
        await self._send(message)

    async def _linger(self) -> None:
        """Let a client that is still sending its body read the answer: closing at once would reset it."""
        try:
            async with asyncio.timeout(LINGER_S):
                num_bytes = 0
                while self._body_left and num_bytes < LINGER_BYTES:
                    num_bytes += len((await self.receive()).get("body", b""))
        except TimeoutError:
            pass

    def _headers(self) -> list[tuple[bytes, bytes]]:
        elapsed_ms = 1000 * (time.monotonic() - self._ticket.started_s)
        headers = [
            (b"x-request-id", self._ticket.request_id.encode()),
            (b"openai-processing-ms", str(round(elapsed_ms)).encode()),
        ]
        self._closes = self._body_left or self._context.draining
        return [*headers, (b"connection", b"close")] if self._closes else headers


def problem_response(problem: Problem) -> Response:
    """The answer that tells a client what went wrong."""
    return Response(jsonio.dumps(problem.body), problem.status, problem.headers, media_type="application/json")


def _hash(key: bytes) -> bytes:
    """Keys are compared by hash: in constant time, whatever their lengths and bytes."""
    return hashlib.sha256(key).digest()


def _label(scope: Scope) -> str:
    """The route's pattern: a metric must not have a label for every address that a client makes up."""
    return str(scope["state"].get("route", "other"))
