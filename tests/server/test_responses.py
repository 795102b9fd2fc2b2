"""``/v1/responses``, whole and streamed, by OpenAI's types and its official client: AC-09."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import openai
import pytest
from jsonschema import Draft202012Validator
from openai.types.responses import Response, ResponseItemList

from tests.server.response_events import check_events, check_response, read_events, unchunked
from tests.server.scripted import scripted_server
from tests.server.service import MODEL
from tests.server.support import RawStream, Running, error_of, running_server, wait_until
from tokenmill.server.settings import ServerSettings

RESPONSES = "/v1/responses"
LOGPROBS = ["message.output_text.logprobs"]


def body(**more: Any) -> dict[str, Any]:
    return {"model": MODEL, "input": "Tell me a story.", "max_output_tokens": 5, **more}


def text_of(response: dict[str, Any]) -> str:
    return "".join(part["text"] for item in response["output"] if item["type"] == "message" for part in item["content"])


@pytest.mark.parametrize(
    "wish",
    [
        {},
        {"instructions": "Be brief.", "metadata": {"a": "b"}, "user": "u", "safety_identifier": "s"},
        {"include": LOGPROBS, "top_logprobs": 3},
        {"stop": ["e"], "max_output_tokens": 60},
        {"temperature": 0.0, "top_p": 0.5, "service_tier": "flex", "max_tool_calls": 3, "truncation": "auto"},
        {"text": {"format": {"type": "text"}, "verbosity": "medium"}, "reasoning": {}, "prompt_cache_key": "k"},
        {
            "input": [
                {"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]}
            ]
        },
    ],
)
def test_ac09_whole_and_streamed_responses_have_openais_shape(server: Running, wish: dict[str, Any]) -> None:
    """AC-09: and both say the same."""
    wishes = body(seed=5, **wish)
    whole = server.post(RESPONSES, wishes)
    assert whole.status_code == 200, whole.text
    check_response(whole.json())
    events = read_events(server.post(RESPONSES, {**wishes, "stream": True}).text)
    streamed = check_events(events)
    assert text_of(streamed) == text_of(whole.json())
    assert streamed["status"] == whole.json()["status"]
    assert streamed["usage"]["output_tokens"] == whole.json()["usage"]["output_tokens"]
    given = whole.json()["output"][0]["content"][0]["logprobs"]
    assert streamed["output"][0]["content"][0]["logprobs"] == given
    assert bool(given) == ("include" in wish)
    for entry in given:
        assert len(entry["top_logprobs"]) == 3
    for field in set(wish) - {"input", "include", "stop", "service_tier"}:
        asked = {"effort": None, "summary": None} if field == "reasoning" else wish[field]
        assert whole.json()[field] == asked, field


def test_ac09_statuses(server: Running) -> None:
    """AC-09: completed where the model ended, incomplete where the limit did."""
    ended = server.post(RESPONSES, body(stop=["e"], max_output_tokens=100)).json()
    assert (ended["status"], ended["output"][0]["status"]) == ("completed", "completed")
    cut = server.post(RESPONSES, body(max_output_tokens=2)).json()
    assert (cut["status"], cut["output"][0]["status"]) == ("incomplete", "incomplete")
    assert cut["incomplete_details"] == {"reason": "max_output_tokens"}
    assert cut["usage"]["output_tokens"] == 2


def test_ac09_an_answer_of_no_text_is_an_empty_message() -> None:
    with scripted_server(lambda prompt: "") as (running, _):
        events = read_events(running.post(RESPONSES, body(stream=True)).text)
        response = check_events(events)
        assert (response["status"], text_of(response)) == ("completed", "")
        assert response["usage"]["output_tokens"] == 1


def test_ac09_the_official_client(server: Running) -> None:
    """AC-09: create, stream and the stream helper, sync."""
    client = server.client()
    wishes: dict[str, Any] = {"model": MODEL, "input": "Hello", "max_output_tokens": 8, "extra_body": {"seed": 3}}
    whole = client.responses.create(**wishes)
    assert isinstance(whole, Response)
    assert whole.output_text
    assert whole._request_id == "req_" + whole.id.removeprefix("resp_")
    streamed = list(client.responses.create(**wishes, stream=True))
    assert streamed[-1].type == "response.incomplete"
    assert streamed[-1].response.output_text == whole.output_text
    with client.responses.stream(**wishes, text={"format": {"type": "text"}}) as stream:
        snapshots = [event.snapshot for event in stream if event.type == "response.output_text.delta"]
    assert snapshots[-1] == whole.output_text
    wishes |= {"max_output_tokens": 200, "extra_body": {"seed": 3, "stop": ["e"]}}
    with client.responses.stream(**wishes) as stream:
        final = stream.get_final_response()
    assert (final.status, final.output_text) == ("completed", client.responses.create(**wishes).output_text)


def test_ac09_the_official_async_client(server: Running) -> None:
    """AC-09: many at once."""

    async def ask(client: openai.AsyncOpenAI, seed: int) -> bool:
        wishes: dict[str, Any] = {"model": MODEL, "input": "Hi", "max_output_tokens": 6, "extra_body": {"seed": seed}}
        whole = await client.responses.create(**wishes)
        parts = []
        async for event in await client.responses.create(**wishes, stream=True):
            if event.type == "response.output_text.delta":
                parts.append(event.delta)
        kept = await client.responses.retrieve(whole.id)
        return whole.output_text == "".join(parts) == kept.output_text

    async def ask_all() -> list[bool]:
        async with server.async_client() as client:
            return await asyncio.gather(*(ask(client, seed) for seed in range(8)))

    assert all(asyncio.run(ask_all()))


def test_the_published_description_is_true(server: Running) -> None:
    """AC-02: bodies, answers and every kind of event by ``/openapi.json``, as a stranger's validator reads it."""
    document = server.get("/openapi.json").json()
    operation = document["paths"][RESPONSES]["post"]

    def validate(value: Any, schema: dict[str, Any]) -> None:
        Draft202012Validator({**schema, "components": document["components"]}).validate(value)

    items = [{"role": "user", "content": [{"type": "input_text", "text": "a"}]}]
    wishes = body(input=items, include=LOGPROBS, top_logprobs=1, tools=[{"type": "function", "name": "f"}])
    validate(wishes, operation["requestBody"]["content"]["application/json"]["schema"])
    answers = operation["responses"]["200"]["content"]
    made = server.post(RESPONSES, wishes).json()
    validate(made, answers["application/json"]["schema"])
    for event in read_events(server.post(RESPONSES, {**wishes, "stream": True}).text):
        validate(event, answers["text/event-stream"]["schema"])
    listing = document["paths"][f"{RESPONSES}/{{id}}/input_items"]["get"]["responses"]["200"]["content"]
    items = server.get(f"{RESPONSES}/{made['id']}/input_items").json()
    validate(items, listing["application/json"]["schema"])


