"""``/health/live``, ``/health/ready`` (alias ``/health``), ``/metrics``: for those who watch.

Live: the engine makes progress; false means that the process should be replaced. Ready: new requests are
taken; false while draining, when the process is still live.
"""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from tokenmill.server.answers import json_response
from tokenmill.server.context import Context
from tokenmill.server.metrics import CONTENT_TYPE
from tokenmill.server.protocol.others import Health


async def live(context: Context, request: Request) -> Response:
    """200 while the engine makes progress."""
    return _health(context.service.live, context)


async def ready(context: Context, request: Request) -> Response:
    """200 while new requests are taken."""
    return _health(context.ready, context)


async def metrics(context: Context, request: Request) -> Response:
    """Prometheus metrics."""
    return Response(context.metrics.render(), headers={"content-type": CONTENT_TYPE})


def _health(ok: bool, context: Context) -> Response:
    answer: Health = {"status": "ok" if ok else "draining" if context.draining else "unavailable"}
    return json_response(answer, 200 if ok else 503)
