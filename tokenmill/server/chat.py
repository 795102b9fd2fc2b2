"""``POST /v1/chat/completions``."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from tokenmill.core.request import FinishReason
from tokenmill.engine.service import Output
from tokenmill.server.answers import Gathered, gather, json_response, pieces_of
from tokenmill.server.chat_prompt import prompt_of
from tokenmill.server.context import Context, Ticket, tenant_of
from tokenmill.server.generate import Generation, unless_gone
from tokenmill.server.logprobs import chat_logprobs, prompt_logprobs
from tokenmill.server.protocol.chat import (
    AssistantMessage,
    ChatAnswer,
    ChatChoice,
    ChatFinishReason,
    ChatRequest,
    ChoiceLogprobs,
    ChunkChoice,
    Delta,
    MadeToolCall,
    ToolCallDelta,
)
from tokenmill.server.sse import EventStream
from tokenmill.server.stream import stream_frames
from tokenmill.server.turn import Piece, Turn, TurnParser


async def chat(context: Context, request: Request, body: ChatRequest) -> Response:
    """Answer a conversation."""
    context.check_model(body.model)
    prompt = await prompt_of(context, body, tenant_of(request.state.ticket))
    ticket: Ticket = request.state.ticket
    parsers = [prompt.turn.parser(prompt.token_ids) for _ in range(body.n)]
    generation = Generation(context, ticket, [prompt.token_ids], prompt.params, body)
    base = _base(context, ticket, body)
    if body.stream:
        frames = stream_frames(
            generation,
            _Chunks(context, body, generation, prompt.turn, parsers),
            {**base, "object": "chat.completion.chunk"},
            include_usage=body.include_usage,
            continuous_usage=body.continuous_usage,
            include_obfuscation=body.include_obfuscation,
        )
        return EventStream(context, ticket.request_id, frames, generation.close)
    with closing(generation):
        gathered = await unless_gone(request.receive, gather(generation, parsers))
    _count_reasoning(generation, prompt.turn, parsers)
    return json_response(_answer(context, body, generation, base, gathered[0]))


def _base(context: Context, ticket: Ticket, body: ChatRequest) -> dict[str, Any]:
    base: dict[str, Any] = {
        "id": ticket.answer_id("chatcmpl-"),
        "created": int(time.time()),
        "model": context.service.model_name,
        "system_fingerprint": context.fingerprint,
    }
    return base if body.service_tier is None else {**base, "service_tier": "default"}


def _count_reasoning(generation: Generation, turn: Turn, parsers: Sequence[TurnParser]) -> None:
    if turn.reasons:
        generation.num_reasoning_tokens = sum(parser.num_reasoning_tokens for parser in parsers)


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
    message = message_of(choice.pieces, include_reasoning=body.include_reasoning)
    return {
        "index": choice.index,
        "message": message,
        "logprobs": chat_logprobs(context.service.codec, choice.logprobs, body.top_logprobs or 0)
        if body.logprobs
        else None,
        "finish_reason": _ending(choice.finish_reason, "tool_calls" in message),
        "stop_reason": choice.stop_reason,
    }


def message_of(pieces: Sequence[Piece], *, include_reasoning: bool) -> AssistantMessage:
    """The message that a whole turn is."""
    texts: dict[str, list[str]] = {"content": [], "reasoning": []}
    calls: list[tuple[Piece, list[str]]] = []
    for piece in pieces:
        if piece.kind == "tool_begin":
            calls.append((piece, []))
        elif piece.kind == "tool_arguments":
            calls[piece.index][1].append(piece.text)
        elif piece.kind in texts:
            texts[piece.kind].append(piece.text)
    content, reasoning = "".join(texts["content"]), "".join(texts["reasoning"])
    message: AssistantMessage = {
        "role": "assistant",
        "content": content if content or not (calls or reasoning) else None,
        "refusal": None,
    }
    if reasoning and include_reasoning:
        message["reasoning_content"] = reasoning
    if calls:
        message["tool_calls"] = [_call(begin, "".join(arguments)) for begin, arguments in calls]
    return message


def _call(begin: Piece, arguments: str) -> MadeToolCall:
    return {"id": begin.id, "type": "function", "function": {"name": begin.name, "arguments": arguments}}


def _ending(reason: FinishReason, has_calls: bool) -> ChatFinishReason:
    """Why the choice ended; an answer that was cut off says so even where it holds calls."""
    return "tool_calls" if has_calls and reason == "stop" else reason


class _Chunks:
    """Chunks of a streamed chat: the role first, then what is new, then the finish reason alone."""

    def __init__(
        self, context: Context, body: ChatRequest, generation: Generation, turn: Turn, parsers: Sequence[TurnParser]
    ) -> None:
        self._codec = context.service.codec
        self._logprobs = body.logprobs
        self._num_top = body.top_logprobs or 0
        self._include_reasoning = body.include_reasoning
        self._generation = generation
        self._turn = turn
        self._parsers = parsers
        self._open: set[int] = set()

    def increments(self, prompt: int, output: Output) -> Iterator[ChunkChoice]:
        if output.index not in self._open:
            self._open.add(output.index)
            content = None if self._turn.calls or self._turn.reasons else ""
            yield _chunk(output.index, {"role": "assistant", "content": content, "refusal": None}, None)
        deltas = [delta for piece in pieces_of(self._parsers[output.index], output) if (delta := self._delta(piece))]
        entries = output.logprobs if self._logprobs else None
        logprobs = chat_logprobs(self._codec, entries, self._num_top) if entries else None
        if logprobs is not None and not deltas:
            deltas.append({})
        for delta in deltas:
            yield _chunk(output.index, delta, logprobs)
            logprobs = None

    def end(self, prompt: int, output: Output) -> ChunkChoice:
        _count_reasoning(self._generation, self._turn, self._parsers)
        assert output.finish_reason is not None
        return {
            "index": output.index,
            "delta": {},
            "logprobs": None,
            "finish_reason": _ending(output.finish_reason, self._parsers[output.index].num_calls > 0),
            "stop_reason": output.stop_reason,
        }

    def _delta(self, piece: Piece) -> Delta | None:
        """What a piece adds to the message; None for nothing."""
        match piece.kind:
            case "content":
                return {"content": piece.text}
            case "reasoning":
                return {"reasoning_content": piece.text} if self._include_reasoning else None
            case "tool_begin":
                named: ToolCallDelta = {
                    "index": piece.index,
                    "id": piece.id,
                    "type": "function",
                    "function": {"name": piece.name, "arguments": ""},
                }
                return {"tool_calls": [named]}
            case "tool_arguments":
                return {"tool_calls": [{"index": piece.index, "function": {"arguments": piece.text}}]}
            case "tool_end":
                return None


def _chunk(index: int, delta: Delta, logprobs: ChoiceLogprobs | None) -> ChunkChoice:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": None}
