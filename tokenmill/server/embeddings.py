"""``POST /v1/embeddings``: each input is a request of its own to the engine, in the same batches as everybody's."""

from __future__ import annotations

import asyncio
import base64
import struct
from contextlib import closing
from functools import partial

from starlette.requests import Request
from starlette.responses import Response

from tokenmill.core.errors import ContextLengthExceeded, InvalidRequest
from tokenmill.core.pooling import NO_TOKENS
from tokenmill.engine.service import RequestHandle
from tokenmill.server.answers import gather, json_response
from tokenmill.server.context import Context
from tokenmill.server.generate import Generation, unless_gone
from tokenmill.server.protocol.embeddings import EmbeddingAnswer, EmbeddingBody, EmbeddingRequest


async def embeddings(context: Context, request: Request, body: EmbeddingRequest) -> Response:
    """A vector for one text or for several."""
    context.check_model(body.model)
    inputs = await _read_inputs(context, body)
    generation = Generation(context, request.state.ticket, inputs, NO_TOKENS, body, body.to_pooling())
    with closing(generation):
        await unless_gone(request.receive, gather(generation))
    vectors = [_values(handle) for handle in generation.handles]
    num_tokens = generation.usage["prompt_tokens"]

    def respond() -> Response:
        answer: EmbeddingAnswer = {
            "object": "list",
            "data": [_entry(body, index, values) for index, values in enumerate(vectors)],
            "model": context.service.model_name,
            "usage": {"prompt_tokens": num_tokens, "total_tokens": num_tokens},
        }
        return json_response(answer)

    return await context.off_loop(sum(map(len, vectors)), respond)


def _values(handle: RequestHandle) -> bytes:
    assert handle.embedding is not None, "a request for an embedding ended well without one"
    return handle.embedding


def _entry(body: EmbeddingRequest, index: int, values: bytes) -> EmbeddingBody:
    if body.encoding_format == "base64":
        return {"object": "embedding", "index": index, "embedding": base64.b64encode(values).decode()}
    return {"object": "embedding", "index": index, "embedding": list(struct.unpack(f"<{len(values) // 4}f", values))}


async def _read_inputs(context: Context, body: EmbeddingRequest) -> list[list[int]]:
    """Every input as tokens; whatever cannot be done is refused before any of them reaches the engine."""
    found: list[list[int]] = []
    num_tokens, limit = 0, context.settings.max_request_tokens
    for index, item in enumerate(body.input):
        param = f"input[{index}]" if len(body.input) > 1 else "input"
        if isinstance(item, str):
            item = await context.tokenise([item], param, partial(context.service.codec.encode, item))
            await asyncio.sleep(0)  # many short texts must not hold up the streams of others
        elif max(item) >= context.service.vocab_size:
            last = context.service.vocab_size - 1
            raise InvalidRequest(f"{param} holds token id {max(item)}; the vocabulary ends at {last}.", param=param)
        if len(item) > context.service.max_context:
            raise ContextLengthExceeded(
                f"This model's maximum context length is {context.service.max_context} tokens, but {param} has "
                f"{len(item)}; shorten it, or cut it into pieces.",
                param=param,
            )
        num_tokens += len(item)
        if num_tokens > limit:
            raise InvalidRequest(
                f"The first {index + 1} inputs have more than the {limit} tokens that one request may hold; "
                "send fewer at once.",
                param="input",
            )
        found.append(item)
    return found
