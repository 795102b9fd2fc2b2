"""``/v1/batches``."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from tokenmill.core.errors import InvalidRequest
from tokenmill.server.answers import json_response
from tokenmill.server.batches.lines import MAX_INPUT_BYTES
from tokenmill.server.batches.records import new_batch
from tokenmill.server.context import Context, tenant_of
from tokenmill.server.errors import HttpError
from tokenmill.server.protocol.batches import BatchList, BatchRequest
from tokenmill.server.protocol.files import Paging
from tokenmill.server.query import read_query


async def create_batch(context: Context, request: Request, body: BatchRequest) -> Response:
    """Answer a file of requests, each line exactly once, in what interactive requests leave."""
    if context.draining:
        context.check_ready()
    access = request.state.ticket.access
    file = await context.files.find(access.tenant, body.input_file_id, "input_file_id")
    if file.purpose != "batch":
        raise InvalidRequest(
            f"The file was stored for '{file.purpose}'; upload it with the purpose 'batch'.", param="input_file_id"
        )
    if file.num_bytes > MAX_INPUT_BYTES:
        raise HttpError(
            413,
            f"A batch's input may hold at most {MAX_INPUT_BYTES} bytes, but this file has {file.num_bytes}; split it.",
            code="file_too_large",
            param="input_file_id",
        )
    return json_response(await context.batches.take(new_batch(access, body)))


async def list_batches(context: Context, request: Request) -> Response:
    """The batches that were made with this tenant's keys, the newest first."""
    query = read_query(request, Paging)
    batches = context.batches
    found, has_more = await batches.table.page(tenant_of(request.state.ticket), after=query.after, limit=query.limit)
    answer: BatchList = {
        "object": "list",
        "data": [batches.body_of(record) for record in found],
        "first_id": found[0].id if found else None,
        "last_id": found[-1].id if found else None,
        "has_more": has_more,
    }
    return json_response(answer)


async def retrieve_batch(context: Context, request: Request) -> Response:
    """How far a batch is, and its files when it has ended."""
    record = await context.batches.table.find(tenant_of(request.state.ticket), request.path_params["id"])
    return json_response(context.batches.body_of(record))


async def cancel_batch(context: Context, request: Request) -> Response:
    """Stop a batch; what it has answered so far will be in its files."""
    record = await context.batches.table.find(tenant_of(request.state.ticket), request.path_params["id"])
    return json_response(await context.batches.cancel(record))
