"""One client's connection: what uvicorn's own leaves open is given an end.

::

    waiting for a head ── complete ──→ answering ── complete ──→ waiting (kept alive) ─→ …
       │  head_timeout_s: 408             │  nothing taken off the line for 2 × write_stall_s: dropped
       │  refused by the parser: 4xx      │  the client's end of the line closed: see below
       └─ room is needed: 503, or closed if it only idles

**Room.** At most ``max_connections`` are open. When one more comes, the connection that has waited longest without a
request gives way: slow senders and idle ones first, answers never. If all are being answered, the newcomer is told 503.

**Half-closed.** A client may close its sending side and still read. TCP tells that from a client that is gone only when
something is sent: ``100 Continue``, which every client skips, is sent until the answer begins. A departed client's
system answers it with a reset, and the request is given up.

Errors below the application leave as JSON of OpenAI's form, like all others, with an id of their own.
"""

from __future__ import annotations

import asyncio
import http
import logging
import resource
import secrets
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.utils import is_ssl

from tokenmill.server import jsonio
from tokenmill.server.errors import HttpError, problem_of
from tokenmill.server.parser import Parser
from tokenmill.server.shortcut import Shortcut

if TYPE_CHECKING:
    from tokenmill.server.context import Context

log = logging.getLogger(__name__)

LINGER_S = 1.0
"""A refused client may take this long to read why, while what it still sends is thrown away."""
LOOKS = 8
"""How often the shortest period is looked at: it may be this fraction too long."""
PROBES_S = (0.1, 0.2, 0.4, 0.8, 1.6)
"""Pauses after each question whether a client that closed its sending side still listens."""
RESERVED_FILES = 128
"""Descriptors kept for everything that is no connection."""

_CODES = {
    408: "request_timeout",
    414: "uri_too_long",
    431: "headers_too_large",
    503: "too_many_connections",
    505: "http_version_not_supported",
}


class Door:
    """What the connections of one server share."""

    def __init__(self, context: Context) -> None:
        settings = context.settings
        self.limit = room_for(settings.max_connections)
        self.head_timeout_s = settings.head_timeout_s
        self.write_stall_s = 2 * settings.write_stall_s
        self.period_s = min(self.head_timeout_s, self.write_stall_s) / LOOKS
        self.waiting: OrderedDict[Connection, None] = OrderedDict()
        """Connections without a request, the one that has waited longest first."""
        self._rejected = context.metrics.rejected
        self.shortcut = Shortcut(context)

    def make_room(self, newcomer: Connection) -> None:
        next(iter(self.waiting), newcomer).give_way()

    def count_refusal(self, code: str) -> None:
        self._rejected.labels(code).inc()


def connections_of(context: Context) -> type[Connection]:
    """The protocol class for uvicorn's ``http``, bound to one server's settings and metrics."""
    return type("Connection", (Connection,), {"door": Door(context)})


def room_for(max_connections: int) -> int:
    """Let this process open that many connections; fewer if the system does not allow it."""
    wanted = max_connections + RESERVED_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return max_connections
    room = max(1, soft - RESERVED_FILES)
    log.warning("%d connections at most, not %d: the limit on open files is %d", room, max_connections, soft)
    return room


