"""``ResponseWriter``: the parts of a turn become output items, and each change of them an event.

The events of a response are one sentence of a small grammar, which clients rely on::

    created queued? in_progress item* (completed | incomplete)
    item       = output_item.added (part | arguments) output_item.done
    part       = content_part.added text.delta* text.done content_part.done
    arguments  = function_call_arguments.delta* function_call_arguments.done

or it breaks off anywhere with ``failed``. Items come one after the other, the deltas of each join to its ``done``,
and ``sequence_number`` counts all events from 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal, cast

from tokenmill.server.protocol.chat import TokenLogprob
from tokenmill.server.protocol.response_body import (
    FunctionCallItem,
    OutputItem,
    ReasoningPart,
    ResponseBody,
    ResponseError,
    ResponseUsage,
    StreamEvent,
    TextPart,
)
from tokenmill.server.turn import Piece

Ending = Literal["completed", "incomplete"]
TextKind = Literal["content", "reasoning"]


class ResponseWriter:
    """Owns ``response`` and keeps it true to the events that it gives out."""

    def __init__(self, response: ResponseBody) -> None:
        self.response = response
        self.num_events = 0
        self._open: _Text | _Call | None = None

    def event(self, kind: str, **fields: Any) -> StreamEvent:
        """The next event."""
        number, self.num_events = self.num_events, self.num_events + 1
        return cast(StreamEvent, {"type": kind, "sequence_number": number, **fields})

    def opening(self) -> Iterator[StreamEvent]:
        """What is said before anything is generated."""
        yield self._state("created")
        yield self._state(self.response["status"])

    def push(self, pieces: Sequence[Piece], logprobs: Sequence[TokenLogprob] = ()) -> Iterator[StreamEvent]:
        """What is new in the turn; ``logprobs`` are those of the content among it."""
        yield from self._begin()
        for piece in pieces:
            if piece.kind == "content" or piece.kind == "reasoning":
                yield from self._text(piece.kind, piece.text, logprobs)
                logprobs = () if piece.kind == "content" else logprobs
            elif piece.kind == "tool_begin":
                yield from self._turn_to(_Call(self._id("fc"), piece.id, piece.name))
            elif isinstance(self._open, _Call) and piece.kind == "tool_arguments":
                yield self._open.delta(self, piece.text)
            elif isinstance(self._open, _Call):
                yield from self._close("completed")

    def finish(self, ending: Ending, usage: ResponseUsage, now: int) -> Iterator[StreamEvent]:
        """Whatever is open ends. ``response`` is complete after this; ``last`` tells so."""
        yield from self._begin()
        if self._open is None and not self.response["output"]:
            yield from self._text("content", "", ())  # an answer of no text is an empty message
        yield from self._close(ending)
        self.response["status"] = ending
        self.response["usage"] = usage
        if ending == "incomplete":
            self.response["incomplete_details"] = {"reason": "max_output_tokens"}
        else:
            self.response["completed_at"] = now

    def fail(self, error: ResponseError | None, usage: ResponseUsage | None) -> None:
        """It failed or, without an error, was cancelled, at the very end even. What was written stays."""
        if self._open is not None:
            self.response["output"].append(self._open.item("incomplete"))
            self._open = None
        self.response["status"] = "cancelled" if error is None else "failed"
        self.response["incomplete_details"] = self.response["completed_at"] = None
        self.response["error"] = error
        self.response["usage"] = usage

    def last(self) -> StreamEvent:
        """The event that ends the response."""
        return self._state(self.response["status"])

    @property
    def index(self) -> int:
        """Of the item that is being written, or of the next."""
        return len(self.response["output"])

    def _state(self, kind: str) -> StreamEvent:
        return self.event(f"response.{kind}", response={**self.response, "output": list(self.response["output"])})

    def _begin(self) -> Iterator[StreamEvent]:
        if self.response["status"] == "queued":
            self.response["status"] = "in_progress"
            yield self._state("in_progress")

    def _id(self, prefix: str) -> str:
        """Of the item after the open one."""
        index = self.index + (self._open is not None)
        return f"{prefix}_{self.response['id'].removeprefix('resp_')}_{index}"

    def _text(self, kind: TextKind, text: str, logprobs: Sequence[TokenLogprob]) -> Iterator[StreamEvent]:
        if not isinstance(self._open, _Text) or self._open.kind != kind:
            yield from self._turn_to(_Text(self._id("msg" if kind == "content" else "rs"), kind))
        assert isinstance(self._open, _Text)
        if text or logprobs:
            yield self._open.delta(self, text, logprobs)

    def _turn_to(self, item: _Text | _Call) -> Iterator[StreamEvent]:
        yield from self._close("completed")
        self._open = item
        yield self.event("response.output_item.added", output_index=self.index, item=item.item("in_progress"))
        yield from item.opening(self)

    def _close(self, status: Ending) -> Iterator[StreamEvent]:
        if self._open is not None:
            yield from self._open.closing(self)
            item = self._open.item(status)
            yield self.event("response.output_item.done", output_index=self.index, item=item)
            self.response["output"].append(item)
            self._open = None


class _Text:
    """A message or a reasoning: one part that holds text."""

    def __init__(self, item_id: str, kind: TextKind) -> None:
        self.kind = kind
        self._id = item_id
        self._name = "output_text" if kind == "content" else "reasoning_text"
        self._texts: list[str] = []
        self._logprobs: list[TokenLogprob] = []
        self._has_part = False

    def item(self, status: Literal["in_progress", "completed", "incomplete"]) -> OutputItem:
        content: list[Any] = [self._part()] if self._has_part else []
        if self.kind == "content":
            return {"id": self._id, "type": "message", "role": "assistant", "content": content, "status": status}
        return {"id": self._id, "type": "reasoning", "summary": [], "content": content, "status": status}

    def opening(self, writer: ResponseWriter) -> Iterator[StreamEvent]:
        yield self._event(writer, "content_part.added", part=self._part())
        self._has_part = True

    def delta(self, writer: ResponseWriter, text: str, logprobs: Sequence[TokenLogprob]) -> StreamEvent:
        self._texts.append(text)
        if self.kind == "reasoning":
            return self._event(writer, "reasoning_text.delta", delta=text)
        self._logprobs += logprobs
        return self._event(writer, "output_text.delta", delta=text, logprobs=list(logprobs))

    def closing(self, writer: ResponseWriter) -> Iterator[StreamEvent]:
        more = {"logprobs": list(self._logprobs)} if self.kind == "content" else {}
        yield self._event(writer, f"{self._name}.done", text="".join(self._texts), **more)
        yield self._event(writer, "content_part.done", part=self._part())

    def _event(self, writer: ResponseWriter, kind: str, **fields: Any) -> StreamEvent:
        place = {"item_id": self._id, "output_index": writer.index, "content_index": 0}
        return writer.event(f"response.{kind}", **place, **fields)

    def _part(self) -> TextPart | ReasoningPart:
        text = "".join(self._texts)
        if self.kind == "reasoning":
            return {"type": "reasoning_text", "text": text}
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": list(self._logprobs)}


class _Call:
    """A call of a function."""

    def __init__(self, item_id: str, call_id: str, name: str) -> None:
        self._id = item_id
        self._call_id = call_id
        self._name = name
        self._arguments: list[str] = []

    def item(self, status: Literal["in_progress", "completed", "incomplete"]) -> FunctionCallItem:
        return {
            "id": self._id,
            "type": "function_call",
            "call_id": self._call_id,
            "name": self._name,
            "arguments": "".join(self._arguments),
            "status": status,
        }

    def opening(self, writer: ResponseWriter) -> Iterator[StreamEvent]:
        """A call has no parts."""
        return iter(())

    def delta(self, writer: ResponseWriter, text: str) -> StreamEvent:
        self._arguments.append(text)
        return self._event(writer, "delta", delta=text)

    def closing(self, writer: ResponseWriter) -> Iterator[StreamEvent]:
        yield self._event(writer, "done", name=self._name, arguments="".join(self._arguments))

    def _event(self, writer: ResponseWriter, kind: str, **fields: Any) -> StreamEvent:
        place = {"item_id": self._id, "output_index": writer.index}
        return writer.event(f"response.function_call_arguments.{kind}", **place, **fields)
