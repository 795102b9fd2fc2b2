"""The door: what holds for every request whatever its address, as one ASGI layer around the app.

It gives each request its ticket (an id that no client can choose), lets in whoever has the key, and sees to
it that every answer carries its id and that a connection whose body was not read to the end is closed.
Decisions look at ``scope["path"]``, never at an address put together from headers.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tokenmill.core.errors import RequestError
from tokenmill.server import jsonio
from tokenmill.server.context import Context, Ticket
from tokenmill.server.errors import Problem, problem_of
from tokenmill.server.host import Hosts

log = logging.getLogger(__name__)

LINGER_S = 1.0
LINGER_BYTES = 64 * 2**20
"""How long, and how much of, a body that nobody wants is still taken and thrown away."""

SMALL_S = 0.05
SMALL_BYTES = 65536
"""The same for one that announces no more than this, so that a refusal does not cost its client the connection."""

OPEN_PATHS = frozenset({"/health", "/health/live", "/health/ready"})
"""Addresses that need no key: whoever watches the process has none."""

METRICS_PATH = "/metrics"


class Guard:
    """Wraps ``app``. Anything that app lets escape is answered with a plain 500 and logged with its id."""

    def __init__(self, app: ASGIApp, context: Context) -> None:
        self.app = app
        self.context = context
        settings = context.settings
        self._hosts = Hosts(settings, has_keys=settings.api_key is not None or settings.keys is not None)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        ticket = Ticket(f"req_{secrets.token_hex(16)}", state.get("arrived_s") or time.monotonic())
        state["ticket"] = ticket
        call = _Call(scope, receive, send, ticket, self.context)
        try:
            if scope["path"] not in OPEN_PATHS:
                self._hosts.check(scope)
            self._let_in(scope, ticket)
            await self.app(scope, call.receive, call.send)
        except Exception as error:
            if not isinstance(error, RequestError):
                log.exception("request %s failed", ticket.request_id)
            if not call.started:
                problem = problem_of(error, ticket.request_id)
                ticket.error = problem.code
                self.context.metrics.rejected.labels(problem.code).inc()
                await problem_response(problem)(scope, call.receive, call.send)
        self.context.metrics.responses.labels(_label(scope), call.status).inc()
        self.context.observer.ended(ticket, scope, call.status)

    def _let_in(self, scope: Scope, ticket: Ticket) -> None:
        """Find out who it is, and count the request against its limits.

        Raises:
            HttpError: 401, no key or a wrong one.
            RateLimited: it has sent too many.
        """
        path = scope["path"]
        if path in OPEN_PATHS or (path == METRICS_PATH and self.context.settings.open_metrics):
            return
        ticket.access = self.context.door.access(scope["headers"])
        if scope["method"] == "POST":
            self.context.meters.charge_request(ticket.access)


class _Call:
    """One request's channels, watched: has the body been read, has the answer begun?"""

    def __init__(self, scope: Scope, receive: Receive, send: Send, ticket: Ticket, context: Context) -> None:
        names = {name for name, _ in scope["headers"]}
        lengths = [value for name, value in scope["headers"] if name == b"content-length"]
        self._body_left = b"transfer-encoding" in names or any(value.strip(b"0 ") for value in lengths)
        announced = lengths[0] if len(lengths) == 1 else b""
        self._small = announced.isdigit() and len(announced) < 7 and int(announced) <= SMALL_BYTES
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
            if self._body_left and self._small:
                await self._take_rest(SMALL_S, SMALL_BYTES)  # it has come already: the connection can stay
            headers = [*message["headers"], *self._headers()]
            message = {**message, "headers": headers}
        elif self._closes and not message.get("more_body", False):
            await self._send({**message, "more_body": True})
            # Let a client that is still sending its body read the answer: closing at once would reset it.
            await self._take_rest(LINGER_S, LINGER_BYTES)
            message = {"type": "http.response.body", "body": b"", "more_body": False}
        await self._send(message)

    async def _take_rest(self, seconds: float, max_bytes: int) -> None:
        """Throw away what is left of the body, if it comes within these limits."""
        try:
            async with asyncio.timeout(seconds):
                num_bytes = 0
                while self._body_left and num_bytes < max_bytes:
                    num_bytes += len((await self.receive()).get("body", b""))
        except TimeoutError:
            pass

    def _headers(self) -> list[tuple[bytes, bytes]]:
        elapsed_ms = 1000 * (time.monotonic() - self._ticket.started_s)
        headers = [
            (b"x-request-id", self._ticket.request_id.encode()),
            (b"openai-processing-ms", str(round(elapsed_ms)).encode()),
        ]
        headers += self._context.meters.headers(self._ticket.access)
        self._closes = self._body_left or self._context.draining
        return [*headers, (b"connection", b"close")] if self._closes else headers


def problem_response(problem: Problem) -> Response:
    """The answer that tells a client what went wrong."""
    return Response(jsonio.dumps(problem.body), problem.status, problem.headers, media_type="application/json")


def _label(scope: Scope) -> str:
    """The route's pattern: a metric must not have a label for every address that a client makes up."""
    return str(scope["state"].get("route", "other"))
