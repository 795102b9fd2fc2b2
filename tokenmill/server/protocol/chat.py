"""``POST /v1/chat/completions``: the request, the answer, and the chunks of a streamed answer."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, NotRequired

from pydantic import Discriminator, Field, Tag, model_validator
from typing_extensions import TypedDict

from tokenmill.core.errors import InvalidRequest
from tokenmill.core.params import MAX_LOGPROBS, SamplingParams
from tokenmill.core.request import FinishReason
from tokenmill.server.protocol.base import MAX_INT, Answer, GenerationRequest, Label, PromptLogprobs, Wire
from tokenmill.server.protocol.tools import ResponseFormat, Tool, ToolChoice, check_format, check_tools, tool_wishes
from tokenmill.server.wishes import ToolWishes

MAX_MESSAGES = 4096
MAX_PARTS = 1024
MAX_TEMPLATE_KWARGS_BYTES = 65536
RESERVED_TEMPLATE_KWARGS = frozenset(
    {
        "add_generation_prompt",
        "bos_token",
        "chat_template",
        "continue_final_message",
        "documents",
        "eos_token",
        "max_length",
        "messages",
        "padding",
        "return_dict",
        "return_tensors",
        "tokenize",
        "tools",
        "truncation",
    }
)
"""Names that the server itself gives the template; a client must not override them."""

NOT_BUILT = (
    "audio",
    "function_call",
    "functions",
    "moderation",
    "prediction",
    "prompt_cache_options",
    "prompt_cache_retention",
    "verbosity",
    "web_search_options",
)
"""Fields of OpenAI's that would change the answer and are not built; refused by name."""

LEGACY = frozenset({"functions", "function_call"})
"""What tools were called once."""


class ContentPart(Wire):
    type: Literal["text"]
    text: str


def _content_kind(value: object) -> Literal["~parts", "~text"]:
    return "~parts" if isinstance(value, list) else "~text"


Content = Annotated[
    Annotated[str, Tag("~text")]
    | Annotated[list[ContentPart], Field(fail_fast=True, min_length=1, max_length=MAX_PARTS), Tag("~parts")],
    Discriminator(_content_kind),
]


class CalledFunction(Wire):
    name: str
    arguments: str


class ToolCall(Wire):
    id: Label
    type: Literal["function"]
    function: CalledFunction


class Message(Wire):
    role: Literal["developer", "system", "user", "assistant", "tool"]
    content: Content | None = None
    name: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    tool_calls: Annotated[list[ToolCall], Field(fail_fast=True, max_length=128)] = Field(default_factory=list)
    tool_call_id: Label | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    """Extension: what the model thought before an earlier answer; templates that know it show it."""
    reasoning: str | None = None
    """Another name of ``reasoning_content``."""

    def complaint(self) -> tuple[str, str] | None:
        """(field, what is wrong) where the role and the other fields do not go together."""
        if self.role == "tool" and self.tool_call_id is None:
            return "tool_call_id", "is required in a message of role 'tool'"
        if self.role != "tool" and self.tool_call_id is not None:
            return "tool_call_id", "is only for messages of role 'tool'"
        if self.role != "assistant":
            for name in ("tool_calls", "reasoning_content", "reasoning"):
                if getattr(self, name):
                    return name, "is only for messages of role 'assistant'"
        if self.content is None and not (self.role == "assistant" and (self.tool_calls or self.refusal)):
            return "content", f"is required in a message of role '{self.role}'"
        return None

    def for_template(self) -> dict[str, Any]:
        """What the chat template sees: text parts joined, fields that were not given left out."""
        given = self.model_dump(exclude_unset=True)
        parts = self.content if isinstance(self.content, list) else None
        given["content"] = "".join(part.text for part in parts) if parts else self.content or ""
        return given


