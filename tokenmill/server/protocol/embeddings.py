"""``POST /v1/embeddings``: OpenAI's request and answer; ``pooling`` and ``normalize`` are extensions."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, PlainValidator, WithJsonSchema
from typing_extensions import TypedDict

from tokenmill.core.pooling import Pooling, PoolingKind
from tokenmill.server.protocol.base import MAX_INT, EngineRequest, Label
from tokenmill.server.protocol.completions import texts_or_ids

MAX_INPUTS = 2048
"""OpenAI's."""

_IDS = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
_INPUT_SCHEMA: dict[str, Any] = {
    "anyOf": [
        {"type": "string", "minLength": 1},
        _IDS,
        {"type": "array", "items": {"type": "string", "minLength": 1}, "minItems": 1, "maxItems": MAX_INPUTS},
        {"type": "array", "items": _IDS, "minItems": 1, "maxItems": MAX_INPUTS},
    ]
}


def read_inputs(value: Any) -> list[str | list[int]]:
    """The inputs in order, each a text that is not empty or an array of token ids."""
    inputs = texts_or_ids(value, MAX_INPUTS)
    if "" in inputs:
        where = f"entry {inputs.index('')}" if isinstance(value, list) else "it"
        raise ValueError(f"{where} must not be empty")
    return inputs


class EmbeddingRequest(EngineRequest):
    model: Annotated[str, Field(max_length=512)]
    input: Annotated[list[str | list[int]], PlainValidator(read_inputs), WithJsonSchema(_INPUT_SCHEMA)]
    encoding_format: Literal["float", "base64"] = "float"
    """base64: the numbers as little-endian float32, which is what ``float`` writes out."""
    dimensions: Annotated[int, Field(ge=1, le=MAX_INT)] | None = None
    """Keep so many numbers, the first, and scale them to length 1 anew."""
    user: Label | None = None
    """Accepted and not kept."""
    pooling: PoolingKind | None = None
    """Which hidden states are taken; as the checkpoint says if left out."""
    normalize: bool = True
    """Scale to length 1."""

    def to_pooling(self) -> Pooling:
        return Pooling(self.pooling, self.dimensions, self.normalize)


class EmbeddingBody(TypedDict):
    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingUsage(TypedDict):
    prompt_tokens: int
    total_tokens: int


class EmbeddingAnswer(TypedDict):
    object: Literal["list"]
    data: list[EmbeddingBody]
    model: str
    usage: EmbeddingUsage
