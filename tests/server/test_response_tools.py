"""Functions, reasoning and forms of answers over ``/v1/responses``: AC-09."""

from __future__ import annotations

import asyncio
import json
from typing import Any, Literal, cast

import openai
import pytest
from pydantic import BaseModel

from tests.server.conftest import REAL_MODEL
from tests.server.response_events import check_events, read_events
from tests.server.scripted import scripted_server
from tests.server.service import MODEL
from tests.server.support import Running, error_of

RESPONSES = "/v1/responses"
WEATHER: dict[str, Any] = {
    "type": "function",
    "name": "weather",
    "description": "How it is outside.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
        "additionalProperties": False,
    },
    "strict": True,
}
TIME = {"type": "function", "name": "time", "parameters": {"type": "object", "properties": {}}}
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)


def call(name: str, **arguments: Any) -> str:
    return "<tool_call>\n" + json.dumps({"name": name, "arguments": arguments}) + "\n</tool_call>"


def assistant(prompt: str) -> str:
    """Calls first; answers when it has been told."""
    if prompt.count("<tool_response>") > 1:  # the preamble names it once
        return "It is sunny."
    if "both" in prompt:
        return "I'll look." + call("weather", city="Paris") + "\n" + call("time")
    return call("weather", city="Paris")


def ask(server: Running, **more: Any) -> dict[str, Any]:
    """Whole and streamed, which must be the same but for ids and times."""
    body = {"model": MODEL, "input": "How is it?", "tools": [WEATHER, TIME], **more}
    whole = server.post(RESPONSES, body)
    assert whole.status_code == 200, whole.text
    streamed = check_events(read_events(server.post(RESPONSES, {**body, "stream": True}).text))
    assert list(map(plain, streamed["output"])) == list(map(plain, whole.json()["output"]))
    return dict(whole.json())


def plain(item: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in item.items() if key not in ("id", "call_id")}


def test_ac09_calls_of_functions() -> None:
    """AC-09: one, and two beside a text; streamed argument deltas join to the arguments."""
    with scripted_server(assistant) as (server, executor):
        one = ask(server)
        assert [item["type"] for item in one["output"]] == ["function_call"]
        made = one["output"][0]
        assert (made["name"], json.loads(made["arguments"])) == ("weather", {"city": "Paris"})
        assert made["call_id"]
        assert made["id"].startswith("fc_")
        assert one["tools"][0] == WEATHER
        assert one["tools"][1] == {**TIME, "description": None, "strict": True}
        both = ask(server, input="Tell me both.")
        assert [item["type"] for item in both["output"]] == ["message", "function_call", "function_call"]
        assert [item["name"] for item in both["output"][1:]] == ["weather", "time"]
        assert "How it is outside." in executor.prompts[0]


def test_ac09_a_call_that_is_cut_off_is_incomplete() -> None:
    with scripted_server(assistant) as (server, _):
        num_tokens = len(server.service.codec.encode(call("weather", city="Par"), add_special_tokens=False))
        cut = ask(server, max_output_tokens=num_tokens - 10)
        assert cut["status"] == "incomplete"
        assert cut["output"][0]["type"] == "function_call"
        assert cut["output"][0]["status"] == "incomplete"
        assert '{"city": "Paris"}'.startswith(cut["output"][0]["arguments"])


def test_ac09_the_loop_of_a_tool() -> None:
    """AC-09: call, output, answer; by previous response and by sending everything back."""
    with scripted_server(assistant) as (server, executor):
        client = server.client()
        tools: Any = [WEATHER]
        first = client.responses.create(model=MODEL, input="How is it?", tools=tools)
        made = cast(Any, first.output[0])
        output: Any = {"type": "function_call_output", "call_id": made.call_id, "output": '{"sky": "clear"}'}
        second = client.responses.create(model=MODEL, input=[output], tools=tools, previous_response_id=first.id)
        assert second.output_text == "It is sunny."
        history: Any = [{"role": "user", "content": "How is it?"}, *first.output, output]
        again = client.responses.create(model=MODEL, input=history, tools=tools, store=False)
        assert again.output_text == "It is sunny."
        assert executor.prompts[-1] == executor.prompts[-2]
        assert '{"sky": "clear"}' in executor.prompts[-1]
        parts: Any = {
            **output,
            "output": [{"type": "input_text", "text": '{"sky": '}, {"type": "input_text", "text": '"clear"}'}],
        }
        client.responses.create(model=MODEL, input=[parts], tools=tools, previous_response_id=first.id)
        assert executor.prompts[-1] == executor.prompts[-2]
        unanswered = server.post(RESPONSES, {"model": MODEL, "input": "So?", "previous_response_id": first.id})
        assert (unanswered.status_code, error_of(unanswered)["param"]) == (400, "input")
        assert made.call_id in error_of(unanswered)["message"]


def test_ac09_choices_of_tools() -> None:
    """AC-09: none, required, by name and some of them; each is echoed as it was sent."""
    with scripted_server(assistant) as (server, executor):
        none = ask(server, tool_choice="none")
        assert [item["type"] for item in none["output"]] == ["message"], "what cannot be called is text"
        choices: list[Any] = [
            "required",
            {"type": "function", "name": "weather"},
            {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "weather"}]},
            {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "weather"}]},
        ]
        for choice in choices:
            answer = ask(server, tool_choice=choice, parallel_tool_calls=False)
            assert answer["tool_choice"] == choice
            assert answer["output"][0]["name"] == "weather"
            assert executor.params[-1].grammar is not None
        wrong = {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "nobody"}]}
        refused = server.post(RESPONSES, {"model": MODEL, "input": "a", "tools": [TIME], "tool_choice": wrong})
        assert error_of(refused)["param"] == "tool_choice.tools[0].name"


