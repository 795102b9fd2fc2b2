"""From items to a prompt: the conversation that a request continues, in the shape of chat completions.

A request's own items get ids and stand in one form, in which they are stored, listed and sent back. With those of the
responses before it they are the conversation. It becomes a ``ChatRequest``, so that whatever chat checks is checked
here by the same lines; what is wrong is told by the names that this API has for it (``told_here``).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from tokenmill.core.errors import ContextLengthExceeded, InvalidRequest, RequestError
from tokenmill.server.context import Context, Ticket, tenant_of
from tokenmill.server.errors import HttpError, from_validation
from tokenmill.server.protocol import responses as wire
from tokenmill.server.protocol.base import GenerationRequest
from tokenmill.server.protocol.chat import ChatRequest
from tokenmill.server.protocol.response_body import Item, ItemStatus
from tokenmill.server.protocol.responses import MAX_ITEMS, ConversationRequest, CountRequest, ResponseRequest
from tokenmill.server.responses.store import NotKept

_OWN_NAMES = {"n", "prompt_logprobs", "stream", "stream_options", "metadata"}
_SHARED = tuple(name for name in GenerationRequest.model_fields if name not in _OWN_NAMES)
"""Fields that mean the same in chat, and go there as they are."""

_RENAMED = (
    (re.compile(r"^(messages.*|prompt$)"), "input"),
    (re.compile(r"^(max_(completion_)?tokens|n)$"), "max_output_tokens"),
    (re.compile(r"^response_format(\.json_schema)?"), "text.format"),
    (re.compile(r"^tool_choice\.allowed_tools"), "tool_choice"),
    (re.compile(r"^(tools\[\d+\]|tool_choice(?:\.tools\[\d+\])?)\.function"), r"\1"),
    (re.compile(r"^reasoning_effort$"), "reasoning.effort"),
    (re.compile(r"^verbosity$"), "text.verbosity"),
)
_ITEM_ID = re.compile(r"(?:msg|rs|fc|fco)_([0-9a-f]{32})_i?\d+")


@dataclass(frozen=True, slots=True)
class Conversation:
    own: list[Item]
    """What this request brought, as it is stored."""
    whole: list[Item]
    """With everything before it."""


async def read_conversation(
    context: Context, ticket: Ticket, body: ConversationRequest, response_id: str
) -> Conversation:
    """The items of ``body`` and of all that it continues.

    Raises:
        HttpError: 404, the previous response or an item that is referred to is not there.
        InvalidRequest: an id stands twice, or calls and their outputs do not match.
    """
    tenant = tenant_of(ticket)
    earlier: list[Item] = []
    if body.previous_response_id is not None:
        earlier = await _earlier(context, tenant, body, body.previous_response_id)
    given = _given(body)
    known = await _referred(context, tenant, given)
    own: list[Item] = []
    for index, item in enumerate(given):
        if isinstance(item, wire.ItemReference):
            own.append(_known(known, item.id, index))
        else:
            _check_refusals(item, index)
            own.append(_plain(item, f"{response_id.removeprefix('resp_')}_i{index}"))
    whole = [*earlier, *own]
    _check_ids(whole)
    _check_calls(whole)
    return Conversation(own, whole)


def _given(body: ConversationRequest) -> list[Any]:
    if isinstance(body.input, str):
        return [wire.MessageItem(role="user", content=body.input)]
    return list(body.input or ())


async def _earlier(context: Context, tenant: str, body: ConversationRequest, previous_id: str) -> list[Item]:
    try:
        chain, is_all = await context.responses.store.chain(tenant, previous_id, MAX_ITEMS)
    except NotKept as error:
        raise HttpError(
            400,  # as OpenAI: what is not found is no address of this server's
            f"Previous response with id '{error.args[0]}' not found.",
            code="previous_response_not_found",
            param="previous_response_id",
        ) from None
    last = chain[-1].response
    if last["status"] not in ("completed", "incomplete"):
        raise InvalidRequest(
            f"The previous response is {last['status'].replace('_', ' ')}; only a complete one can be continued.",
            param="previous_response_id",
        )
    if not is_all and body.truncation == "disabled":
        raise ContextLengthExceeded(
            f"The conversation is longer than {MAX_ITEMS} items, or than can be read at once; begin a new one, or say "
            "truncation: auto.",
            param="previous_response_id",
        )
    items = [item for stored in chain for item in (*stored.input, *stored.response["output"])]
    return items if is_all else cut(items, next(iter(turns(items)), 0))


async def _referred(context: Context, tenant: str, given: Sequence[Any]) -> dict[str, Item]:
    """The items of all responses that the references among ``given`` lead to, by id.

    An item's id holds that of the response in which it was first.
    """
    matches = [_ITEM_ID.fullmatch(item.id) for item in given if isinstance(item, wire.ItemReference)]
    response_ids = {f"resp_{match[1]}": None for match in matches if match is not None}
    if not response_ids:
        return {}
    found = await context.responses.store.get_all(tenant, response_ids)
    return {item["id"]: item for stored in found.values() for item in (*stored.input, *stored.response["output"])}


def _known(known: Mapping[str, Item], item_id: str, index: int) -> Item:
    if item_id in known:
        return known[item_id]
    raise HttpError(404, f"Item with id '{item_id}' not found.", code="item_not_found", param=f"input[{index}].id")


def _plain(item: Any, number: str) -> Item:
    """The form in which an item is stored; its own id, if it has none, is made of ``number``."""
    status: ItemStatus = item.status or "completed"
    if isinstance(item, wire.MessageItem):
        content = [item.content] if isinstance(item.content, str) else item.content
        parts: list[Any] = [_plain_part(part, item.role) for part in content]
        item_id = item.id or f"msg_{number}"
        return {"id": item_id, "type": "message", "role": item.role, "content": parts, "status": status}
    if isinstance(item, wire.FunctionCallItem):
        return {
            "id": item.id or f"fc_{number}",
            "type": "function_call",
            "call_id": item.call_id,
            "name": item.name,
            "arguments": item.arguments,
            "status": status,
        }
    if isinstance(item, wire.FunctionOutputItem):
        output = item.output
        return {
            "id": item.id or f"fco_{number}",
            "type": "function_call_output",
            "call_id": item.call_id,
            "output": output
            if isinstance(output, str)
            else [{"type": "input_text", "text": part.text} for part in output],
            "status": status,
        }
    return {
        "id": item.id or f"rs_{number}",
        "type": "reasoning",
        "summary": [{"type": "summary_text", "text": part.text} for part in item.summary],
        "content": [{"type": "reasoning_text", "text": part.text} for part in item.content],
        "status": status,
    }


def _plain_part(part: Any, role: str) -> dict[str, Any]:
    if isinstance(part, wire.Refusal):
        return {"type": "refusal", "refusal": part.refusal}
    text = part if isinstance(part, str) else part.text
    if role == "assistant":
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    return {"type": "input_text", "text": text}


def _check_refusals(item: Any, index: int) -> None:
    if isinstance(item, wire.MessageItem) and item.role != "assistant" and not isinstance(item.content, str):
        for number, part in enumerate(item.content):
            if isinstance(part, wire.Refusal):
                raise InvalidRequest(
                    "only the assistant's messages hold refusals", param=f"input[{index}].content[{number}].type"
                )


def _check_ids(items: Sequence[Item]) -> None:
    seen: set[str] = set()
    for item in items:
        if item["id"] in seen:
            raise InvalidRequest(
                f"Duplicate item found with id {item['id']}. Remove duplicate items from your input and try again.",
                param="input",
            )
        seen.add(item["id"])


def _check_calls(items: Sequence[Item]) -> None:
    """Every output answers an earlier call, and every call has its output: templates know nothing else."""
    called: dict[str, bool] = {}
    for item in items:
        if item["type"] == "function_call":
            called[item["call_id"]] = False
        elif item["type"] == "function_call_output":
            if item["call_id"] not in called:
                raise InvalidRequest(
                    f"No tool call found for function call output with call_id {item['call_id']}.", param="input"
                )
            called[item["call_id"]] = True
    for call_id, is_answered in called.items():
        if not is_answered:
            raise InvalidRequest(f"No tool output found for function call {call_id}.", param="input")


def as_chat(context: Context, body: ResponseRequest | CountRequest, items: Sequence[Item]) -> ChatRequest:
    """The same request to chat completions.

    Raises:
        InvalidRequest: chat does not take it; ``param`` is this API's field.
    """
    fields: dict[str, Any] = {"model": context.service.model_name}
    if isinstance(body, ResponseRequest):
        fields |= {name: getattr(body, name) for name in _SHARED if name in body.model_fields_set}
        fields["max_completion_tokens"] = body.max_output_tokens
        fields["chat_template_kwargs"] = body.chat_template_kwargs
        if body.wants_logprobs:
            fields |= {"logprobs": True, "top_logprobs": body.top_logprobs}
    knows_developer = "developer" in context.service.codec.chat_template(with_tools=bool(body.tools))
    fields["messages"] = _messages(items, body.instructions, "developer" if knows_developer else "system")
    fields["tools"] = [_tool(tool) for tool in body.tools if isinstance(tool, wire.FunctionTool)]
    fields["tool_choice"] = _tool_choice(body)
    fields["parallel_tool_calls"] = body.parallel_tool_calls
    fields["response_format"] = _response_format(body.text.format)
    fields["reasoning_effort"] = body.reasoning.effort
    if body.text.verbosity != "medium":
        _check_verbosity(context)
        fields["chat_template_kwargs"] = {**fields.get("chat_template_kwargs", {}), "verbosity": body.text.verbosity}
    with told_here():
        try:
            return ChatRequest.model_validate(fields)
        except ValidationError as error:
            raise from_validation(error, ChatRequest) from None


def _messages(items: Sequence[Any], instructions: str | None, developer: str) -> list[dict[str, Any]]:
    """Reasoning and calls that follow each other are one message of the assistant's, as they were one turn.

    ``developer``: the role that the chat template has for developers' messages.
    """
    messages: list[dict[str, Any]] = [] if instructions is None else [{"role": "system", "content": instructions}]
    turn: dict[str, Any] | None = None
    for item in items:
        if item["type"] == "function_call_output":
            output = item["output"]
            content = output if isinstance(output, str) else "".join(part["text"] for part in output)
            messages.append({"role": "tool", "tool_call_id": item["call_id"], "content": content})
            turn = None
        elif item["type"] == "message" and item["role"] != "assistant":
            text = "".join(part.get("text", "") for part in item["content"])
            messages.append({"role": developer if item["role"] == "developer" else item["role"], "content": text})
            turn = None
        else:
            if turn is None or (item["type"] == "message" and turn.get("content") is not None):
                turn = {"role": "assistant"}
                messages.append(turn)
            _add_to_turn(turn, item)
    return [{"content": "", **message} if not message.get("tool_calls") else message for message in messages]


def _add_to_turn(turn: dict[str, Any], item: Any) -> None:
    if item["type"] == "message":
        turn["content"] = "".join(part.get("text") or part.get("refusal", "") for part in item["content"])
    elif item["type"] == "reasoning":
        texts = [part["text"] for part in item["content"] or item["summary"]]
        turn["reasoning_content"] = turn.get("reasoning_content", "") + "".join(texts)
    else:
        function = {"name": item["name"], "arguments": item["arguments"]}
        turn.setdefault("tool_calls", []).append({"id": item["call_id"], "type": "function", "function": function})


def _tool(tool: wire.FunctionTool) -> dict[str, Any]:
    return {"type": "function", "function": tool.model_dump(exclude={"type"}, exclude_none=True)}


def _tool_choice(body: ConversationRequest) -> Any:
    choice = body.tool_choice
    if isinstance(choice, wire.NamedTool):
        return {"type": "function", "function": {"name": choice.name}}
    if isinstance(choice, wire.AllowedNames):
        tools = [{"type": "function", "function": {"name": tool.name}} for tool in choice.tools]
        return {"type": "allowed_tools", "allowed_tools": {"mode": choice.mode, "tools": tools}}
    return choice if body.tools or choice == "required" else None


def _response_format(wanted: wire.SchemaFormat | wire.PlainFormat) -> dict[str, Any]:
    if isinstance(wanted, wire.PlainFormat):
        return {"type": wanted.type}
    return {"type": "json_schema", "json_schema": wanted.model_dump(exclude={"type"}, exclude_none=True, by_alias=True)}


def _check_verbosity(context: Context) -> None:
    if "verbosity" not in context.service.codec.chat_template(with_tools=False):
        raise InvalidRequest(
            "'text.verbosity' is not supported by this model: its chat template knows nothing of it. Leave it out.",
            param="text.verbosity",
            code="not_supported",
        )


def turns(items: Sequence[Item]) -> list[int]:
    """Where the conversation can be cut: the indexes of the user's messages but the first item."""
    return [i for i, item in enumerate(items) if i and item["type"] == "message" and item["role"] == "user"]


def cut(items: Sequence[Item], start: int) -> list[Item]:
    """Without what stands before ``start``, but for what the operator of the conversation said there."""
    kept = [i for i in items[:start] if i["type"] == "message" and i["role"] in ("system", "developer")]
    return [*kept, *items[start:]]


@contextmanager
def told_here() -> Iterator[None]:
    """Errors of chat's fields are told by the names that they have in this API."""
    try:
        yield
    except RequestError as error:
        for pattern, name in _RENAMED:
            if error.param is not None:
                error.param = pattern.sub(name, error.param)
        raise
