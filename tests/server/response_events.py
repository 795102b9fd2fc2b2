"""The grammar of a response's events, as a state machine that knows nothing of how they are made."""

from __future__ import annotations

import json
from typing import Any

from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from tokenmill.server.protocol.response_body import ResponseBody, StreamEvent

OPENAI: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
OURS: TypeAdapter[Any] = TypeAdapter(StreamEvent)
OUR_BODY: TypeAdapter[Any] = TypeAdapter(ResponseBody)
LAST = ("response.completed", "response.incomplete", "response.failed")


def read_events(text: str) -> list[dict[str, Any]]:
    """The events of a body; each must bear its own name, and be valid by OpenAI's types and by ours."""
    blocks = [block for block in text.split("\n\n") if block and not block.startswith(":")]
    made = []
    for block in blocks:
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        OPENAI.validate_python(event, strict=True)
        OURS.validate_python(event, strict=True)
        made.append(event)
    return made


def check_events(events: list[dict[str, Any]], *, first: int = 0) -> dict[str, Any]:
    """Check a whole stream against the grammar; the response at its end.

    ``first``: the sequence number at which it begins, for one that is read from its middle on (checked up to that).
    """
    assert [event["sequence_number"] for event in events] == list(range(first, first + len(events)))
    if first:
        return dict(events[-1]["response"])
    machine = _Machine()
    for event in events:
        machine.take(event)
    assert machine.state == "over", machine.state
    response = events[-1]["response"] if events[-1]["type"] != "error" else events[-2]["response"]
    check_response(response)
    return dict(response)


def check_response(body: dict[str, Any]) -> None:
    """By OpenAI's type, without coercion, and with everything there that it may have and this server knows."""
    response = Response.model_validate(body, strict=True)
    OUR_BODY.validate_python(body, strict=True)
    assert {*body, "timing"} == set(ResponseBody.__annotations__)
    assert body["object"] == "response"
    assert len(body["id"]) == len("resp_") + 32
    assert (response.status == "incomplete") == (body["incomplete_details"] is not None)
    assert (response.status == "completed") == (body["completed_at"] is not None)
    assert (response.status == "failed") == (body["error"] is not None)
    if response.status in ("completed", "incomplete"):
        usage = body["usage"]
        assert usage["input_tokens"] + usage["output_tokens"] == usage["total_tokens"]
        assert 0 <= usage["output_tokens_details"]["reasoning_tokens"] <= usage["output_tokens"]
        assert 0 <= usage["input_tokens_details"]["cached_tokens"] < usage["input_tokens"]


def unchunked(raw: bytes) -> str:
    """The body of an answer in chunks, cut off or not."""
    rest, parts = raw.partition(b"\r\n\r\n")[2], []
    while b"\r\n" in rest:
        size, _, rest = rest.partition(b"\r\n")
        parts.append(rest[: int(size, 16)])
        rest = rest[int(size, 16) + 2 :]
    return b"".join(parts).decode()


class _Machine:
    """created → (queued) → in progress → items, one after the other → over."""

    def __init__(self) -> None:
        self.state = "nothing"
        self.id = ""
        self.done: list[Any] = []
        self.item: dict[str, Any] = {}
        self.texts: list[str] = []
        self.logprobs: list[Any] = []

    def take(self, event: dict[str, Any]) -> None:
        kind = event["type"]
        if "response" in event:
            assert event["response"]["id"] == (self.id or event["response"]["id"])
            self.id = event["response"]["id"]
        if kind == "error":
            assert self.state == "failed"
            self.state = "over"
        elif kind in LAST:
            self._end(event)
        else:
            getattr(self, "_" + kind.removeprefix("response.").replace(".", "_"))(event)
        if "output_index" in event:
            assert event["output_index"] == len(self.done) - (kind == "response.output_item.done")
        if "item_id" in event:
            assert event["item_id"] == self.item["id"]

    def _to(self, new: str, *old: str) -> None:
        assert self.state in old, f"{new} after {self.state}"
        self.state = new

    def _end(self, event: dict[str, Any]) -> None:
        status = event["type"].removeprefix("response.")
        assert event["response"]["status"] == status
        if status == "failed":
            self.state = "failed"
            return
        self._to("over", "in progress")
        assert event["response"]["output"] == self.done
        assert self.done

    def _created(self, event: dict[str, Any]) -> None:
        self._to("created", "nothing")
        assert event["response"]["output"] == []
        assert event["response"]["usage"] is None

    def _queued(self, event: dict[str, Any]) -> None:
        self._to("queued", "created")
        assert event["response"]["status"] == "queued"

    def _in_progress(self, event: dict[str, Any]) -> None:
        self._to("in progress", "created", "queued")
        assert event["response"]["status"] == "in_progress"

    def _output_item_added(self, event: dict[str, Any]) -> None:
        self._to("item", "in progress")
        self.item, self.texts, self.logprobs = event["item"], [], []
        assert self.item["status"] == "in_progress"
        assert not self.item.get("content")
        if self.item["type"] == "function_call":
            assert self.item["arguments"] == ""
            self.state = "arguments"

    def _output_item_done(self, event: dict[str, Any]) -> None:
        self._to("in progress", "item done")
        item = event["item"]
        assert item["id"] == self.item["id"]
        assert item["status"] in ("completed", "incomplete")
        text = item["arguments"] if item["type"] == "function_call" else item["content"][0]["text"]
        assert text == "".join(self.texts)
        if item["type"] == "message":
            assert item["content"][0]["logprobs"] == self.logprobs
        self.done.append(item)

    def _content_part_added(self, event: dict[str, Any]) -> None:
        self._to("part", "item")
        assert event["content_index"] == 0
        assert event["part"]["text"] == ""

    def _content_part_done(self, event: dict[str, Any]) -> None:
        self._to("item done", "text done")
        assert event["part"]["text"] == "".join(self.texts)

    def _output_text_delta(self, event: dict[str, Any]) -> None:
        self._delta(event, "message")
        self.logprobs += event["logprobs"]

    def _output_text_done(self, event: dict[str, Any]) -> None:
        self._to("text done", "part")
        assert event["text"] == "".join(self.texts)
        assert event["logprobs"] == self.logprobs

    def _reasoning_text_delta(self, event: dict[str, Any]) -> None:
        self._delta(event, "reasoning")

    def _reasoning_text_done(self, event: dict[str, Any]) -> None:
        self._to("text done", "part")
        assert event["text"] == "".join(self.texts)

    def _delta(self, event: dict[str, Any], kind: str) -> None:
        self._to("part", "part")
        assert self.item["type"] == kind
        assert event["delta"]
        self.texts.append(event["delta"])

    def _function_call_arguments_delta(self, event: dict[str, Any]) -> None:
        self._to("arguments", "arguments")
        self.texts.append(event["delta"])

    def _function_call_arguments_done(self, event: dict[str, Any]) -> None:
        self._to("item done", "arguments")
        assert event["arguments"] == "".join(self.texts)
        assert event["name"] == self.item["name"]