def test_ac09_reasoning() -> None:
    """AC-09: an item of its own, counted, and given to templates that know it when it comes back."""
    with scripted_server(lambda prompt: "<think>Hm, well.</think>Yes.", template=THINKING) as (server, executor):
        answer = ask(server, tools=[], include=["message.output_text.logprobs"])
        assert [item["type"] for item in answer["output"]] == ["reasoning", "message"]
        reasoning, message = answer["output"]
        assert reasoning["content"] == [{"type": "reasoning_text", "text": "Hm, well."}]
        assert reasoning["summary"] == []
        assert message["content"][0]["text"] == "Yes."
        told = "".join(entry["token"] for entry in message["content"][0]["logprobs"])
        assert told.endswith("Yes.")
        assert "well" not in told
        details = answer["usage"]["output_tokens_details"]
        assert 0 < details["reasoning_tokens"] < answer["usage"]["output_tokens"]
        client = server.client()
        client.responses.create(model=MODEL, input="And?", previous_response_id=answer["id"])
        assert "<think>Hm, well.</think>Yes." in executor.prompts[-1]
        history: Any = [
            {"role": "user", "content": "How is it?"},
            *answer["output"],
            {"role": "user", "content": "And?"},
        ]
        client.responses.create(model=MODEL, input=history, store=False)
        assert executor.prompts[-1] == executor.prompts[-2]


def test_reasoning_effort_is_for_templates_that_know_it() -> None:
    template = THINKING + "{% if reasoning_effort %}[{{ reasoning_effort }}]{% endif %}{{ verbosity }}"
    with scripted_server(lambda prompt: "Yes.", template=template) as (server, executor):
        answer = ask(server, tools=[], reasoning={"effort": "low"}, text={"verbosity": "high"})
        assert executor.prompts[0].endswith("[low]high")
        assert answer["reasoning"] == {"effort": "low", "summary": None}
        assert answer["text"] == {"format": {"type": "text"}, "verbosity": "high"}
    with scripted_server(lambda prompt: "Yes.") as (server, _):
        for wish, param in (
            ({"reasoning": {"effort": "low"}}, "reasoning.effort"),
            ({"text": {"verbosity": "low"}}, "text.verbosity"),
        ):
            refused = server.post(RESPONSES, {"model": MODEL, "input": "a", **wish})
            assert (error_of(refused)["param"], error_of(refused)["code"]) == (param, "not_supported")


Sky = Literal["clear", "grey"]


class Weather(BaseModel):
    sky: Sky
    warm: bool


class Person(BaseModel):
    name: str
    age: int


def test_ac09_parse_with_a_model() -> None:
    """AC-09: the official client's helper, whole and streamed, sync and async."""
    with scripted_server(lambda prompt: '{"name": "Ada", "age": 36}') as (server, executor):
        client = server.client()
        parsed = client.responses.parse(model=MODEL, input="Who?", text_format=Person)
        assert parsed.output_parsed == Person(name="Ada", age=36)
        assert executor.params[-1].grammar is not None
        assert executor.params[-1].grammar.kind == "json_schema"
        assert cast(Any, parsed.text).format.schema_["required"] == ["name", "age"]
        with client.responses.stream(model=MODEL, input="Who?", text_format=Person) as stream:
            assert stream.get_final_response().output_parsed == Person(name="Ada", age=36)

        async def ask_async() -> Any:
            async with server.async_client() as client:
                return await client.responses.parse(model=MODEL, input="Who?", text_format=Person)

        assert asyncio.run(ask_async()).output_parsed == Person(name="Ada", age=36)
        client.responses.create(model=MODEL, input="Who?", text={"format": {"type": "json_object"}})
        assert executor.params[-1].grammar is not None
        assert executor.params[-1].grammar.kind == "json_object"


def test_ac09_a_real_model_keeps_to_the_form(real_url: str) -> None:
    """AC-09: the built-in model, which was never taught either, calls and fills in as it must."""
    with openai.OpenAI(base_url=f"{real_url}/v1", api_key="none", max_retries=0, timeout=30) as client:
        wishes: dict[str, Any] = {"model": REAL_MODEL, "input": "How is it?", "max_output_tokens": 120}
        short = {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"]}
        tool = {**WEATHER, "parameters": {**short, "additionalProperties": False}}
        with client.responses.stream(
            **wishes, tools=[tool], tool_choice="required", parallel_tool_calls=False
        ) as stream:
            made = cast(Any, stream.get_final_response().output[0])
        assert (made.type, made.name) == ("function_call", "weather")
        assert json.loads(made.arguments)["city"] in ("Paris", "Rome")
        parsed = client.responses.parse(**wishes, text_format=Weather)
        assert isinstance(parsed.output_parsed, Weather)


@pytest.mark.parametrize(
    ("items", "what"),
    [
        ([{"type": "function_call_output", "call_id": "c", "output": "1"}], "No tool call found"),
        ([{"type": "function_call", "call_id": "c", "name": "time", "arguments": "{}"}], "No tool output found"),
    ],
)
def test_calls_and_outputs_must_match(server: Running, items: list[Any], what: str) -> None:
    body = {"model": MODEL, "input": [{"role": "user", "content": "a"}, *items]}
    refused = server.post(RESPONSES, body)
    assert (refused.status_code, error_of(refused)["param"]) == (400, "input")
    assert error_of(refused)["message"].startswith(what)
