"""``/v1/responses``: what a client gets: the response, its items, and the events of a streamed one."""

from __future__ import annotations

from typing import Any, Literal, NotRequired

from typing_extensions import TypedDict

from tokenmill.server.protocol.base import ErrorDetail, TimingBody
from tokenmill.server.protocol.chat import TokenLogprob

Status = Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]
ItemStatus = Literal["in_progress", "completed", "incomplete"]


class TextPart(TypedDict):
    type: Literal["output_text"]
    text: str
    annotations: list[Any]
    """Always empty: there are no files or pages to point to."""
    logprobs: list[TokenLogprob]


class InputTextPart(TypedDict):
    type: Literal["input_text"]
    text: str


class RefusalPart(TypedDict):
    """Only where a client sent one back."""

    type: Literal["refusal"]
    refusal: str


class ReasoningPart(TypedDict):
    type: Literal["reasoning_text"]
    text: str


class SummaryPart(TypedDict):
    type: Literal["summary_text"]
    text: str


class MessageItem(TypedDict):
    id: str
    type: Literal["message"]
    role: Literal["user", "assistant", "system", "developer"]
    content: list[TextPart | InputTextPart | RefusalPart]
    """``output_text`` and refusals from the assistant, ``input_text`` from everybody else."""
    status: ItemStatus


class FunctionCallItem(TypedDict):
    id: str
    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str
    """JSON, as the model wrote it."""
    status: ItemStatus


class FunctionOutputItem(TypedDict):
    id: str
    type: Literal["function_call_output"]
    call_id: str
    output: str | list[InputTextPart]
    status: ItemStatus


class ReasoningItem(TypedDict):
    id: str
    type: Literal["reasoning"]
    summary: list[SummaryPart]
    content: list[ReasoningPart]
    status: ItemStatus


OutputItem = MessageItem | FunctionCallItem | ReasoningItem
Item = MessageItem | FunctionCallItem | FunctionOutputItem | ReasoningItem


class InputTokensDetails(TypedDict):
    cached_tokens: int
    """Prompt tokens that were not computed, since the prefix cache held them."""
    cache_write_tokens: int
    """Always 0: writing to the cache costs nothing, and is not counted."""


class OutputTokensDetails(TypedDict):
    reasoning_tokens: int


class ResponseUsage(TypedDict):
    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class ResponseError(TypedDict):
    code: Literal["server_error", "rate_limit_exceeded", "invalid_prompt"]
    message: str


class IncompleteDetails(TypedDict):
    reason: Literal["max_output_tokens"]


class FunctionToolBody(TypedDict):
    type: Literal["function"]
    name: str
    description: str | None
    parameters: dict[str, Any]
    strict: bool


class ReasoningBody(TypedDict):
    effort: str | None
    summary: str | None


class ResponseBody(TypedDict):
    id: str
    object: Literal["response"]
    created_at: int
    completed_at: int | None
    status: Status
    background: bool
    error: ResponseError | None
    incomplete_details: IncompleteDetails | None
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: int | None
    metadata: dict[str, str]
    model: str
    output: list[OutputItem]
    parallel_tool_calls: bool
    previous_response_id: str | None
    prompt_cache_key: str | None
    reasoning: ReasoningBody
    safety_identifier: str | None
    service_tier: Literal["default"]
    store: bool
    temperature: float
    text: dict[str, Any]
    tool_choice: str | dict[str, Any]
    tools: list[FunctionToolBody]
    top_logprobs: int
    top_p: float
    truncation: Literal["auto", "disabled"]
    usage: ResponseUsage | None
    """null until it has ended."""
    user: str | None
    timing: NotRequired[TimingBody]


class DeletedResponse(TypedDict):
    id: str
    object: Literal["response"]
    deleted: Literal[True]


class ItemList(TypedDict):
    object: Literal["list"]
    data: list[Item]
    first_id: str | None
    last_id: str | None
    has_more: bool


class InputTokens(TypedDict):
    object: Literal["response.input_tokens"]
    input_tokens: int


class Event(TypedDict):
    sequence_number: int
    """0, 1, 2, … within one response."""


class ResponseEvent(Event):
    """The response as it is at this moment."""

    type: Literal[
        "response.created",
        "response.queued",
        "response.in_progress",
        "response.completed",
        "response.incomplete",
        "response.failed",
    ]
    response: ResponseBody


class ItemEvent(Event):
    type: Literal["response.output_item.added", "response.output_item.done"]
    output_index: int
    item: OutputItem


class ItemPlace(Event):
    item_id: str
    output_index: int


class PartPlace(ItemPlace):
    content_index: int


class PartEvent(PartPlace):
    type: Literal["response.content_part.added", "response.content_part.done"]
    part: TextPart | ReasoningPart


class TextDeltaEvent(PartPlace):
    type: Literal["response.output_text.delta"]
    delta: str
    logprobs: list[TokenLogprob]
    obfuscation: NotRequired[str]
    """With ``stream_options.include_obfuscation``: fills the event up to a size that does not depend on the text."""


class TextDoneEvent(PartPlace):
    type: Literal["response.output_text.done"]
    text: str
    logprobs: list[TokenLogprob]


class ReasoningDeltaEvent(PartPlace):
    type: Literal["response.reasoning_text.delta"]
    delta: str
    obfuscation: NotRequired[str]


class ReasoningDoneEvent(PartPlace):
    type: Literal["response.reasoning_text.done"]
    text: str


class ArgumentsDeltaEvent(ItemPlace):
    type: Literal["response.function_call_arguments.delta"]
    delta: str
    obfuscation: NotRequired[str]


class ArgumentsDoneEvent(ItemPlace):
    type: Literal["response.function_call_arguments.done"]
    name: str
    arguments: str


class ErrorEvent(Event):
    """The last of a stream that failed; the connection is cut after it."""

    type: Literal["error"]
    code: str | None
    message: str
    param: str | None
    error: ErrorDetail


StreamEvent = (
    ResponseEvent
    | ItemEvent
    | PartEvent
    | TextDeltaEvent
    | TextDoneEvent
    | ReasoningDeltaEvent
    | ReasoningDoneEvent
    | ArgumentsDeltaEvent
    | ArgumentsDoneEvent
    | ErrorEvent
)
