"""What is answered without the application: who asks for health, and whom there is no room for.

A server that has far more to refuse than to do must refuse for next to nothing: what a refusal takes of the processor,
those who were let in lack. The way through parser, tasks, routes and body takes half a millisecond; this takes a tenth
of that. And whoever watches the server must not wait behind those whom it refuses.

Only what is plain goes this way: a whole request in one piece, with no field twice and none that would need thought,
on a connection on which nothing else is under way. All else, and all that is not refused, takes the ordinary way, where
the same questions are asked: name of the host, key, rate limit, readiness, room. So the answers differ in nothing but
their cost, which the tests hold; bodies are not looked at on either way before there is room.
"""

from __future__ import annotations

import logging
import re
import secrets
import time
from http import HTTPStatus

from prometheus_client import Counter

from tokenmill.core.errors import RateLimited, RequestError, Unavailable
from tokenmill.server import jsonio
from tokenmill.server.context import Context, Ticket
from tokenmill.server.errors import problem_of
from tokenmill.server.guard import SMALL_BYTES
from tokenmill.server.health import judge
from tokenmill.server.host import Hosts
from tokenmill.server.parser import HOST, MAX_FIELDS, MAX_HEAD_BYTES

Headers = list[tuple[bytes, bytes]]

_HEAD = re.compile(rb"(GET|POST) (/[a-z0-9_/]*) HTTP/1\.1\r\n((?:[A-Za-z0-9-]+:[\x20-\x7e]*\r\n)+)\r\n")
_NEED_THOUGHT = (b"transfer-encoding", b"expect", b"upgrade", b"te", b"trailer", b"content-encoding")
_HEALTH = {b"/health": True, b"/health/ready": True, b"/health/live": False}
"""Whether readiness is asked for."""
_STATUS_LINE = {status: f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n".encode() for status in (200, 429, 503)}


class Shortcut:
    """Of one server; on its event loop only."""

    def __init__(self, context: Context) -> None:
        settings = context.settings
        self._context = context
        self._routes = {route.encode(): route for route in context.generating}
        self._hosts = Hosts(settings, has_keys=settings.api_key is not None or settings.keys is not None)
        self._counters: dict[tuple[str | int, ...], list[Counter]] = {}
        self._log = logging.getLogger("tokenmill.request")

    def answer(self, data: bytes, default_headers: Headers) -> tuple[bytes, bool] | None:
        """The whole answer to ``data``, and whether the connection ends with it; None: take the ordinary way.

        Args:
            data: what came on a connection on which nothing is under way.
            default_headers: of every answer.
        """
        found = _HEAD.match(data)
        if found is None or found.end() > MAX_HEAD_BYTES or self._context.draining:
            return None
        method, path, fields = found.groups()
        if path not in (self._routes if method == b"POST" else _HEALTH):
            return None
        headers = [_field(line) for line in fields.split(b"\r\n")[:-1]]
        named = dict(headers)
        length = named.get(b"content-length", b"0")
        plain = (
            len(named) == len(headers) <= MAX_FIELDS
            and HOST.fullmatch(named.get(b"host", b"?")) is not None
            and not any(name in named for name in _NEED_THOUGHT)
            and length.isdigit()
            and len(length) < 6
            and int(length) <= SMALL_BYTES
            and len(data) - found.end() == int(length)
        )
        connection = named.get(b"connection", b"keep-alive").lower()
        if not plain or connection not in (b"keep-alive", b"close"):
            return None
        ends = connection == b"close"
        own = [*default_headers, (b"connection", b"close")] if ends else default_headers
        made = self._health(path, own) if method == b"GET" else self._refusal(self._routes[path], headers, named, own)
        return None if made is None else (made, ends)

    def _count(self, route: str, status: int, *codes: str) -> None:
        key: tuple[str | int, ...] = (route, status, *codes)
        counters = self._counters.get(key)
        if counters is None:  # to look them up takes longer than to count
            metrics = self._context.metrics
            counters = [metrics.responses.labels(route, status), *(metrics.rejected.labels(code) for code in codes)]
            self._counters[key] = counters
        for counter in counters:
            counter.inc()

    def _health(self, path: bytes, headers: Headers) -> bytes | None:
        if self._log.isEnabledFor(logging.DEBUG):
            return None  # such requests are logged then
        body, status = judge(self._context, ready=_HEALTH[path])
        self._count(path.decode(), status)
        ticket = Ticket(f"req_{secrets.token_hex(16)}", time.monotonic())
        return _answer(status, jsonio.dumps(body), ticket, headers)

    def _refusal(self, route: str, headers: Headers, named: dict[bytes, bytes], own: Headers) -> bytes | None:
        context = self._context
        if b"origin" in named and context.settings.cors_origins:
            return None
        ticket = Ticket(f"req_{secrets.token_hex(16)}", time.monotonic())
        try:
            self._hosts.check({"headers": headers})
            ticket.access = context.door.access(headers)
        except RequestError:
            return None
        refused: RateLimited | Unavailable
        try:
            context.check_ready()
            context.admission.check(ticket, ahead=len(context.slices))
        except (RateLimited, Unavailable) as error:
            refused = error
        else:
            return None
        try:
            context.meters.charge_request(ticket.access)
        except RateLimited as error:
            refused = error
        problem = problem_of(refused, ticket.request_id)
        ticket.error = problem.code
        self._count(route, problem.status, problem.code)
        context.observer.refused(
            ticket, {"method": "POST", "headers": headers, "state": {"route": route}}, problem.status
        )
        extra = [(name.encode(), value.encode()) for name, value in problem.headers.items()]
        extra += context.meters.headers(ticket.access)
        return _answer(problem.status, jsonio.dumps(problem.body), ticket, [*extra, *own])


def _field(line: bytes) -> tuple[bytes, bytes]:
    name, _, value = line.partition(b":")
    return name.lower(), value.strip(b" ")


def _answer(status: int, body: bytes, ticket: Ticket, headers: Headers) -> bytes:
    elapsed_ms = round(1000 * (time.monotonic() - ticket.started_s))
    head = b"".join([b"%s: %s\r\n" % field for field in headers])
    return (
        b"%scontent-type: application/json\r\ncontent-length: %d\r\nx-request-id: %s\r\n"
        b"openai-processing-ms: %d\r\n%s\r\n%s"
    ) % (_STATUS_LINE[status], len(body), ticket.request_id.encode(), elapsed_ms, head, body)
