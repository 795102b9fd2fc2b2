"""``GET /debug/steps``: what the engine did since its start, in sums, for ``tokenmill diagnose``."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from tokenmill.server.answers import json_response
from tokenmill.server.context import Context
from tokenmill.server.errors import HttpError


async def steps(context: Context, request: Request) -> Response:
    """Model, precision, machine and limits (``about``), the account of every step since the start (``account``), and
    the seconds of the one that runs (``under_way_s``)."""
    found = context.service.observation()
    if found is None:
        raise HttpError(404, "Nobody observes this engine's steps.", code="not_observed")
    account = found.account.as_dict()
    return json_response({"about": dict(found.about), "account": account, "under_way_s": found.under_way_s})