# ---- input ----


def test_items_become_a_conversation(server: Running) -> None:
    """What a chat with the same conversation says."""
    items = [
        {"role": "user", "content": "One"},
        {
            "type": "message",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "Two", "annotations": []}],
        },
        {
            "type": "message",
            "role": "user",
            "content": [{"type": "input_text", "text": "Th"}, {"type": "input_text", "text": "ree"}],
        },
    ]
    response = server.post(RESPONSES, body(input=items, instructions="Count.", seed=7)).json()
    messages = [
        {"role": "system", "content": "Count."},
        {"role": "user", "content": "One"},
        {"role": "assistant", "content": "Two"},
        {"role": "user", "content": "Three"},
    ]
    chat = server.post(
        "/v1/chat/completions", {"model": MODEL, "messages": messages, "max_tokens": 5, "seed": 7}
    ).json()
    assert text_of(response) == chat["choices"][0]["message"]["content"]
    assert response["usage"]["input_tokens"] == chat["usage"]["prompt_tokens"]
    counted = server.client().responses.input_tokens.count(model=MODEL, input=items, instructions="Count.")
    assert counted.input_tokens == chat["usage"]["prompt_tokens"]


def test_parts_of_content(server: Running) -> None:
    """Empty ones, refusals, a developer where the template knows none, and everything that is no text at all."""
    items = [
        {
            "role": "developer",
            "content": [{"type": "input_text", "text": ""}, {"type": "input_text", "text": "Kind. 😀"}],
        },
        {"role": "user", "content": ""},
        {
            "role": "assistant",
            "content": [{"type": "refusal", "refusal": "No."}, {"type": "output_text", "text": "Yes."}],
        },
        {"role": "user", "content": [{"type": "input_text", "text": "<|im_end|>"}]},
    ]
    response = server.post(RESPONSES, body(input=items, seed=1))
    assert response.status_code == 200, response.text
    messages = [
        {"role": "system", "content": "Kind. 😀"},
        {"role": "user", "content": ""},
        {"role": "assistant", "content": "No.Yes."},
        {"role": "user", "content": "<|im_end|>"},
    ]
    chat = server.post(
        "/v1/chat/completions", {"model": MODEL, "messages": messages, "max_tokens": 5, "seed": 1}
    ).json()
    assert text_of(response.json()) == chat["choices"][0]["message"]["content"]
    listed = server.get(f"{RESPONSES}/{response.json()['id']}/input_items").json()["data"]
    assert listed[1]["content"][0] == {"type": "refusal", "refusal": "No."}
    ResponseItemList.model_validate(
        {"object": "list", "data": listed, "first_id": "", "last_id": "", "has_more": False}
    )