class ChatRequest(GenerationRequest):
    messages: Annotated[list[Message], Field(fail_fast=True, min_length=1, max_length=MAX_MESSAGES)]
    max_tokens: Annotated[int, Field(ge=1, le=MAX_INT)] | None = None
    """Older name of ``max_completion_tokens``; give one of the two."""
    max_completion_tokens: Annotated[int, Field(ge=1, le=MAX_INT)] | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    tools: Annotated[list[Tool], Field(fail_fast=True, max_length=128)] = Field(default_factory=list)
    tool_choice: ToolChoice | None = None
    """Without one, the model decides."""
    parallel_tool_calls: bool = True
    response_format: ResponseFormat | None = None
    modalities: Annotated[list[Literal["text", "audio"]], Field(fail_fast=True, min_length=1, max_length=2)] | None = (
        None
    )
    """Only ``["text"]`` is built."""
    store: bool = False
    """Answers are not kept: true is refused."""
    service_tier: Literal["auto", "default", "flex", "scale", "priority", "fast"] | None = None
    """Accepted; there is one tier."""
    safety_identifier: Annotated[Label, Field(max_length=64)] | None = None
    """Accepted and not kept."""
    prompt_cache_key: Label | None = None
    """Accepted; the prefix cache finds equal prompts by itself."""
    audio: Any = None
    function_call: Any = None
    functions: Any = None
    moderation: Any = None
    prediction: Any = None
    prompt_cache_options: Any = None
    prompt_cache_retention: Any = None
    verbosity: Any = None
    web_search_options: Any = None

    add_generation_prompt: bool = True
    """Extension: end the prompt with the opening of an assistant's turn."""
    continue_final_message: bool = False
    """Extension: go on writing the last message instead of beginning a new one."""
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    """For models whose template knows of it, or can leave reasoning out (``none``)."""
    include_reasoning: bool = True
    """Extension: put the model's reasoning into the answer, as ``reasoning_content``."""
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Extension: further variables for the chat template, such as ``enable_thinking``."""

    @model_validator(mode="after")
    def _cross_checks(self) -> ChatRequest:
        for index, message in enumerate(self.messages):
            if (wrong := message.complaint()) is not None:
                field, what = wrong
                raise InvalidRequest(f"messages[{index}].{field} {what}", param=f"messages[{index}].{field}")
        _check_calls(self.messages)
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise InvalidRequest("give max_completion_tokens or max_tokens, not both", param="max_tokens")
        if self.top_logprobs is not None and not self.logprobs:
            raise InvalidRequest("top_logprobs needs logprobs: true", param="top_logprobs")
        self._check_template_fields()
        check_tools(self.tools, self.tool_choice)
        if self.response_format is not None:
            check_format(self.response_format)
        if self.ignore_eos and self.wishes.constrained:
            raise InvalidRequest(
                "ignore_eos goes on after the answer's end, where these wishes for tools allow nothing",
                param="ignore_eos",
            )
        self._refuse_what_is_not_built()
        return self

    def _check_template_fields(self) -> None:
        given = "add_generation_prompt" in self.model_fields_set and self.add_generation_prompt
        if self.continue_final_message and given:
            raise InvalidRequest(
                "continue_final_message and add_generation_prompt exclude each other", param="continue_final_message"
            )
        for name in self.chat_template_kwargs:
            if not name.isidentifier() or name in RESERVED_TEMPLATE_KWARGS:
                raise InvalidRequest(f"chat_template_kwargs must not hold {name[:64]!a}", param="chat_template_kwargs")
        if len(json.dumps(self.chat_template_kwargs)) > MAX_TEMPLATE_KWARGS_BYTES:
            raise InvalidRequest("chat_template_kwargs is too large", param="chat_template_kwargs")

    def _refuse_what_is_not_built(self) -> None:
        refused = {name: True for name in NOT_BUILT if name in self.model_fields_set}
        refused["modalities"] = self.modalities is not None and "audio" in self.modalities
        refused["store"] = self.store
        for name, is_refused in refused.items():
            if is_refused:
                raise not_supported(name, "; use 'tools' and 'tool_choice'" if name in LEGACY else "")

    @property
    def wishes(self) -> ToolWishes:
        """What is wanted of the tools."""
        return tool_wishes(self.tools, self.tool_choice, parallel=self.parallel_tool_calls)

    @property
    def opens_turn(self) -> bool:
        """Whether the prompt ends with the opening of an assistant's turn."""
        return self.add_generation_prompt and not self.continue_final_message

    def to_params(self) -> SamplingParams:
        return self.sampling_params(
            max_tokens=self.max_completion_tokens if self.max_tokens is None else self.max_tokens,
            logprobs=(self.top_logprobs or 0) if self.logprobs else None,
            prompt_logprobs=self.prompt_logprobs,
        )


