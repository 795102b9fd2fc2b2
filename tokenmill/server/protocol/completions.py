"""``POST /v1/completions``: the request, and the answer that streamed and whole answers share."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NotRequired

from pydantic import Field, PlainValidator, WithJsonSchema, model_validator
from typing_extensions import TypedDict

from tokenmill.core.errors import InvalidRequest
from tokenmill.core.params import MAX_BEST_OF, SamplingParams
from tokenmill.core.request import FinishReason
from tokenmill.server.protocol.base import MAX_INT, Answer, GenerationRequest, PromptLogprobs
from tokenmill.server.protocol.chat import not_supported
from tokenmill.server.protocol.tools import ResponseFormat, check_format

MAX_PROMPTS = 1024
DEFAULT_MAX_TOKENS = 16
"""OpenAI's."""

_TEXT_OR_IDS = [{"type": "string"}, {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}]
_PROMPT_SCHEMA: dict[str, Any] = {
    "anyOf": [
        *_TEXT_OR_IDS,
        {"type": "array", "items": _TEXT_OR_IDS[0], "minItems": 1, "maxItems": MAX_PROMPTS},
        {"type": "array", "items": _TEXT_OR_IDS[1], "minItems": 1, "maxItems": MAX_PROMPTS},
    ]
}


def read_prompts(value: Any) -> list[str | list[int]]:
    """The prompts of a completion."""
    return texts_or_ids(value, MAX_PROMPTS)


def texts_or_ids(value: Any, limit: int) -> list[str | list[int]]:
    """Bring the four forms of a prompt to one: a list of at most ``limit`` texts or arrays of token ids, in order."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list):
        raise ValueError("it must be a string, an array of strings, of token ids, or of arrays of token ids")
    if not value:
        raise ValueError("it must not be empty")
    if type(value[0]) is int:
        return [_token_ids(value)]
    if len(value) > limit:
        raise ValueError(f"it holds {len(value)} entries; at most {limit}")
    if all(isinstance(item, str) for item in value):
        return list(value)
    return [_token_ids(item) for item in value]


def _token_ids(item: Any) -> list[int]:
    if not isinstance(item, list) or any(type(token_id) is not int for token_id in item):
        raise ValueError("token ids must be integers, and texts and token ids must not be mixed")
    if not item:
        raise ValueError("an array of token ids must not be empty")
    if min(item) < 0 or max(item) > MAX_INT:
        raise ValueError("a token id is out of range")
    return item


Prompts = Annotated[list[str | list[int]], PlainValidator(read_prompts), WithJsonSchema(_PROMPT_SCHEMA)]


class CompletionRequest(GenerationRequest):
    prompt: Prompts
    max_tokens: Annotated[int, Field(ge=0, le=MAX_INT)] = DEFAULT_MAX_TOKENS
    """0 computes the prompt alone: with ``echo`` and ``logprobs`` it scores it."""
    best_of: Annotated[int, Field(ge=1, le=MAX_BEST_OF)] | None = None
    echo: bool = False
    """Begin the answer with the prompt."""
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    response_format: ResponseFormat | None = None
    """Extension: as in chat."""
    suffix: str | None = None
    """Refused: the models served here do not fill in the middle."""

    @model_validator(mode="after")
    def _cross_checks(self) -> CompletionRequest:
        if self.stream and (self.best_of or 1) > 1:
            raise InvalidRequest("best_of above 1 cannot be streamed", param="best_of")
        if self.response_format is not None:
            check_format(self.response_format)
        if self.suffix is not None:
            raise not_supported("suffix")
        return self

    def to_params(self) -> SamplingParams:
        echoed = self.logprobs if self.echo else None
        wanted = [k for k in (self.prompt_logprobs, echoed) if k is not None]
        return self.sampling_params(
            max_tokens=self.max_tokens,
            logprobs=self.logprobs,
            best_of=self.best_of,
            prompt_logprobs=max(wanted, default=None),
        )


class CompletionLogprobs(TypedDict):
    """Parallel lists, one entry per token; with ``echo`` the prompt's tokens come first."""

    tokens: list[str]
    token_logprobs: list[float | None]
    """null for the very first token of a prompt: nothing comes before it."""
    top_logprobs: list[dict[str, float] | None]
    """Token → log-probability: the likeliest ones, and the token itself where it is not among them."""
    text_offset: list[int]
    """Where each token begins in the text, in characters."""


class CompletionChoice(TypedDict):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason | None
    """null in the chunks before a choice's last."""
    stop_reason: NotRequired[int | str | None]
    prompt_logprobs: NotRequired[PromptLogprobs | None]


class CompletionAnswer(Answer):
    object: Literal["text_completion"]
    choices: list[CompletionChoice]
    obfuscation: NotRequired[str]
    """In the chunks of a stream that is padded."""
