"""``/v1/files``."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from tokenmill.server.answers import json_response
from tokenmill.server.context import Context, tenant_of
from tokenmill.server.files.download import Download
from tokenmill.server.files.upload import receive_file
from tokenmill.server.protocol.files import FileDeleted, FileList, FileListQuery
from tokenmill.server.query import read_query


async def create_file(context: Context, request: Request) -> Response:
    """Store a file: a multipart form with ``file``, ``purpose`` and, if wanted, ``expires_after``."""
    if context.draining:
        context.check_ready()
    record = await receive_file(context, context.files, request)
    return json_response(record.body)


async def list_files(context: Context, request: Request) -> Response:
    """The files that were stored with this tenant's keys, the newest first."""
    query = read_query(request, FileListQuery)
    found, has_more = await context.files.page(
        tenant_of(request.state.ticket),
        purpose=query.purpose,
        after=query.after,
        limit=query.limit,
        order=query.order,
    )
    answer: FileList = {
        "object": "list",
        "data": [record.body for record in found],
        "first_id": found[0].id if found else None,
        "last_id": found[-1].id if found else None,
        "has_more": has_more,
    }
    return json_response(answer)


async def retrieve_file(context: Context, request: Request) -> Response:
    """What is known of a file."""
    record = await context.files.find(tenant_of(request.state.ticket), request.path_params["id"])
    return json_response(record.body)


async def delete_file(context: Context, request: Request) -> Response:
    """Delete a file and its contents."""
    file_id = request.path_params["id"]
    await context.files.delete(tenant_of(request.state.ticket), file_id)
    answer: FileDeleted = {"id": file_id, "object": "file", "deleted": True}
    return json_response(answer)


async def file_content(context: Context, request: Request) -> Response:
    """The contents of a file, as they were sent."""
    record = await context.files.find(tenant_of(request.state.ticket), request.path_params["id"])
    return Download(context, record)