def _check_calls(messages: list[Message]) -> None:
    """Every answer of a tool belongs to a call of the assistant's before it, and no call is left without."""
    waiting: dict[str, str] = {}
    for index, message in enumerate(messages):
        path = f"messages[{index}]"
        if message.role == "tool":
            if waiting.pop(message.tool_call_id or "", None) is None:
                raise InvalidRequest(
                    f"{path}.tool_call_id names no call of the assistant's last message that waits for its answer",
                    param=f"{path}.tool_call_id",
                )
            continue
        _check_answered(waiting)
        for number, call in enumerate(message.tool_calls):
            place = f"{path}.tool_calls[{number}].id"
            if call.id in waiting:
                raise InvalidRequest(f"{place} stands twice in one message", param=place)
            waiting[call.id] = place
    _check_answered(waiting)


def _check_answered(waiting: dict[str, str]) -> None:
    for call_id, place in waiting.items():
        raise InvalidRequest(
            f"the call '{call_id}' needs a message of role 'tool' with this tool_call_id right after it", param=place
        )


def not_supported(name: str, remedy: str = "") -> InvalidRequest:
    """The refusal of a field that is well formed and not built."""
    return InvalidRequest(f"'{name}' is not supported by this server{remedy}.", param=name, code="not_supported")


class TopLogprob(TypedDict):
    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TypedDict):
    token: str
    logprob: float
    bytes: list[int] | None
    top_logprobs: list[TopLogprob]


class ChoiceLogprobs(TypedDict):
    content: list[TokenLogprob]
    refusal: None


ChatFinishReason = FinishReason | Literal["tool_calls"]


class FunctionCall(TypedDict):
    name: str
    arguments: str
    """JSON, exactly as the model wrote it."""


class MadeToolCall(TypedDict):
    id: str
    type: Literal["function"]
    function: FunctionCall


class AssistantMessage(TypedDict):
    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: NotRequired[str]
    """Extension: what the model thought before it answered."""
    tool_calls: NotRequired[list[MadeToolCall]]


class ChatChoice(TypedDict):
    index: int
    message: AssistantMessage
    logprobs: ChoiceLogprobs | None
    finish_reason: ChatFinishReason
    stop_reason: int | str | None
    """Extension: the stop token or string that ended it; null for the model's own end or the length."""


class ChatAnswer(Answer):
    object: Literal["chat.completion"]
    choices: list[ChatChoice]
    service_tier: NotRequired[str]
    prompt_logprobs: NotRequired[PromptLogprobs | None]


class FunctionDelta(TypedDict):
    name: NotRequired[str]
    arguments: str


class ToolCallDelta(TypedDict):
    """The first of a call has its id, type and name; the arguments of all, joined, are the call's."""

    index: int
    id: NotRequired[str]
    type: NotRequired[Literal["function"]]
    function: FunctionDelta


class Delta(TypedDict, total=False):
    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: str
    tool_calls: list[ToolCallDelta]


class ChunkChoice(TypedDict):
    index: int
    delta: Delta
    logprobs: ChoiceLogprobs | None
    finish_reason: ChatFinishReason | None
    stop_reason: NotRequired[int | str | None]


class ChatChunk(Answer):
    object: Literal["chat.completion.chunk"]
    choices: list[ChunkChoice]
    obfuscation: NotRequired[str]
    service_tier: NotRequired[str]
