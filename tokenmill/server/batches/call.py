"""One request to an endpoint of this very server, without a connection.

The app behind the guard is called as the guard calls it: the same route, checks, handler and errors, with a ticket
that says whose request it is and that it is background work. So a line of a batch cannot be answered differently
from the same request sent by itself.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import time
from dataclasses import dataclass
from typing import Any

from starlette.types import ASGIApp, Message

from tokenmill.server.access import Access
from tokenmill.server.context import Ticket
from tokenmill.server.errors import problem_of

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    request_id: str
    body: Any
    retry_after_s: float | None


async def call(app: ASGIApp, path: str, body: bytes, access: Access) -> Answer:
    """POST ``body`` to ``path``. Cancelling gives the request up as a closed connection does."""
    ticket = Ticket(f"req_{secrets.token_hex(16)}", time.monotonic(), access=access, background=True)
    exchange = _Exchange(body)
    try:
        await app(_scope(path, len(body), ticket), exchange.receive, exchange.send)
    except Exception as error:
        log.exception("request %s failed", ticket.request_id)
        if not exchange.status:
            return Answer(500, ticket.request_id, problem_of(error, ticket.request_id).body, None)
    content = b"".join(exchange.parts)
    wait = exchange.headers.get(b"retry-after", b"")
    return Answer(
        exchange.status,
        ticket.request_id,
        json.loads(content) if content else None,
        float(wait) if wait.isdigit() else None,
    )


class _Exchange:
    """The two channels of one request."""

    def __init__(self, body: bytes) -> None:
        self._body: bytes | None = body
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.parts: list[bytes] = []

    async def receive(self) -> Message:
        if self._body is None:
            await asyncio.get_running_loop().create_future()  # the client stays until it has its answer
        body, self._body = self._body, None
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = dict(message["headers"])
        else:
            self.parts.append(message.get("body", b""))


def _scope(path: str, num_bytes: int, ticket: Ticket) -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"content-type", b"application/json"), (b"content-length", str(num_bytes).encode())],
        "client": None,
        "server": None,
        "state": {"ticket": ticket},
    }