def test_an_answer_can_be_sent_back_as_it_came(server: Running) -> None:
    """Stateless clients append ``output`` to their input."""
    client = server.client()
    first = client.responses.create(model=MODEL, input="Hi", max_output_tokens=4, store=False, include=LOGPROBS)
    history: Any = [{"role": "user", "content": "Hi"}, *first.output, {"role": "user", "content": "Go on"}]
    second = client.responses.create(model=MODEL, input=history, max_output_tokens=4, extra_body={"seed": 1})
    by_hand: Any = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": first.output_text},
        {"role": "user", "content": "Go on"},
    ]
    again = client.responses.create(model=MODEL, input=by_hand, max_output_tokens=4, extra_body={"seed": 1})
    assert second.output_text == again.output_text


def test_truncation_drops_the_beginning() -> None:
    """auto: whole turns from the beginning, and no more than needed; disabled: refused."""
    with running_server(max_context=128) as running:
        turns = [
            item
            for i in range(40)
            for item in ({"role": "user", "content": f"Word {i}"}, {"role": "assistant", "content": "Yes."})
        ]
        items = [*turns, {"role": "user", "content": "And now?"}]
        refused = running.post(RESPONSES, body(input=items))
        error = error_of(refused)
        assert (refused.status_code, error["code"], error["param"]) == (400, "context_length_exceeded", "input")
        taken = running.post(RESPONSES, body(input=items, truncation="auto", max_output_tokens=10))
        assert taken.status_code == 200, taken.text
        used = taken.json()["usage"]["input_tokens"]
        assert 128 - 10 - 40 < used <= 128 - 10
        kept = running.post(RESPONSES, body(input=items[-1:], max_output_tokens=10)).json()["usage"]["input_tokens"]
        assert used > kept
        too_long = running.post(RESPONSES, body(input="word " * 400, truncation="auto"))
        assert error_of(too_long)["code"] == "context_length_exceeded"


def test_se21_increments_of_one_size(server: Running) -> None:
    """SE-21: with padding the size of a delta tells nothing of its text, which is the same."""
    wishes = body(seed=5, max_output_tokens=30, stream=True)
    plain = read_events(server.post(RESPONSES, wishes).text)
    padded = read_events(server.post(RESPONSES, {**wishes, "stream_options": {"include_obfuscation": True}}).text)
    assert check_events(plain)["output"][0]["content"] == check_events(padded)["output"][0]["content"]
    sizes = {
        len(json.dumps({**event, "sequence_number": 0}))
        for event in padded
        if event["type"] == "response.output_text.delta" and event["delta"].isascii()
    }
    assert len(sizes) == 1
    assert not any("obfuscation" in event for event in plain)


# ---- what is refused ----


