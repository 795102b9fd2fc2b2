"""``Observer``: told of every request that has ended, it tells the metrics, the log and the collector of spans."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tokenmill.server.metrics import ServerMetrics
from tokenmill.server.observe.logs import Log, log_request
from tokenmill.server.observe.record import RequestRecord, TenantLabels, trace_of
from tokenmill.server.observe.refusals import RefusalLog
from tokenmill.server.observe.tracing import Tracer

if TYPE_CHECKING:
    from tokenmill.server.context import Ticket

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
API = "/v1/"
"""Addresses whose requests have spans."""


class Observer:
    """
    Args:
        names_tenants: keys say whose a request is, so that tenants' names are the operator's.
        details: the log has sampling parameters and causes of delay too.
        tracer: None: no spans.
    """

    def __init__(self, metrics: ServerMetrics, *, names_tenants: bool, details: bool, tracer: Tracer | None) -> None:
        self.tracer = tracer
        self._metrics = metrics
        self._names_tenants = names_tenants
        self._details = details
        self._labels = TenantLabels()
        self._refusals = RefusalLog()

    def ended(self, ticket: Ticket, scope: Scope, status: int) -> None:
        """The last byte of the answer has left, or nobody takes it. ``status`` 0: no answer began.

        A request that goes on in the background is told of when that has ended.
        """
        if ticket.generation is None:
            self._tell(ticket, scope, status)
        else:
            ticket.generation.when_over(partial(self._tell, ticket, scope, status))

    def refused(self, ticket: Ticket, scope: Scope, status: int) -> None:
        """There is no room for it. Of many such, few have a line in the log (``observe/logs.py``)."""
        self._tell(ticket, scope, status, log=self._refusals.log)

    def _tell(self, ticket: Ticket, scope: Scope, status: int, log: Log = log_request) -> None:
        record = self._record(ticket, scope, status)
        self._metrics.request(record)
        log(record, details=self._details)
        if self.tracer is not None and record.route.startswith(API):
            names = {b"traceparent": "traceparent", b"tracestate": "tracestate"}
            found = {names[name]: value.decode("latin-1") for name, value in scope["headers"] if name in names}
            self.tracer.ended(record, found if record.trace else None)

    def of(self, app: ASGIApp) -> ASGIApp:
        """``app``, told of as well: for requests that do not come through the door (lines of batches)."""

        async def observed(scope: Scope, receive: Receive, send: Send) -> None:
            status = 0

            async def sent(message: Message) -> None:
                nonlocal status
                status = message.get("status", status)
                await send(message)

            try:
                await app(scope, receive, sent)
            finally:
                self.ended(scope["state"]["ticket"], scope, status)

        return observed

    def close(self) -> None:
        if self.tracer is not None:
            self.tracer.close()

    def _record(self, ticket: Ticket, scope: Scope, status: int) -> RequestRecord:
        generation, method = ticket.generation, scope["method"]
        return RequestRecord(
            request_id=ticket.request_id,
            method=method if method in METHODS else "_OTHER",
            route=str(scope["state"].get("route", "other")),
            status=status,
            tenant=self._labels(ticket.access.tenant, trusted=self._names_tenants),
            key_id=ticket.access.key_id,
            began_s=ticket.started_s,
            ended_s=time.monotonic(),
            background=ticket.background,
            error=ticket.error,
            trace=trace_of(scope["headers"]),
            work=None if generation is None else generation.work(),
        )
