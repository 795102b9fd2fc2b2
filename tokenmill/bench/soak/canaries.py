"""Canaries: requests whose answers are known, asked again and again; whatever else goes on, not a byte may differ.

The answers are taken before the load begins, twice. What may differ by rights is left out: ids, moments, timings, and
how much of the prompt the cache held.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokenmill.bench.soak.session import Session
from tokenmill.bench.soak.wire import Answer
from tokenmill.core.errors import SetupError

LONG = "Once upon a time there was a fox who " + "asked every bird by the river, and " * 12
SCHEMA = {
    "type": "object",
    "properties": {"name": {"enum": ["Anna", "Tom"]}, "age": {"type": "integer", "minimum": 1, "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
LEFT_OUT = {"id", "created", "created_at", "completed_at", "timing", "request_id", "item_id", "response_id", "usage"}
LEFT_OUT |= {"obfuscation", "call_id", "previous_response_id"}


@dataclass(frozen=True, slots=True)
class Canary:
    """One request, the same for ever."""

    name: str
    path: str
    body: Mapping[str, Any]


def canaries(model: str) -> list[Canary]:
    """All of them: greedy and seeded, whole and streamed, on every interface that generates."""
    user = [{"role": "user", "content": "Tell me a story about a fox."}]
    said = {"model": model, "messages": user, "max_tokens": 40}
    form = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA, "strict": True}}
    tool = {"type": "function", "function": {"name": "who", "parameters": SCHEMA}}
    chat, completions = "/v1/chat/completions", "/v1/completions"
    drawn = {"temperature": 1, "seed": 7, "top_p": 0.95, "logprobs": 3, "n": 2}
    return [
        Canary("greedy chat", chat, said | {"temperature": 0}),
        Canary("seeded chat, streamed", chat, said | {"seed": 11, "stream": True}),
        Canary("greedy completion, long prompt", completions, {"model": model, "prompt": LONG, "temperature": 0}),
        Canary("seeded completion", completions, {"model": model, "prompt": "The wind", "max_tokens": 30} | drawn),
        Canary("seeded schema", chat, said | {"seed": 3, "max_tokens": 60, "response_format": form}),
        Canary("seeded call", chat, said | {"seed": 5, "max_tokens": 60, "tools": [tool], "tool_choice": "required"}),
        Canary(
            "seeded response, streamed",
            "/v1/responses",
            {"model": model, "input": "A bird", "seed": 9, "max_output_tokens": 30, "stream": True, "store": False},
        ),
        Canary("embedding", "/v1/embeddings", {"model": model, "input": ["A fox", LONG], "encoding_format": "base64"}),
    ]


class Flock:
    """The canaries with their answers."""

    def __init__(self, known: Sequence[tuple[Canary, str]]) -> None:
        self._known = list(known)
        self._next = 0
        self.exact = 0
        self.skipped = 0
        """Refused, as anybody may be."""

    @classmethod
    async def take(cls, session: Session) -> Flock:
        """Ask each twice, alone.

        Raises:
            SetupError: one is not answered, or not the same twice.
        """
        known = []
        for canary in canaries(session.model):
            answers = [await session.ask("canary", "POST", canary.path, canary.body) for _ in range(2)]
            texts = [essence(answer) if answer is not None else None for answer in answers]
            if texts[0] is None or texts[0] != texts[1]:
                raise SetupError(f"the canary {canary.name!r} has no answer that stays the same: {texts}")
            known.append((canary, texts[0]))
        return cls(known)

    async def ask_next(self, session: Session) -> None:
        """The next one, in turn."""
        canary, known = self._known[self._next % len(self._known)]
        self._next += 1
        answer = await session.ask("canary", "POST", canary.path, canary.body)
        if answer is None:
            self.skipped += 1
        elif (found := essence(answer)) == known:
            self.exact += 1
        else:
            session.record.breach("canaries", f"{canary.name}: {_difference(known, found)}")


def essence(answer: Answer) -> str:
    """What must stay, as text."""
    if not answer.streamed:
        return json.dumps(_left(answer.json()), sort_keys=True)
    return json.dumps(_joined(answer.events), sort_keys=True)


def _joined(events: Sequence[Any]) -> dict[str, Any]:
    """A stream without its cuts: how tokens are spread over events depends on the company."""
    text: list[str] = []
    ends: list[Any] = []
    for event in events:
        if event == "[DONE]":
            ends.append(event)
        elif "choices" in event:
            for choice in event["choices"]:
                text.append(choice["delta"].get("content") or "")
                ends += [choice["finish_reason"]] if choice["finish_reason"] else []
        elif event["type"] == "response.output_text.delta":
            text.append(event["delta"])
        elif event["type"] in ("response.completed", "response.incomplete"):
            ends.append(_left(event["response"]["output"]))
    return {"text": "".join(text), "ends": ends}


def _left(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _left(each) for name, each in value.items() if name not in LEFT_OUT}
    if isinstance(value, list):
        return [_left(each) for each in value]
    return value


def _difference(known: str, found: str) -> str:
    at = next((i for i, (a, b) in enumerate(zip(known, found, strict=False)) if a != b), min(len(known), len(found)))
    near = re.sub(r"\s+", " ", known[max(0, at - 40) : at + 60]), re.sub(r"\s+", " ", found[max(0, at - 40) : at + 60])
    return f"differs at character {at}: …{near[0]}… became …{near[1]}…"
