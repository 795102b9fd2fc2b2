"""Calls of functions by real models that know nothing of them: the grammar alone makes them right (AC-05)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pydantic
import pytest

from tests.server.conftest import REAL_MODEL, real_server
from tests.server.dialect_examples import byte_codec
from tests.server.test_tools import SPECIAL, TEMPLATE
from tokenmill.testing.checkpoints import make_checkpoint

pytest.importorskip("llguidance")


@pytest.fixture(scope="module")
def real() -> Iterator[openai.OpenAI]:
    """The smaller built-in model, which knows nothing of tools."""
    with real_server(max_context=1024, num_blocks=256) as url:
        yield openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60)


CITY: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "enum": ["Paris", "Rome"]},
        "days": {"type": "integer", "minimum": 0, "maximum": 9},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}
REAL_TOOLS: Any = [
    {"type": "function", "function": {"name": "get_weather", "parameters": CITY, "strict": True}},
    {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "additionalProperties": False}}},
]
MESSAGES: Any = [{"role": "user", "content": "Weather?"}]


def wishes(**more: Any) -> Any:
    return {"model": REAL_MODEL, "messages": MESSAGES, "tools": REAL_TOOLS, "max_tokens": 160, **more}


def check_call(name: str, arguments: str) -> None:
    made = json.loads(arguments)
    if name == "now":
        assert made == {}
        return
    assert name == "get_weather"
    assert set(made) == {"city", "days"}
    assert made["city"] in ("Paris", "Rome")
    assert 0 <= made["days"] <= 9


def test_ac05_markers_that_are_tokens(tmp_path: Path) -> None:
    """A model of chance with Qwen's markers in its vocabulary: reasoning, then calls that obey, and no marker shown."""
    folder = tmp_path / "chance"
    make_checkpoint(folder, vocab_size=320, num_layers=1, hidden_size=32, num_heads=2, num_kv_heads=1)
    codec = byte_codec(SPECIAL, TEMPLATE)
    (folder / "tokenizer.json").write_text(codec._tokenizer.to_str())
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": "<|end_of_text|>", "chat_template": TEMPLATE})
    )
    with real_server(str(folder), num_blocks=128, max_context=1024) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60)
        model = client.models.list().data[0].id
        for seed in range(3):
            wanted = wishes(model=model, tool_choice="required", parallel_tool_calls=False, seed=seed, max_tokens=400)
            choice = client.chat.completions.create(**wanted).choices[0]
            assert choice.finish_reason == "tool_calls"
            (call,) = choice.message.tool_calls
            check_call(call.function.name, call.function.arguments)
            assert choice.message.content is None


def test_ac05_required_one_call(real: openai.OpenAI) -> None:
    """AC-05: parallel_tool_calls false: exactly one call, whatever the draw; streamed the same."""
    for seed in range(4):
        wanted = wishes(tool_choice="required", parallel_tool_calls=False, seed=seed)
        answer = real.chat.completions.create(**wanted)
        (call,) = answer.choices[0].message.tool_calls
        assert answer.choices[0].finish_reason == "tool_calls"
        check_call(call.function.name, call.function.arguments)
        deltas = [
            delta
            for chunk in real.chat.completions.create(**wanted, stream=True)
            for choice in chunk.choices
            for delta in choice.delta.tool_calls or ()
        ]
        assert "".join(delta.function.arguments or "" for delta in deltas) == call.function.arguments
        assert [delta.function.name for delta in deltas if delta.function.name] == [call.function.name]


def test_ac05_parallel_calls(real: openai.OpenAI) -> None:
    """AC-05: several calls, each complete but perhaps the one that the length cut off."""
    most = 0
    for seed in range(6):
        choice = real.chat.completions.create(**wishes(tool_choice="required", seed=seed)).choices[0]
        calls = choice.message.tool_calls or []
        for call in calls if choice.finish_reason == "tool_calls" else calls[:-1]:
            check_call(call.function.name, call.function.arguments)
        most = max(most, len(calls))
    assert most >= 2


def test_ac05_named_and_allowed_choices(real: openai.OpenAI) -> None:
    named = {"type": "function", "function": {"name": "get_weather"}}
    allowed = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [named]}}
    for choice in (named, allowed):
        for seed in range(2):
            answer = real.chat.completions.create(
                **wishes(tool_choice=choice, seed=seed, parallel_tool_calls=False)
            ).choices[0]
            (call,) = answer.message.tool_calls
            assert call.function.name == "get_weather"
            check_call(call.function.name, call.function.arguments)


def test_the_clients_helpers_parse(real: openai.OpenAI) -> None:
    class Weather(pydantic.BaseModel):
        model_config = pydantic.ConfigDict(extra="forbid")
        city: str = pydantic.Field(pattern="^(Paris|Rome)$")
        days: int = pydantic.Field(ge=0, le=9)

    class Answer(pydantic.BaseModel):
        model_config = pydantic.ConfigDict(extra="forbid")
        number: int = pydantic.Field(ge=0, le=9)

    tools: Any = [openai.pydantic_function_tool(Weather)]
    wanted = wishes(tools=tools, parallel_tool_calls=False)
    parsed = real.chat.completions.parse(**wanted, tool_choice="required", seed=1)
    assert isinstance(parsed.choices[0].message.tool_calls[0].function.parsed_arguments, Weather)
    with real.chat.completions.stream(**wanted, tool_choice="required", seed=1) as events_of:
        kinds = {event.type for event in events_of}
        final = events_of.get_final_completion()
    assert {"tool_calls.function.arguments.delta", "tool_calls.function.arguments.done"} <= kinds
    assert final.choices[0].message.tool_calls[0].function == parsed.choices[0].message.tool_calls[0].function
    for seed in range(4):
        message = real.chat.completions.parse(**wanted, response_format=Answer, seed=seed).choices[0].message
        assert isinstance(message.parsed, Answer) != bool(message.tool_calls)
        for call in message.tool_calls or ():
            assert isinstance(call.function.parsed_arguments, Weather)


def test_a_schema_that_cannot_be_kept_to_is_named(real: openai.OpenAI) -> None:
    bad = {"name": "bad", "strict": True, "parameters": {"type": "object", "properties": {"a": {"uniqueItems": True}}}}
    with pytest.raises(openai.BadRequestError) as caught:
        real.chat.completions.create(**wishes(tools=[REAL_TOOLS[1], {"type": "function", "function": bad}]))
    assert str(caught.value.param).startswith("tools[1].function.parameters")
    assert caught.value.code == "unsupported_schema"
    bomb = {**bad, "parameters": {"type": "object", "properties": {"a": {"pattern": "((a{100}){100}){100}"}}}}
    for strict in (True, False):
        function = {"type": "function", "function": {**bomb, "strict": strict}}
        with pytest.raises(openai.BadRequestError) as caught:
            real.chat.completions.create(**wishes(tools=[function], tool_choice="required"))
        assert str(caught.value.param) == "tools[0].function.parameters.properties.a.pattern"
    lenient = {**bad, "strict": False}
    wanted = wishes(tools=[{"type": "function", "function": lenient}], tool_choice="required", max_tokens=4)
    assert real.chat.completions.create(**wanted).choices[0].finish_reason == "length"
