"""One response under way: the generation is read, its text is told apart, written as items, and kept at the end."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any, cast

from tokenmill.core.step import TokenLogprobs
from tokenmill.engine.service import Output
from tokenmill.server import jsonio
from tokenmill.server.context import Context, Ticket, tenant_of
from tokenmill.server.errors import problem_of
from tokenmill.server.generate import Generation
from tokenmill.server.logprobs import chat_logprobs
from tokenmill.server.protocol.base import ErrorBody
from tokenmill.server.protocol.chat import TokenLogprob
from tokenmill.server.protocol.response_body import Item, ResponseBody, ResponseUsage, StreamEvent, TextDeltaEvent
from tokenmill.server.protocol.responses import FunctionTool, ResponseRequest, SchemaFormat
from tokenmill.server.responses.store import Stored
from tokenmill.server.responses.writer import ResponseWriter
from tokenmill.server.sse import obfuscation
from tokenmill.server.turn import Piece, TurnParser


class Answer:
    """Drives one generation to a complete response. Whoever makes one sees to it that the generation is closed."""

    def __init__(
        self,
        context: Context,
        ticket: Ticket,
        body: ResponseRequest,
        items: list[Item],
        generation: Generation,
        parser: TurnParser,
    ) -> None:
        """``items``: the request's own input."""
        self.generation = generation
        self.tenant = tenant_of(ticket)
        self.request_id = ticket.request_id
        self.writer = ResponseWriter(new_response(context, ticket, body))
        self._context = context
        self._body = body
        self._items = items
        self._parser = parser
        self._pending: list[TokenLogprobs] = []

    @property
    def response(self) -> ResponseBody:
        """As far as it has come."""
        return self.writer.response

    async def events(self) -> AsyncGenerator[StreamEvent, None]:
        """What happens, as it happens; raises what ends the generation. At the last event it is stored."""
        for event in self.writer.opening():
            yield event
        ending = "stop"
        async with aclosing(self.generation.outputs()) as outputs:
            async for _, output in outputs:
                ending = output.finish_reason or ending
                pieces = self._pieces(output)
                for event in self.writer.push(pieces, self._logprobs(pieces, output)):
                    yield event
        now = int(time.time())
        for event in self.writer.finish("incomplete" if ending == "length" else "completed", self._usage, now):
            yield event
        if (timing := self.generation.timing) is not None:
            self.response["timing"] = timing
        await self.keep()
        yield self.writer.last()

    async def whole(self) -> ResponseBody:
        """The response at its end."""
        async with aclosing(self.events()) as events:
            async for _ in events:
                pass
        return self.response

    async def frames(self) -> AsyncGenerator[bytes, None]:
        """The events as they go over the wire; a failure is told by one of its own, and raised."""
        try:
            async with aclosing(self.events()) as events:
                async for event in events:
                    yield event_frame(self._padded(event))
        except Exception as error:
            self.fail(error)
            yield event_frame(self.writer.last())
            raise

    def fail(self, error: Exception | None) -> None:
        """It ended badly; None: it was cancelled."""
        told = None if error is None else problem_of(error, self.request_id).body["error"]["message"]
        self.writer.fail(None if told is None else {"code": "server_error", "message": told}, self._usage)

    def error_frame(self, body: ErrorBody) -> bytes:
        """The very last event, if it failed."""
        return error_frame(body, self.writer.num_events)

    async def keep(self) -> None:
        """Store it as it is now, if it is to be stored."""
        if self._body.store:
            await self._context.responses.store.put(self.tenant, Stored(self.response, self._items))

    @property
    def _usage(self) -> ResponseUsage:
        usage = self.generation.usage
        return {
            "input_tokens": usage["prompt_tokens"],
            "input_tokens_details": {
                "cached_tokens": usage["prompt_tokens_details"]["cached_tokens"],
                "cache_write_tokens": 0,
            },
            "output_tokens": usage["completion_tokens"],
            "output_tokens_details": {"reasoning_tokens": self._parser.num_reasoning_tokens},
            "total_tokens": usage["total_tokens"],
        }

    def _padded(self, event: StreamEvent) -> StreamEvent:
        """Of one size whatever its text is, if that was wished."""
        if self._body.include_obfuscation and event["type"].endswith(".delta"):
            delta = cast(TextDeltaEvent, event)
            delta["obfuscation"] = obfuscation([delta["delta"], delta.get("logprobs")])
        return event

    def _pieces(self, output: Output) -> list[Piece]:
        """What an increment adds. A call that the limit cut off does not end: its item will be incomplete."""
        pieces = self._parser.push(output.text, len(output.token_ids))
        if output.finish_reason is None:
            return pieces
        was_cut = output.finish_reason == "length"
        return pieces + [piece for piece in self._parser.finish() if not (was_cut and piece.kind == "tool_end")]

    def _logprobs(self, pieces: Sequence[Piece], output: Output) -> list[TokenLogprob]:
        """Those of the content among ``pieces``: a token belongs to the next text that becomes certain.

        A token of no text of its own (half a character, a marker) waits for that; the turn's end belongs to nothing.
        """
        if not self._body.wants_logprobs:
            return []
        self._pending += output.logprobs or ()
        if not pieces:
            return []
        entries, self._pending = self._pending, []
        if all(piece.kind != "content" for piece in pieces):
            return []
        return chat_logprobs(self._context.service.codec, entries, self._body.top_logprobs)["content"]


