"""``POST /v1/chat/completions``."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from tokenmill.core.errors import InvalidRequest
from tokenmill.engine.service import Output
from tokenmill.server.answers import Gathered, gather, json_response
from tokenmill.server.context import Context, Ticket
from tokenmill.server.generate import Generation, unless_gone
from tokenmill.server.logprobs import chat_logprobs, prompt_logprobs
from tokenmill.server.protocol.chat import ChatAnswer, ChatChoice, ChatRequest, ChoiceLogprobs, ChunkChoice, Delta
from tokenmill.server.protocol.chat import Message as ChatMessage
from tokenmill.server.sse import EventStream
from tokenmill.server.stream import stream_frames


async def chat(context: Context, request: Request, body: ChatRequest) -> Response:
    """Answer a conversation."""
    context.check_model(body.model)
    token_ids = await encode_messages(
        context,
        body.messages,
        add_generation_prompt=body.opens_turn,
        continue_final_message=body.continue_final_message,
        extra=body.chat_template_kwargs,
    )
    ticket: Ticket = request.state.ticket
    generation = Generation(context, ticket, [token_ids], body.to_params(), body)
    base = _base(context, ticket, body)
    if body.stream:
        frames = stream_frames(
            generation,
            _Chunks(context, body),
            {**base, "object": "chat.completion.chunk"},
            include_usage=body.include_usage,
        )
        return EventStream(context, ticket.request_id, frames, generation.close)
    with closing(generation):
        gathered = await unless_gone(request.receive, gather(generation))
    return json_response(_answer(context, body, generation, base, gathered[0]))


async def encode_messages(context: Context, messages: list[ChatMessage], **wishes: Any) -> list[int]:
    """The conversation's tokens by the model's template.

    Raises:
        InvalidRequest: there is no template, or it does not take these messages.
        ContextLengthExceeded: too long by far (see ``Context.tokenise``).
    """
    codec = context.service.codec
    if not codec.has_chat_template:
        raise InvalidRequest("This model has no chat template; use /v1/completions.", param="messages")
    plain = [message.for_template() for message in messages]
    texts = [message["content"] for message in plain]
    return await context.tokenise(texts, "messages", lambda: codec.encode_chat(plain, **wishes))


def _base(context: Context, ticket: Ticket, body: ChatRequest) -> dict[str, Any]:
    base: dict[str, Any] = {
        "id": ticket.answer_id("chatcmpl-"),
        "created": int(time.time()),
        "model": context.service.model_name,
        "system_fingerprint": context.fingerprint,
    }
    return base if body.service_tier is None else {**base, "service_tier": "default"}


def _answer(
    context: Context, body: ChatRequest, generation: Generation, base: dict[str, Any], gathered: list[Gathered]
) -> ChatAnswer:
    answer: ChatAnswer = {
        **base,  # type: ignore[typeddict-item]
        "object": "chat.completion",
        "choices": [_choice(context, body, choice) for choice in gathered],
        "usage": generation.usage,
    }
    if (timing := generation.timing) is not None:
        answer["timing"] = timing
    entries = generation.handles[0].prompt_logprobs
    if body.prompt_logprobs is not None:
        answer["prompt_logprobs"] = None if entries is None else prompt_logprobs(context.service.codec, entries)
    return answer


def _choice(context: Context, body: ChatRequest, choice: Gathered) -> ChatChoice:
    return {
        "index": choice.index,
        "message": {"role": "assistant", "content": choice.text, "refusal": None},
        "logprobs": chat_logprobs(context.service.codec, choice.logprobs, body.top_logprobs or 0)
        if body.logprobs
        else None,
        "finish_reason": choice.finish_reason,
        "stop_reason": choice.stop_reason,
    }


class _Chunks:
    """Chunks of a streamed chat: the role first, then what is new, then the finish reason alone."""

    def __init__(self, context: Context, body: ChatRequest) -> None:
        self._codec = context.service.codec
        self._logprobs = body.logprobs
        self._num_top = body.top_logprobs or 0
        self._open: set[int] = set()

    def increments(self, prompt: int, output: Output) -> Iterator[ChunkChoice]:
        if output.index not in self._open:
            self._open.add(output.index)
            yield _chunk(output.index, {"role": "assistant", "content": "", "refusal": None}, None)
        entries = output.logprobs if self._logprobs else None
        if output.text or entries:
            logprobs = chat_logprobs(self._codec, entries, self._num_top) if entries else None
            yield _chunk(output.index, {"content": output.text}, logprobs)

    def end(self, prompt: int, output: Output) -> ChunkChoice:
        return {
            "index": output.index,
            "delta": {},
            "logprobs": None,
            "finish_reason": output.finish_reason,
            "stop_reason": output.stop_reason,
        }


def _chunk(index: int, delta: Delta, logprobs: ChoiceLogprobs | None) -> ChunkChoice:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": None}
