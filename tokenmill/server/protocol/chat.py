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
from tokenmill.server.protocol.tools import ResponseFormat, Tool, ToolChoice, check_schema, check_tools

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
    "reasoning_effort",
    "verbosity",
    "web_search_options",
)
"""Fields of OpenAI's that would change the answer and are not built; refused by name."""


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

    def complaint(self) -> tuple[str, str] | None:
        """(field, what is wrong) where the role and the other fields do not go together."""
        if self.role == "tool" and self.tool_call_id is None:
            return "tool_call_id", "is required in a message of role 'tool'"
        if self.role != "tool" and self.tool_call_id is not None:
            return "tool_call_id", "is only for messages of role 'tool'"
        if self.role != "assistant" and self.tool_calls:
            return "tool_calls", "is only for messages of role 'assistant'"
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
    """Checked, then refused unless empty: calling tools is not built."""
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool = True
    response_format: ResponseFormat | None = None
    """Only ``{"type": "text"}`` is built."""
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
    reasoning_effort: Any = None
    verbosity: Any = None
    web_search_options: Any = None

    add_generation_prompt: bool = True
    """Extension: end the prompt with the opening of an assistant's turn."""
    continue_final_message: bool = False
    """Extension: go on writing the last message instead of beginning a new one."""
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Extension: further variables for the chat template, such as ``enable_thinking``."""

    @model_validator(mode="after")
    def _cross_checks(self) -> ChatRequest:
        for index, message in enumerate(self.messages):
            if (wrong := message.complaint()) is not None:
                field, what = wrong
                raise InvalidRequest(f"messages[{index}].{field} {what}", param=f"messages[{index}].{field}")
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise InvalidRequest("give max_completion_tokens or max_tokens, not both", param="max_tokens")
        if self.top_logprobs is not None and not self.logprobs:
            raise InvalidRequest("top_logprobs needs logprobs: true", param="top_logprobs")
        self._check_template_fields()
        check_tools(self.tools, self.tool_choice)
        if self.response_format is not None and self.response_format.type == "json_schema":
            self._check_json_schema(self.response_format)
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

    @staticmethod
    def _check_json_schema(wanted: ResponseFormat) -> None:
        if wanted.json_schema is None:
            raise InvalidRequest(
                "Missing required parameter: 'response_format.json_schema'.",
                param="response_format.json_schema",
                code="missing_required_parameter",
            )
        check_schema(wanted.json_schema.schema_, "response_format.json_schema.schema")

    def _refuse_what_is_not_built(self) -> None:
        refused = {name: True for name in NOT_BUILT if name in self.model_fields_set}
        refused["tools"] = bool(self.tools)
        refused["response_format"] = self.response_format is not None and self.response_format.type != "text"
        refused["modalities"] = self.modalities is not None and "audio" in self.modalities
        refused["store"] = self.store
        for name, is_refused in refused.items():
            if is_refused:
                raise not_supported(name)

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


def not_supported(name: str) -> InvalidRequest:
    """The refusal of a field that is well formed and not built."""
    return InvalidRequest(f"'{name}' is not supported by this server.", param=name, code="not_supported")


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


class AssistantMessage(TypedDict):
    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(TypedDict):
    index: int
    message: AssistantMessage
    logprobs: ChoiceLogprobs | None
    finish_reason: FinishReason
    stop_reason: int | str | None
    """Extension: the stop token or string that ended it; null for the model's own end or the length."""


class ChatAnswer(Answer):
    object: Literal["chat.completion"]
    choices: list[ChatChoice]
    service_tier: NotRequired[str]
    prompt_logprobs: NotRequired[PromptLogprobs | None]


class Delta(TypedDict, total=False):
    role: Literal["assistant"]
    content: str
    refusal: None


class ChunkChoice(TypedDict):
    index: int
    delta: Delta
    logprobs: ChoiceLogprobs | None
    finish_reason: FinishReason | None
    stop_reason: NotRequired[int | str | None]


class ChatChunk(Answer):
    object: Literal["chat.completion.chunk"]
    choices: list[ChunkChoice]
    service_tier: NotRequired[str]