def event_frame(event: StreamEvent) -> bytes:
    """One event, with its name beside it for readers that go by names."""
    return b"event: " + event["type"].encode() + b"\ndata: " + jsonio.dumps(event) + b"\n\n"


def error_frame(body: ErrorBody, number: int) -> bytes:
    """The very last event of a stream that failed, with its sequence number; the official clients raise at it."""
    error = body["error"]
    return event_frame(
        {
            "type": "error",
            "sequence_number": number,
            "code": error["code"],
            "message": error["message"],
            "param": error["param"],
            "error": error,
        }
    )


def new_response(context: Context, ticket: Ticket, body: ResponseRequest) -> ResponseBody:
    """A response of which nothing is written yet: what was asked for, as it was understood."""
    return {
        "id": ticket.answer_id("resp_"),
        "object": "response",
        "created_at": int(time.time()),
        "completed_at": None,
        "status": "queued" if body.background else "in_progress",
        "background": body.background,
        "error": None,
        "incomplete_details": None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "max_tool_calls": body.max_tool_calls,
        "metadata": body.metadata or {},
        "model": context.service.model_name,
        "output": [],
        "parallel_tool_calls": body.parallel_tool_calls,
        "previous_response_id": body.previous_response_id,
        "prompt_cache_key": body.prompt_cache_key,
        "reasoning": {"effort": body.reasoning.effort, "summary": None},
        "safety_identifier": body.safety_identifier,
        "service_tier": "default",
        "store": body.store,
        "temperature": body.temperature,
        "text": {"format": _format(body), "verbosity": body.text.verbosity},
        "tool_choice": body.tool_choice if isinstance(body.tool_choice, str) else body.tool_choice.model_dump(),
        "tools": [
            {
                "type": "function",
                "name": tool.name,
                "description": tool.description,
                "parameters": tool.parameters,
                "strict": tool.strict,
            }
            for tool in body.tools
            if isinstance(tool, FunctionTool)
        ],
        "top_logprobs": body.top_logprobs,
        "top_p": body.top_p,
        "truncation": body.truncation,
        "usage": None,
        "user": body.user,
    }


def _format(body: ResponseRequest) -> dict[str, Any]:
    wanted = body.text.format
    if not isinstance(wanted, SchemaFormat):
        return {"type": wanted.type}
    return {
        "type": "json_schema",
        "name": wanted.name,
        "description": wanted.description,
        "schema": wanted.schema_,
        "strict": wanted.strict,
    }
