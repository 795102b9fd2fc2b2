"""``GET /v1/requests/{id}``: why a request took as long as it did."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from tokenmill.server.answers import json_response
from tokenmill.server.context import Context, Ticket
from tokenmill.server.errors import HttpError

_PREFIXES = ("chatcmpl-", "cmpl-", "resp_")


async def explain_request(context: Context, request: Request) -> Response:
    """The causal account of a request, running or recent, by its ``x-request-id`` or its answer's id.

    A completion with several prompts has one account per prompt: the first is the answer's own, the others
    stand under ``prompts``.
    """
    given = request.path_params["id"]
    name = given
    for prefix in _PREFIXES:
        if given.startswith(prefix):
            name = "req_" + given.removeprefix(prefix)
    account = await context.service.explain(name)
    if account is None or not _may_see(context, request.state.ticket, name, account):
        raise HttpError(404, f"No request '{given[:64]}' is known; it may be too old.", code="request_not_found")
    others = await _others(context, name)
    return json_response({**account, "prompts": others} if others else account)


def _may_see(context: Context, ticket: Ticket, name: str, account: dict[str, Any]) -> bool:
    """Its own tenant and administrators; to all others it does not exist."""
    owner = account.get("tenant") or context.admission.tenant_of(name)
    return ticket.access.admin or owner == ticket.access.tenant


async def _others(context: Context, name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    while (account := await context.service.explain(f"{name}.{len(found) + 1}")) is not None:
        found.append(account)
    return found
