"""``/v1/responses``: what a client sends. What it gets stands in ``response_body.py``.

A conversation is a list of *items*: messages, calls of functions, their outputs, reasoning. Items that an answer
held may be sent back as they came, so every item takes the fields that an answer's item has. What is common
with chat is checked by ``ChatRequest``, which every request becomes (``server/responses/conversation.py``).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from tokenmill.core.errors import InvalidRequest
from tokenmill.core.params import MAX_LOGPROBS
from tokenmill.server.protocol.base import MAX_INT, GenerationRequest, Label, StreamOptions, Wire
from tokenmill.server.protocol.chat import MAX_PARTS, not_supported
from tokenmill.server.protocol.files import Paging
from tokenmill.server.protocol.response_body import ItemStatus
from tokenmill.server.protocol.tools import MAX_TOOLS, FunctionDefinition, FunctionName, JsonSchemaFormat, choice_kind

MAX_ITEMS = 4096
"""Of one request, and of one conversation with the earlier responses that it continues."""

NOT_BUILT = (
    "access_programs",
    "background_options",
    "context_management",
    "conversation",
    "image",
    "moderation",
    "prompt",
    "prompt_cache_options",
    "prompt_cache_retention",
)
"""Fields of OpenAI's that would change the answer and are not built; refused by name."""

LOGPROBS = "message.output_text.logprobs"
Include = Literal["message.output_text.logprobs", "reasoning.encrypted_content"]
"""Reasoning is given in clear, so that there is nothing to encrypt: its name is taken, without effect."""

ItemId = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh"]


class InputText(Wire):
    type: Literal["input_text", "output_text"]
    text: str
    annotations: Annotated[list[Any], Field(max_length=0)] = Field(default_factory=list)
    logprobs: Any = None
    """As an answer had them; not looked at."""


class Refusal(Wire):
    type: Literal["refusal"]
    refusal: str


def _part_kind(value: object) -> Literal["~refusal", "~text"]:
    return "~refusal" if isinstance(value, dict) and value.get("type") == "refusal" else "~text"


def _content_kind(value: object) -> Literal["~parts", "~string"]:
    return "~parts" if isinstance(value, list) else "~string"


Part = Annotated[Annotated[InputText, Tag("~text")] | Annotated[Refusal, Tag("~refusal")], Discriminator(_part_kind)]
MessageContent = Annotated[
    Annotated[str, Tag("~string")]
    | Annotated[list[Part], Field(fail_fast=True, min_length=1, max_length=MAX_PARTS), Tag("~parts")],
    Discriminator(_content_kind),
]
OutputContent = Annotated[
    Annotated[str, Tag("~string")]
    | Annotated[list[InputText], Field(fail_fast=True, max_length=MAX_PARTS), Tag("~parts")],
    Discriminator(_content_kind),
]


class MessageItem(Wire):
    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: MessageContent
    id: ItemId | None = None
    status: ItemStatus | None = None
    phase: Literal["commentary", "final_answer"] | None = None
    """Accepted and not kept."""


class FunctionCallItem(Wire):
    type: Literal["function_call"]
    call_id: Label
    name: FunctionName
    arguments: str
    id: ItemId | None = None
    status: ItemStatus | None = None


class FunctionOutputItem(Wire):
    type: Literal["function_call_output"]
    call_id: Label
    output: OutputContent
    id: ItemId | None = None
    status: ItemStatus | None = None


class ReasoningPart(Wire):
    type: Literal["summary_text", "reasoning_text"]
    text: str


class ReasoningItem(Wire):
    type: Literal["reasoning"]
    id: ItemId | None = None
    summary: Annotated[list[ReasoningPart], Field(fail_fast=True, max_length=MAX_PARTS)] = Field(default_factory=list)
    content: Annotated[list[ReasoningPart], Field(fail_fast=True, max_length=MAX_PARTS)] = Field(default_factory=list)
    encrypted_content: str | None = None
    """Another server's: nothing here can read it, so it is left out."""
    status: ItemStatus | None = None


class ItemReference(Wire):
    """An item of a stored response, by its id."""

    type: Literal["item_reference"] = "item_reference"
    id: ItemId


