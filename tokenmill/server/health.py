"""``/health/live``, ``/health/ready`` (alias ``/health``), ``/metrics``: for those who watch.

Live: the engine makes progress, or comes back by itself; false means that the process should be replaced. Ready: new
requests are taken; false while draining, while an isolated engine is restarted, and while a step takes longer than it
should, when the process is still live. Both are judged by progress at the moment of the question
(``engine/watchdog.py``); the body says the state and since when::

    {"status": "unavailable", "state": "restarting", "since": 1790000000.1, "why": "the engine's process died …"}
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
    return json_response(*judge(context, ready=False))


async def ready(context: Context, request: Request) -> Response:
    """200 while new requests are taken."""
    return json_response(*judge(context, ready=True))


async def metrics(context: Context, request: Request) -> Response:
    """Prometheus metrics."""
    return Response(context.metrics.render(), headers={"content-type": CONTENT_TYPE})


def judge(context: Context, *, ready: bool) -> tuple[Health, int]:
    """The answer's body and status."""
    ok = context.ready if ready else context.service.live
    condition = context.service.condition
    draining = context.draining and condition.state == "ready"
    answer: Health = {
        "status": "ok" if ok else "draining" if draining or condition.state == "draining" else "unavailable",
        "state": "draining" if draining else condition.state,
        "since": condition.since,
        "why": "the server is shutting down" if draining else condition.why or None,
    }
    return answer, 200 if ok else 503
