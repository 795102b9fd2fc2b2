"""The small endpoints: models, tokenising, health, the index."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator
from typing_extensions import TypedDict

from tokenmill.core.errors import InvalidRequest
from tokenmill.server.protocol.base import TokenId, Wire
from tokenmill.server.protocol.chat import MAX_MESSAGES, Message

MAX_DETOKENIZE = 2**20


class TokenizeRequest(Wire):
    """A text, or a conversation that the chat template makes a text of."""

    model: Annotated[str, Field(max_length=512)] | None = None
    prompt: str | None = None
    messages: Annotated[list[Message], Field(fail_fast=True, min_length=1, max_length=MAX_MESSAGES)] | None = None
    add_special_tokens: bool = True
    """For ``prompt``: put the tokenizer's own first and last tokens around it."""
    add_generation_prompt: bool = True
    """For ``messages``: end with the opening of an assistant's turn."""
    return_token_strs: bool = False

    @model_validator(mode="after")
    def _one_of_two(self) -> TokenizeRequest:
        if (self.prompt is None) == (self.messages is None):
            code = "missing_required_parameter" if self.prompt is None else "invalid_value"
            raise InvalidRequest("give either prompt or messages", param="prompt", code=code)
        for index, message in enumerate(self.messages or ()):
            if (wrong := message.complaint()) is not None:
                raise InvalidRequest(f"messages[{index}].{wrong[0]} {wrong[1]}", param=f"messages[{index}].{wrong[0]}")
        return self


class DetokenizeRequest(Wire):
    model: Annotated[str, Field(max_length=512)] | None = None
    tokens: Annotated[list[TokenId], Field(fail_fast=True, max_length=MAX_DETOKENIZE)]


class TokenizeAnswer(TypedDict):
    count: int
    max_model_len: int
    """Longest prompt + answer in tokens."""
    tokens: list[int]
    token_strs: list[str] | None


class DetokenizeAnswer(TypedDict):
    prompt: str


class TokenizerInfo(TypedDict):
    """What a client needs to prepare prompts as the server would."""

    tokenizer_class: str
    model_max_length: int
    vocab_size: int
    bos_token: str | None
    eos_token: str | None
    pad_token: str | None
    unk_token: str | None
    chat_template: str | None


class Model(TypedDict):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int


class ModelList(TypedDict):
    object: Literal["list"]
    data: list[Model]


class Health(TypedDict):
    status: Literal["ok", "unavailable", "draining"]
    """``ok`` with 200; the others with 503."""
    state: Literal["starting", "ready", "slow", "draining", "restarting", "stuck", "dead"]
    """What the engine is, judged by its progress."""
    since: float
    """Unix time since when it is that."""
    why: str | None
    """What keeps it from ``ready``."""


class Index(TypedDict):
    name: str
    version: str
    model: str
    endpoints: list[str]