class Connection(H11Protocol):
    """Uvicorn's, with a strict parser, deadlines and a place in the queue for room."""

    door: ClassVar[Door]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.conn: Parser = Parser()
        self._refused = False
        self._half_closed = False
        self._used = False
        """At least one request was answered on it."""
        self._head_since_s: float | None = None
        """When the head that is being waited for was first due; None while an answer is made, or none has begun."""
        self._moved_s = 0.0
        self._num_taken = 0
        """When, and how many bytes, the client's system had last taken."""
        self._timers: dict[str, asyncio.TimerHandle] = {}

    # ---- from the transport ------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._head_since_s = self._moved_s = self.loop.time()
        self.door.waiting[self] = None
        self._later("look", self.door.period_s, self._look)
        if len(self.connections) > self.door.limit:
            self.door.make_room(self)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        if (
            self._is_fresh()
            and (made := self.door.shortcut.answer(data, self.server_state.default_headers)) is not None
        ):
            self._answer_at_once(*made)
            return
        if self.conn.their_state is h11.IDLE:
            self.app_state["arrived_s"] = self.loop.time()  # of the request whose head these bytes may complete
        super().data_received(data)
        self._settle()

    def eof_received(self) -> bool:  # type: ignore[override]
        """Whether the line stays open for the answer."""
        cycle = self.cycle
        if self._refused or cycle is None or cycle.response_complete or cycle.more_body:
            return False
        if is_ssl(self.transport) or self.scope["http_version"] != "1.1":
            return False
        self._half_closed = True
        self._probe(0)
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self.door.waiting.pop(self, None)
        for timer in self._timers.values():
            timer.cancel()
        super().connection_lost(exc)
        self._unset_keepalive_if_required()

    # ---- from uvicorn ------------------------------------------------------------------------------

    def on_response_complete(self) -> None:
        self._used = True
        self.app_state["arrived_s"] = self.loop.time()  # one that was sent behind it begins now
        super().on_response_complete()
        if self._half_closed:
            self.transport.close()
        elif not self.transport.is_closing():
            self._settle()

    def send_400_response(self, msg: str) -> None:
        """The parser refused what came."""
        error = self.conn.refusal
        status = 400 if error is None else error.error_status_hint
        self._refuse(status if status in _CODES else 400, f"This is no proper HTTP request: {error or msg}.")

    def _should_upgrade(self) -> bool:
        """Never: an offer to speak another protocol is declined by answering in this one."""
        return False

    # ---- our own -----------------------------------------------------------------------------------

    def give_way(self) -> None:
        """Make room for another connection."""
        if self._used and self._head_since_s is None:
            self._refused = True
            self.transport.close()
        else:
            self._refuse(503, "The server has too many connections; try again soon.", linger=False)

    def _is_fresh(self) -> bool:
        """Nothing is under way: what comes now begins a request; and the client takes its answers."""
        conn = self.conn
        idle = conn.their_state is h11.IDLE and conn.our_state is h11.IDLE
        return idle and not conn.trailing_data[0] and not self.flow.write_paused

    def _answer_at_once(self, answer: bytes, ends: bool) -> None:
        """The parser sees neither the request nor ``answer``: for it the connection is as it was."""
        self._used = True
        self._unset_keepalive_if_required()
        self.server_state.total_requests += 1
        self.conn.num_sent += len(answer)
        self.transport.write(answer)
        if ends:
            self._refused = True
            self.transport.close()
        else:
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )
        self._head_since_s = None
        self.door.waiting.pop(self, None)
        self._settle()

    def _settle(self) -> None:
        """Note whether a head is being waited for, and since when."""
        if self._refused or self.conn.their_state is not h11.IDLE:
            self.door.waiting.pop(self, None)
            self._head_since_s = None
            return
        self.door.waiting.setdefault(self)
        if self._head_since_s is None and self.conn.trailing_data[0]:
            self._head_since_s = self.loop.time()

    def _look(self) -> None:
        """Is the client too slow with its head, or does it take nothing?"""
        now_s, num_left = self.loop.time(), self.transport.get_write_buffer_size()
        num_taken = self.conn.num_sent - num_left
        if num_left == 0 or num_taken != self._num_taken:
            self._moved_s, self._num_taken = now_s, num_taken
        elif now_s - self._moved_s >= self.door.write_stall_s:
            self.transport.abort()
            return
        if self._head_since_s is not None and now_s - self._head_since_s >= self.door.head_timeout_s:
            self._refuse(408, f"The header was not complete after {self.door.head_timeout_s:g} s.")
        self._later("look", self.door.period_s, self._look)

    def _probe(self, index: int) -> None:
        cycle = self.cycle
        if cycle.response_started or cycle.disconnected or self.transport.is_closing():
            return
        self._send(h11.InformationalResponse(status_code=100, headers=[], reason=b"Continue"))
        if index < len(PROBES_S):
            self._later("probe", PROBES_S[index], lambda: self._probe(index + 1))

    def _refuse(self, status: int, message: str, *, linger: bool = True) -> None:
        """Say why, take nothing more, and close."""
        self._refused = True
        self._settle()
        code = _CODES.get(status, "invalid_http")
        self.door.count_refusal(code)
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True  # the application, if it waits for a body, is told that none comes
            self.cycle.message_event.set()
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.abort()
            return
        self._send_error(HttpError(status, message, code=code))
        if linger and self.transport.can_write_eof():
            self.transport.write_eof()
            self._later("linger", LINGER_S, self.transport.abort)
        else:
            self.transport.close()

    def _send_error(self, error: HttpError) -> None:
        request_id = f"req_{secrets.token_hex(16)}"
        body = jsonio.dumps(problem_of(error, request_id).body)
        headers = [
            ("content-type", "application/json"),
            ("content-length", str(len(body))),
            ("x-request-id", request_id),
            ("connection", "close"),
        ]
        if error.status == 503:
            headers.append(("retry-after", "1"))
        reason = http.HTTPStatus(error.status).phrase.encode()
        self._send(h11.Response(status_code=error.status, headers=headers, reason=reason))
        self._send(h11.Data(data=body))
        self._send(h11.EndOfMessage())

    def _send(self, event: h11.Event) -> None:
        self.transport.write(self.conn.send(event) or b"")

    def _later(self, name: str, delay_s: float, call: Any) -> None:
        self._timers[name] = self.loop.call_later(delay_s, call)