class UnknownItem(Wire):
    """What no other kind is: says which kinds there are."""

    type: Literal["message", "function_call", "function_call_output", "reasoning", "item_reference"]


_ITEM_KINDS = {
    "message": "~message",
    "function_call": "~call",
    "function_call_output": "~output",
    "reasoning": "~reasoning",
    "item_reference": "~reference",
}


def _item_kind(value: object) -> str:
    if isinstance(value, Wire):
        return _ITEM_KINDS[getattr(value, "type", "message")]
    if not isinstance(value, dict):
        return "~message"
    given = value.get("type")
    if given is None:
        return "~reference" if "id" in value and "role" not in value else "~message"
    return _ITEM_KINDS.get(given, "~unknown") if isinstance(given, str) else "~unknown"


InputItem = Annotated[
    Annotated[MessageItem, Tag("~message")]
    | Annotated[FunctionCallItem, Tag("~call")]
    | Annotated[FunctionOutputItem, Tag("~output")]
    | Annotated[ReasoningItem, Tag("~reasoning")]
    | Annotated[ItemReference, Tag("~reference")]
    | Annotated[UnknownItem, Tag("~unknown")],
    Discriminator(_item_kind),
]
Input = Annotated[
    Annotated[str, Tag("~string")]
    | Annotated[list[InputItem], Field(fail_fast=True, max_length=MAX_ITEMS), Tag("~parts")],
    Discriminator(_content_kind),
]


class FunctionTool(FunctionDefinition):
    type: Literal["function"]
    strict: bool = True


class HostedTool(Wire):
    """A tool that would run on the server, or of a kind that is not built: refused by name."""

    model_config = ConfigDict(extra="allow")

    type: Literal[
        "apply_patch",
        "code_interpreter",
        "computer",
        "computer_use_preview",
        "custom",
        "file_search",
        "image_generation",
        "local_shell",
        "mcp",
        "namespace",
        "programmatic_tool_calling",
        "shell",
        "tool_search",
        "web_search",
        "web_search_2025_08_26",
        "web_search_preview",
        "web_search_preview_2025_03_11",
    ]


def _tool_kind(value: object) -> Literal["~function", "~hosted"]:
    kind = value.get("type", "function") if isinstance(value, dict) else getattr(value, "type", "function")
    return "~function" if kind == "function" else "~hosted"


ResponseTool = Annotated[
    Annotated[FunctionTool, Tag("~function")] | Annotated[HostedTool, Tag("~hosted")], Discriminator(_tool_kind)
]


class NamedTool(Wire):
    type: Literal["function"]
    name: FunctionName


