"""The routes of ``/v1/responses``."""

from __future__ import annotations

from contextlib import closing

from starlette.requests import Request
from starlette.responses import Response

from tokenmill.core.errors import InvalidRequest
from tokenmill.server.answers import json_response
from tokenmill.server.context import Context, Ticket, tenant_of
from tokenmill.server.errors import HttpError
from tokenmill.server.generate import AbortCause, Generation, unless_gone
from tokenmill.server.protocol.response_body import DeletedResponse, InputTokens, Item, ItemList
from tokenmill.server.protocol.responses import CountRequest, ItemsQuery, ResponseRequest, RetrieveQuery
from tokenmill.server.query import read_query
from tokenmill.server.responses.answer import Answer
from tokenmill.server.responses.background import Run
from tokenmill.server.responses.conversation import read_conversation, told_here
from tokenmill.server.responses.prompt import make_prompt
from tokenmill.server.responses.store import Stored
from tokenmill.server.sse import EventStream


async def create_response(context: Context, request: Request, body: ResponseRequest) -> Response:
    """Answer a conversation given as items, and keep the answer to be continued."""
    context.check_model(body.model)
    ticket: Ticket = request.state.ticket
    conversation = await read_conversation(context, ticket, body, ticket.answer_id("resp_"))
    prompt = await make_prompt(context, tenant_of(ticket), body, conversation.whole)
    with told_here():
        generation = Generation(context, ticket, [prompt.token_ids], prompt.params, body)
    try:
        answer = Answer(context, ticket, body, conversation.own, generation, prompt.turn.parser(prompt.token_ids))
        if body.background:
            await answer.keep()
    except BaseException:
        generation.close()
        raise
    if body.background:
        return _begun(context, request, body, context.responses.background.start(answer))
    if body.stream:
        return EventStream(context, ticket.request_id, answer.frames(), generation.close, answer.error_frame)
    with closing(generation):
        return json_response(await unless_gone(request.receive, answer.whole()))


def _begun(context: Context, request: Request, body: ResponseRequest, run: Run) -> Response:
    if body.stream:
        return _followed(context, request, run, None)
    return json_response(run.response)


def _followed(context: Context, request: Request, run: Run, after: int | None) -> Response:
    """The events of a run; whoever stops reading them does not stop it."""

    def left(cause: AbortCause) -> None:
        pass

    frames = run.follow(after)
    return EventStream(context, request.state.ticket.request_id, frames, left, run.error_frame)


async def count_input_tokens(context: Context, request: Request, body: CountRequest) -> Response:
    """How many tokens the prompt of such a response would have."""
    context.check_model(body.model)
    ticket: Ticket = request.state.ticket
    conversation = await read_conversation(context, ticket, body, ticket.answer_id("resp_"))
    prompt = await make_prompt(context, tenant_of(ticket), body, conversation.whole)
    answer: InputTokens = {"object": "response.input_tokens", "input_tokens": len(prompt.token_ids)}
    return json_response(answer)


async def retrieve_response(context: Context, request: Request) -> Response:
    """A response that was stored, or is under way in the background; with ``stream`` its events."""
    query = read_query(request, RetrieveQuery)
    if query.starting_after is not None and not query.stream:
        raise InvalidRequest("starting_after is only for stream=true", param="starting_after")
    tenant, response_id = _named(request)
    run = context.responses.background.find(tenant, response_id)
    if query.stream and run is not None:
        return _followed(context, request, run, query.starting_after)
    if run is not None and not query.stream:
        return json_response(run.response)
    stored = await _find(context, request)
    if query.stream:
        raise InvalidRequest(
            "The events of this response are not kept, or no longer; ask for it without stream.", param="stream"
        )
    return json_response(stored.response)


async def delete_response(context: Context, request: Request) -> Response:
    """Delete a response; what is still under way is cancelled."""
    tenant, response_id = _named(request)
    if (run := context.responses.background.find(tenant, response_id)) is not None:
        await context.responses.background.stop(run)
        context.responses.background.forget(run)
    if not await context.responses.store.delete(tenant, response_id):
        raise _not_found(response_id)
    answer: DeletedResponse = {"id": response_id, "object": "response", "deleted": True}
    return json_response(answer)


async def cancel_response(context: Context, request: Request) -> Response:
    """Cancel a response in the background; one that is over is given as it is."""
    tenant, response_id = _named(request)
    if (run := context.responses.background.find(tenant, response_id)) is not None:
        await context.responses.background.stop(run)
        return json_response(run.response)
    stored = await _find(context, request)
    if not stored.response["background"]:
        raise InvalidRequest("Only a response with background: true can be cancelled.", param="response_id")
    return json_response(stored.response)


async def list_input_items(context: Context, request: Request) -> Response:
    """The items that a response was given, without those of the responses before it; the last ones first."""
    query = read_query(request, ItemsQuery)
    stored = await _find(context, request)
    items = stored.input if query.order == "asc" else stored.input[::-1]
    if query.after is not None:
        items = items[_place_of(items, query.after) + 1 :]
    page = items[: query.limit]
    answer: ItemList = {
        "object": "list",
        "data": page,
        "first_id": page[0]["id"] if page else None,
        "last_id": page[-1]["id"] if page else None,
        "has_more": len(items) > len(page),
    }
    return json_response(answer)


def _place_of(items: list[Item], item_id: str) -> int:
    for place, item in enumerate(items):
        if item["id"] == item_id:
            return place
    raise HttpError(404, f"Item with id '{item_id}' not found.", code="item_not_found", param="after")


def _named(request: Request) -> tuple[str, str]:
    return tenant_of(request.state.ticket), request.path_params["id"]


async def _find(context: Context, request: Request) -> Stored:
    tenant, response_id = _named(request)
    stored = await context.responses.store.get(tenant, response_id)
    if stored is None:
        raise _not_found(response_id)
    return stored


def _not_found(response_id: str) -> HttpError:
    return HttpError(404, f"Response with id '{response_id[:64]}' not found.", code="response_not_found")