@pytest.mark.parametrize(
    ("wish", "param", "code"),
    [
        ({"input": None}, "input", "missing_required_parameter"),
        ({"input": []}, "input", "missing_required_parameter"),
        ({"input": 5}, "input", "invalid_type"),
        ({"input": [5]}, "input[0]", "invalid_type"),
        ({"input": [{"role": "user"}]}, "input[0].content", "missing_required_parameter"),
        ({"input": [{"role": "nobody", "content": "a"}]}, "input[0].role", "invalid_value"),
        ({"input": [{"type": "web_search_call", "id": "ws_1"}]}, "input[0].type", "invalid_value"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
            "input[0].content[0].type",
            "invalid_value",
        ),
        (
            {"input": [{"role": "user", "content": [{"type": "refusal", "refusal": "no"}]}]},
            "input[0].content[0].type",
            "invalid_value",
        ),
        ({"input": [{"role": "user", "content": []}]}, "input[0].content", "invalid_value"),
        ({"input": [{"role": "user", "content": "a", "extra": 1}]}, "input[0].extra", "unknown_parameter"),
        ({"input": [{"type": "function_call_output", "call_id": "c", "output": "1"}]}, "input", "invalid_value"),
        (
            {"input": [{"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}]},
            "input",
            "invalid_value",
        ),
        ({"input": [{"role": "user", "content": "a", "id": "msg_1"}] * 2}, "input", "invalid_value"),
        ({"nobody_knows": 1}, "nobody_knows", "unknown_parameter"),
        ({"chat_template": "{{ ''.__class__ }}"}, "chat_template", "unknown_parameter"),
        ({"max_output_tokens": 0}, "max_output_tokens", "invalid_value"),
        ({"max_output_tokens": "5"}, "max_output_tokens", "invalid_type"),
        ({"max_tokens": 5}, "max_tokens", "unknown_parameter"),
        ({"temperature": 3}, "temperature", "invalid_value"),
        ({"n": 2}, "n", "invalid_value"),
        ({"include": ["web_search_call.results"]}, "include[0]", "invalid_value"),
        ({"top_logprobs": 21}, "top_logprobs", "invalid_value"),
        ({"conversation": "conv_1"}, "conversation", "not_supported"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt", "not_supported"),
        ({"context_management": []}, "context_management", "not_supported"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", "not_supported"),
        ({"tools": [{"type": "mcp", "server_label": "x", "server_url": "y"}]}, "tools[0].type", "not_supported"),
        ({"tools": [{"type": "nothing"}]}, "tools[0].type", "invalid_value"),
        ({"tools": [{"type": "function", "name": "a b"}]}, "tools[0].name", "invalid_value"),
        (
            {"tools": [{"type": "function", "name": "f", "parameters": {"type": "string"}}]},
            "tools[0].parameters.type",
            "invalid_value",
        ),
        ({"tool_choice": {"type": "function", "name": "f"}}, "tool_choice.name", "invalid_value"),
        ({"tool_choice": "required"}, "tool_choice", "invalid_value"),
        ({"tool_choice": {"type": "web_search_preview"}}, "tool_choice.type", "invalid_value"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type", "invalid_value"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format.name", "missing_required_parameter"),
        (
            {"text": {"format": {"type": "json_schema", "name": "a", "schema": {"type": "nothing"}}}},
            "text.format.schema.type",
            "invalid_schema",
        ),
        ({"reasoning": {"effort": "enormous"}}, "reasoning.effort", "invalid_value"),
        ({"background": True, "store": False}, "background", "invalid_value"),
        ({"stream_options": {"include_obfuscation": False}}, "stream_options", "invalid_value"),
        ({"previous_response_id": "no spaces"}, "previous_response_id", "invalid_value"),
        ({"metadata": {"k": 1}}, "metadata.k", "invalid_type"),
        ({"chat_template_kwargs": {"chat_template": "x"}}, "chat_template_kwargs", "invalid_value"),
    ],
)
def test_ac09_what_is_wrong_is_named(server: Running, wish: dict[str, Any], param: str, code: str) -> None:
    """AC-09: by this API's own names, before anything is generated."""
    requests = server.stats()["requests"]
    response = server.post(RESPONSES, body(**wish))
    error = error_of(response)
    assert (response.status_code, error["param"], error["code"]) == (400, param, code), error
    assert error["type"] == "invalid_request_error"
    assert server.stats()["requests"] == requests


# ---- how a stream ends ----


def fail_at_fifth(seq_id: int, position: int) -> str | None:
    return "logits were not finite" if position >= 13 + 5 else None


def test_ac09_a_failure_is_an_event_an_error_frame_and_a_cut_connection() -> None:
    """AC-09, ST-04: streamed, whole, and as the official client sees it; what failed is not kept."""
    with running_server(step_s=0.002, fail=fail_at_fifth) as running:
        wishes = body(input="Hi", max_output_tokens=40)
        seen = RawStream(running.port, RESPONSES, {**wishes, "stream": True}).read_all()
        assert not seen.endswith(b"0\r\n\r\n")
        events = read_events(unchunked(seen))
        assert [event["type"] for event in events[-2:]] == ["response.failed", "error"]
        response = check_events(events)
        assert response["error"]["code"] == "server_error"
        assert response["output"][0]["status"] == "incomplete"
        assert events[-1]["code"] == events[-1]["error"]["code"] == "numerical_error"
        assert running.get(f"{RESPONSES}/{response['id']}").status_code == 404
        whole = running.post(RESPONSES, wishes)
        assert (whole.status_code, error_of(whole)["code"]) == (500, "numerical_error")
        stream = running.client().responses.create(model=MODEL, input="Hi", max_output_tokens=40, stream=True)
        types: list[str] = []
        with pytest.raises(openai.APIError) as caught:
            types.extend(event.type for event in stream)
        assert caught.value.code == "numerical_error"
        assert types[-1] == "response.failed"
        running.wait_idle()


def test_st04_a_dead_engine_is_never_a_clean_end_of_a_response() -> None:
    """ST-04."""
    with running_server(step_s=0.005) as running:
        stream = RawStream(running.port, RESPONSES, body(max_output_tokens=400, stream=True))
        seen = stream.read_some(65536)
        running.executor.broken = True
        seen += stream.read_all()
        assert not seen.endswith(b"0\r\n\r\n")
        events = read_events(unchunked(seen))
        check_events(events)
        assert events[-1]["code"] == "engine_failed"
        assert b"secret" not in seen


def test_st02_a_client_that_leaves_ends_its_response(server: Running) -> None:
    """ST-01, ST-02: streamed and not; and nothing of it is kept."""
    for more in ({"stream": True}, {}):
        stream = RawStream(server.port, RESPONSES, body(max_output_tokens=450, **more))
        wait_until(lambda: server.stats()["running"] == 1, 5)
        time.sleep(0.02)
        stream.close()
        assert server.wait_idle(5) < 5
    stream = server.client().responses.create(model=MODEL, input="Hi", max_output_tokens=400, stream=True)
    created = next(iter(stream))
    stream.close()
    server.wait_idle(5)
    assert server.get(f"{RESPONSES}/{created.response.id}").status_code == 404


def test_st07_a_response_that_waits_is_kept_open() -> None:
    """ST-07: it is created at once, and comments follow until there is something to say."""
    with running_server(ServerSettings(port=0, ping_s=0.1), step_s=0.01, max_seqs=1) as running:
        first = RawStream(running.port, RESPONSES, body(max_output_tokens=80))
        wait_until(lambda: running.stats()["running"] == 1, 5)
        text = running.post(RESPONSES, body(max_output_tokens=2, stream=True)).text
        assert text.startswith("event: response.created")
        assert text.count(": ping") >= 2
        check_events(read_events(text))
        first.close()
        running.wait_idle(5)


def test_a_response_is_explained_by_its_id(server: Running) -> None:
    response = server.post(RESPONSES, body()).json()
    account = server.get(f"/v1/requests/{response['id']}")
    assert account.status_code == 200, account.text
    assert account.json()["total_s"] == pytest.approx(response["timing"]["total_s"])
    assert json.dumps(account.json())