class AllowedNames(Wire):
    """Of the tools given, only these may be called this time."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedTool], Field(fail_fast=True, min_length=1, max_length=MAX_TOOLS)]


ResponseToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("~mode")]
    | Annotated[NamedTool, Tag("~named")]
    | Annotated[AllowedNames, Tag("~allowed")],
    Discriminator(choice_kind),
]


class PlainFormat(Wire):
    type: Literal["text", "json_object", "json_schema"]


class SchemaFormat(JsonSchemaFormat):
    type: Literal["json_schema"]


def _format_kind(value: object) -> Literal["~schema", "~plain"]:
    return "~schema" if isinstance(value, dict) and value.get("type") == "json_schema" else "~plain"


TextFormat = Annotated[
    Annotated[SchemaFormat, Tag("~schema")] | Annotated[PlainFormat, Tag("~plain")], Discriminator(_format_kind)
]


class TextConfig(Wire):
    format: TextFormat = PlainFormat(type="text")
    verbosity: Literal["low", "medium", "high"] = "medium"
    """Another than medium is for models whose template knows of it."""


class Reasoning(Wire):
    effort: Effort | None = None
    """For models whose template knows of it, or can leave reasoning out (``none``)."""
    summary: Literal["auto", "concise", "detailed"] | None = None
    """Accepted; no summaries are made, since the reasoning itself is in the answer."""
    generate_summary: Literal["auto", "concise", "detailed"] | None = None
    """Older name of ``summary``."""
    context: Literal["auto"] | None = None
    mode: Literal["standard"] | None = None


class ResponseStreamOptions(StreamOptions):
    include_usage: Literal[False] = False
    """The last event holds the usage in any case."""


class ConversationRequest(Wire):
    """What the prompt is made of: the same for an answer and for counting."""

    input: Input | None = None
    instructions: str | None = None
    previous_response_id: ItemId | None = None
    tools: Annotated[list[ResponseTool], Field(fail_fast=True, max_length=MAX_TOOLS)] = Field(default_factory=list)
    tool_choice: ResponseToolChoice = "auto"
    parallel_tool_calls: bool = True
    text: TextConfig = TextConfig()
    reasoning: Reasoning = Reasoning()
    truncation: Literal["auto", "disabled"] = "disabled"
    """auto: what does not fit the context is dropped from the conversation's beginning, by whole turns."""
    conversation: Any = None

    def check(self) -> None:
        """Raise ``InvalidRequest`` for what is well formed and cannot be done."""
        for name in NOT_BUILT:
            if name in self.model_fields_set:
                raise not_supported(name)
        if not self.input and self.previous_response_id is None:
            raise InvalidRequest(
                "Missing required parameter: 'input'.", param="input", code="missing_required_parameter"
            )
        for index, tool in enumerate(self.tools):
            if isinstance(tool, HostedTool):
                raise InvalidRequest(
                    f"Tools of type '{tool.type}' are not supported by this server: it has functions only, which the "
                    "client calls.",
                    param=f"tools[{index}].type",
                    code="not_supported",
                )


class CountRequest(ConversationRequest):
    """``POST /v1/responses/input_tokens``."""

    model: Annotated[str, Field(max_length=512)] | None = None

    @model_validator(mode="after")
    def _checks(self) -> CountRequest:
        self.check()
        return self


class ResponseRequest(GenerationRequest, ConversationRequest):
    n: Literal[1] = 1
    prompt_logprobs: None = None
    stream_options: ResponseStreamOptions | None = None
    max_output_tokens: Annotated[int, Field(ge=1, le=MAX_INT)] | None = None
    include: Annotated[list[Include], Field(fail_fast=True, max_length=16)] = Field(default_factory=list)
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] = 0
    """How many likely tokens beside each, where ``include`` asks for log-probabilities."""
    store: bool = True
    background: bool = False
    """Answer at once, generate after: ask for the response by its id."""
    max_tool_calls: Annotated[int, Field(ge=1, le=MAX_INT)] | None = None
    """Accepted; it is about tools that run on the server, of which there are none."""
    service_tier: Literal["auto", "default", "flex", "scale", "priority", "fast"] | None = None
    """Accepted; there is one tier."""
    safety_identifier: Annotated[Label, Field(max_length=128)] | None = None
    """Kept with the response, and nothing else done with it."""
    prompt_cache_key: Label | None = None
    """Kept with the response; the prefix cache finds equal prompts by itself."""
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Extension: further variables for the chat template, such as ``enable_thinking``."""
    access_programs: Any = None
    background_options: Any = None
    context_management: Any = None
    image: Any = None
    moderation: Any = None
    prompt: Any = None
    prompt_cache_options: Any = None
    prompt_cache_retention: Any = None

    @model_validator(mode="after")
    def _checks(self) -> ResponseRequest:
        self.check()
        if self.background and not self.store:
            raise InvalidRequest("background: true needs store: true, or nobody could ask for it", param="background")
        return self

    @property
    def wants_logprobs(self) -> bool:
        return LOGPROBS in self.include


class RetrieveQuery(BaseModel):
    """Of ``GET /v1/responses/{id}``."""

    stream: bool = False
    """Send the events, of a response in the background: those there were, and those to come."""
    starting_after: Annotated[int, Field(ge=0, le=MAX_INT)] | None = None
    """Leave out the events up to this sequence number."""


class ItemsQuery(Paging):
    """Of ``GET /v1/responses/{id}/input_items``."""

    order: Literal["asc", "desc"] = "desc"
