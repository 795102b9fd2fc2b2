"""Fields that are wrong: BI-05 to BI-14, BI-16 to BI-18. Which fields there are is read from ``/openapi.json``."""

from __future__ import annotations

import itertools
import json
import math
from typing import Any

import pytest
from pydantic import ValidationError

from tests.server.service import MAX_CONTEXT
from tests.server.support import SMALL, Running, error_of
from tests.server.test_bad_bodies import quickest
from tokenmill.server.app import ENDPOINTS
from tokenmill.server.openapi import document
from tokenmill.server.protocol.chat import ChatRequest

CHAT, COMPLETIONS, RESPONSES = GENERATING = ("/v1/chat/completions", "/v1/completions", "/v1/responses")
DOCUMENT = document(ENDPOINTS)


def properties(path: str) -> dict[str, Any]:
    schema = DOCUMENT["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    name = schema["$ref"].rsplit("/", 1)[1]
    found: dict[str, Any] = DOCUMENT["components"]["schemas"][name]["properties"]
    return found


def fields_of(path: str, kind: str) -> list[str]:
    """Names of the top-level fields that are a number of this kind."""
    return [name for name, prop in properties(path).items() if kind in {p.get("type") for p in alternatives(prop)}]


def alternatives(prop: dict[str, Any]) -> list[dict[str, Any]]:
    inner = prop.get("anyOf")
    return [prop] if inner is None else [found for each in inner for found in alternatives(each)]


INTEGERS = [(path, name) for path in GENERATING for name in fields_of(path, "integer") if name != "prompt"]
INTEGERS.remove((RESPONSES, "n"))  # 1 and nothing else
FLOATS = [(path, name) for path in GENERATING for name in fields_of(path, "number")]


def test_the_lists_are_not_empty() -> None:
    assert {(CHAT, "n"), (CHAT, "seed"), (COMPLETIONS, "best_of"), (CHAT, "max_completion_tokens")} <= set(INTEGERS)
    assert {(CHAT, "temperature"), (CHAT, "top_p"), (COMPLETIONS, "repetition_penalty")} <= set(FLOATS)


def ask(server: Running, path: str, field: str, text: str) -> Any:
    """POST a small request with ``field`` written exactly as ``text``."""
    body = server.chat(logprobs=True) if path == CHAT else dict(SMALL[path])
    if field == "max_completion_tokens":
        del body["max_tokens"]
    body[field] = "<here>"
    return server.post(path, json.dumps(body).replace('"<here>"', text).encode())


@pytest.mark.parametrize(("path", "field"), FLOATS)
@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1e400", "-1e400", "true", '"1"', "[1]", "{}"])
def test_bi05_floats_must_be_finite_numbers(server: Running, path: str, field: str, text: str) -> None:
    """BI-05."""
    response = ask(server, path, field, text)
    assert response.status_code == 400
    assert error_of(response)["param"] == field


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1e400", "true"])
def test_bi05_so_must_biases(server: Running, text: str) -> None:
    """BI-05."""
    assert error_of(ask(server, CHAT, "logit_bias", f'{{"5": {text}}}'))["param"] == "logit_bias.5"


@pytest.mark.parametrize(("path", "field"), INTEGERS)
def test_bi06_integers_are_not_anything_else(server: Running, path: str, field: str) -> None:
    """BI-06."""
    for text in ("true", "false", '"3"', "1e3", "1.5", "1.0", "[1]", "{}"):
        response = ask(server, path, field, text)
        assert response.status_code == 400, text
        assert error_of(response)["param"] == field, text


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_bi06_null_is_the_same_as_left_out(server: Running, path: str) -> None:
    """BI-06: for every optional field at once, as in the published schema."""
    body = server.chat() if path == CHAT else server.completion()
    optional = {name: None for name in properties(path) if name not in body}
    assert all({"type": "null"} in properties(path)[name]["anyOf"] for name in optional)
    plain, nulls = server.post(path, {**body, "seed": 1}), server.post(path, {**body, **optional, "seed": 1})
    assert nulls.status_code == 200, nulls.text
    assert nulls.json()["choices"] == plain.json()["choices"]


EDGES = (-(2**63), -1, 0, 1, 2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64, 9223372036854776000)


@pytest.mark.parametrize(("path", "field"), INTEGERS)
def test_bi07_integers_at_their_edges(server: Running, path: str, field: str) -> None:
    """BI-07: taken or refused by name, never a failure."""
    bounds = next(p for p in alternatives(properties(path)[field]) if p.get("type") == "integer")
    low, high = bounds["minimum"], bounds["maximum"]
    for value in {*EDGES, low, low - 1, high, high + 1}:
        response = ask(server, path, field, str(value))
        if low <= value <= high and response.status_code == 200:
            continue
        assert response.status_code == 400, (value, response.text)
        also = {"max_tokens", "max_output_tokens", "best_of", "n"}
        assert error_of(response)["param"] in {field, *also}, (value, response.text)
    assert ask(server, path, field, str(max(low, 1))).status_code == 200


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"n": 129}, "n"),
        ({"n": 10**9}, "n"),
        ({"best_of": 21}, "best_of"),
        ({"n": 3, "best_of": 2}, "best_of"),
        ({"best_of": 2, "stream": True}, "best_of"),
        ({"n": 20, "max_tokens": 500, "prompt": ["a"] * 1000}, "n"),
    ],
)
def test_bi08_huge_requests_are_refused_quickly(server: Running, wrong: dict[str, Any], param: str) -> None:
    """BI-08."""
    body = server.completion(**wrong)
    assert error_of(server.post(COMPLETIONS, body))["param"] == param
    limit_s = 0.05 if "prompt" not in wrong else 0.5
    assert quickest(lambda: server.post(COMPLETIONS, body)) < limit_s


@pytest.mark.parametrize(
    ("path", "wrong", "param"),
    [
        (CHAT, {"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        (CHAT, {"top_logprobs": 2}, "top_logprobs"),
        (CHAT, {"logprobs": 3}, "logprobs"),
        (COMPLETIONS, {"logprobs": 6}, "logprobs"),
        (COMPLETIONS, {"logprobs": True}, "logprobs"),
        (COMPLETIONS, {"prompt_logprobs": 21}, "prompt_logprobs"),
        (COMPLETIONS, {"prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
        (COMPLETIONS, {"prompt_logprobs": 20, "prompt": [300] * 32768}, "prompt"),
        (COMPLETIONS, {"allowed_token_ids": [300] * 200_000}, "allowed_token_ids"),
    ],
)
def test_bi09_log_probabilities_have_limits(server: Running, path: str, wrong: dict[str, Any], param: str) -> None:
    """BI-09."""
    body = server.chat(**wrong) if path == CHAT else server.completion(**wrong)
    assert error_of(server.post(path, body))["param"] == param


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": MAX_CONTEXT}, "max_tokens"),
        ({"max_tokens": MAX_CONTEXT + 1}, "max_tokens"),
        ({"max_tokens": 2**31}, "max_tokens"),
        ({"max_tokens": 4, "min_tokens": 5}, "min_tokens"),
        ({"max_tokens": None, "min_tokens": 2**40}, "min_tokens"),
        ({"max_tokens": None, "min_tokens": 2**31 - 1}, "min_tokens"),
        ({"max_tokens": 4, "max_completion_tokens": 4}, "max_tokens"),
    ],
)
def test_bi10_limits_on_tokens(server: Running, wrong: dict[str, Any], param: str) -> None:
    """BI-10: refused, and the next request is served (the fixture asks for one)."""
    assert error_of(server.post(CHAT, server.chat(**wrong)))["param"] == param


def test_bi10_zero_tokens_are_an_empty_completion(server: Running) -> None:
    """BI-10."""
    choice = server.post(COMPLETIONS, server.completion(max_tokens=0)).json()["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ("", "length")


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        '["a","b","c","d","e"]',
        '""',
        '[""]',
        '"' + "x" * 2**20 + '"',
        json.dumps(["a"] * 100_000),
        "[1]",
        "3",
        '"\\ud800"',
        '["' + "é" * 2049 + '"]',
    ],
    ids=range(10),
)
def test_bi11_stop_strings(server: Running, text: str) -> None:
    """BI-11."""
    response = ask(server, CHAT, "stop", text)
    assert response.status_code == 400
    assert error_of(response)["code"] in {"invalid_value", "invalid_type", "invalid_json"}


def test_bi11_four_of_four_kibibytes_are_taken(server: Running) -> None:
    """BI-11."""
    assert server.post(CHAT, server.chat(stop=[c * 4096 for c in "abcd"])).status_code == 200


@pytest.mark.parametrize(
    "bias",
    [
        {"abc": 1},
        {"-1": 1},
        {"": 1},
        {"٣": 1},
        {"4294967296": 1},
        {"5": 101},
        {"5": -100.5},
        {"5": "1"},
        {str(i): 1 for i in range(1025)},
    ],
    ids=range(9),
)
def test_bi12_logit_bias(server: Running, bias: dict[str, Any]) -> None:
    """BI-12."""
    response = server.post(CHAT, server.chat(logit_bias=bias))
    assert response.status_code == 400
    assert str(error_of(response)["param"]).startswith("logit_bias")


def test_bi12_a_token_outside_the_vocabulary(server: Running) -> None:
    """BI-12."""
    for beyond in (server.service.vocab_size, 2**31 - 1):
        response = server.post(CHAT, server.chat(logit_bias={str(beyond): 1}))
        assert error_of(response)["param"] == "logit_bias"
    assert server.post(CHAT, server.chat(logit_bias={str(server.service.vocab_size - 1): 1})).status_code == 200


def test_bi12_a_million_entries(server: Running) -> None:
    """BI-12."""
    response = server.post(CHAT, server.chat(logit_bias={str(i): -100 for i in range(1_000_000)}))
    assert error_of(response)["param"] == "logit_bias"


@pytest.mark.parametrize(
    "prompt",
    [
        [-1],
        [2**31],
        [2**63],
        [True],
        [1.0],
        [],
        [[]],
        ["a", 1],
        [1, "a"],
        ["a", [1]],
        [[1], "a"],
        [[1], 2],
        [None],
        {"a": 1},
        7,
        [[1, True]],
        ["a"] * 1025,
        [[1]] * 1025,
    ],
    ids=str,
)
def test_bi13_prompts_of_the_wrong_shape(server: Running, prompt: Any) -> None:
    """BI-13."""
    response = server.post(COMPLETIONS, server.completion(prompt=prompt))
    assert response.status_code == 400
    assert error_of(response)["param"] == "prompt"


def test_bi13_a_million_prompts(server: Running) -> None:
    """BI-13."""
    response = server.post(COMPLETIONS, server.completion(prompt=["a"] * 1_000_000))
    assert error_of(response)["param"] == "prompt"


def test_bi13_token_ids_must_be_in_the_vocabulary(server: Running) -> None:
    """BI-13: and one bad prompt among good ones leaves none of them running."""
    size = server.service.vocab_size
    for prompt in ([size], [[300], [300, size]]):
        assert error_of(server.post(COMPLETIONS, server.completion(prompt=prompt)))["param"] == "prompt"
    assert server.post(COMPLETIONS, server.completion(prompt=[size - 1])).status_code == 200


def test_bi14_the_context_is_full_at_its_length(server: Running) -> None:
    """BI-14: both numbers are in the message."""
    for length, status in ((MAX_CONTEXT - 1, 200), (MAX_CONTEXT, 400), (MAX_CONTEXT + 1, 400), (10 * MAX_CONTEXT, 400)):
        response = server.post(COMPLETIONS, server.completion(prompt=[300] * length, max_tokens=1))
        assert response.status_code == status
        if status == 400:
            error = error_of(response)
            assert error["code"] == "context_length_exceeded"
            assert str(MAX_CONTEXT) in error["message"]
            assert str(length) in error["message"]


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
@pytest.mark.parametrize("letter", ["a", "QUJD"], ids=["text", "base64"])
def test_bi14_long_texts_are_refused_by_their_bytes(server: Running, path: str, letter: str) -> None:
    """BI-14: twenty megabytes are not tokenised."""
    text = letter * (20_000_000 // len(letter))
    body = server.completion(prompt=text)
    if path == CHAT:
        body = server.chat(messages=[{"role": "user", "content": text}])
    error = error_of(server.post(path, body))
    assert error["code"] == "context_length_exceeded"
    assert "20000000 bytes" in error["message"]
    assert str(MAX_CONTEXT) in error["message"]


def test_bi16_special_tokens_cannot_be_spelt_out_in_messages(server: Running) -> None:
    """BI-16: every special token of the tokenizer, alone and inside a text."""
    codec = server.service.codec
    special = [codec.token_text(token_id) for token_id in sorted(codec.special_ids)]
    assert special

    def num_special(content: str) -> int:
        body = {"messages": [{"role": "user", "content": content}]}
        tokens = server.post("/tokenize", body).json()["tokens"]
        return sum(token in codec.special_ids for token in tokens)

    for content in (*special, " ".join(special), f"x{''.join(special)}y"):
        assert num_special(content) == num_special("plain"), content
        assert server.post(CHAT, server.chat(messages=[{"role": "user", "content": content}])).status_code == 200


IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([], "messages"),
        ("hello", "messages"),
        ([{"role": "user", "content": "a"}] * 100_000, "messages"),
        ([{"role": "robot", "content": "a"}], "messages[0].role"),
        ([{"content": "a"}], "messages[0].role"),
        ([{"role": "user", "content": "a"}, {"role": "tool", "content": "a"}], "messages[1].tool_call_id"),
        ([{"role": "user", "content": "a", "tool_call_id": "x"}], "messages[0].tool_call_id"),
        ([{"role": "user", "content": None}], "messages[0].content"),
        ([{"role": "user"}], "messages[0].content"),
        ([{"role": "user", "content": 5}], "messages[0].content"),
        ([{"role": "user", "content": []}], "messages[0].content"),
        ([{"role": "user", "content": ["a"]}], "messages[0].content[0]"),
        ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0].text"),
        ([{"role": "user", "content": [{"type": "text", "text": "a", "x": 1}]}], "messages[0].content[0].x"),
        (
            [{"role": "user", "content": "a"}] * 3 + [{"role": "user", "content": [IMAGE]}],
            "messages[3].content[0].type",
        ),
        ([{"role": "user", "content": "a", "colour": 1}], "messages[0].colour"),
        ([7], "messages[0]"),
    ],
    ids=range(17),
)
def test_bi17_messages_of_the_wrong_shape(server: Running, messages: Any, param: str) -> None:
    """BI-17."""
    for path, body in ((CHAT, server.chat(messages=messages)), ("/tokenize", {"messages": messages})):
        response = server.post(path, body)
        assert response.status_code == 400
        assert error_of(response)["param"] == param


def tool(**function: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}, **function}}


def schema(**inner: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {"a": inner}}


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"tools": [tool()] * 129}, "tools"),
        ({"tools": [tool()] * 10_000}, "tools"),
        ({"tools": [tool(name="")]}, "tools[0].function.name"),
        ({"tools": [tool(name="a b")]}, "tools[0].function.name"),
        ({"tools": [tool(name="a" * 65)]}, "tools[0].function.name"),
        ({"tools": [tool(parameters=[1])]}, "tools[0].function.parameters"),
        ({"tools": [tool(parameters={"type": "array"})]}, "tools[0].function.parameters.type"),
        ({"tools": [tool(parameters=schema(type="strin"))]}, "tools[0].function.parameters.properties.a.type"),
        ({"tools": [tool(parameters=schema(type=7))]}, "tools[0].function.parameters.properties.a.type"),
        ({"tools": [tool(parameters=schema(pattern="("))]}, "tools[0].function.parameters.properties.a.pattern"),
        ({"tools": [tool(parameters=schema(pattern=5))]}, "tools[0].function.parameters.properties.a.pattern"),
        ({"tools": [tool(parameters=schema(items=5))]}, "tools[0].function.parameters.properties.a.items"),
        ({"tools": [tool(), {"type": "magic"}]}, "tools[1].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        (
            {"tools": [tool()], "tool_choice": {"type": "function", "function": {"name": "g"}}},
            "tool_choice.function.name",
        ),
        ({"tools": [tool()], "tool_choice": "maybe"}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
    ],
    ids=range(17),
)
def test_bi18_tools_of_the_wrong_shape(server: Running, wrong: dict[str, Any], param: str) -> None:
    """BI-18."""
    response = server.post(CHAT, server.chat(**wrong))
    assert response.status_code == 400
    error = error_of(response)
    assert error["param"] == param
    assert error["code"] != "not_supported"


def test_a_deep_schema_is_refused(server: Running) -> None:
    deep: dict[str, Any] = {"type": "object"}
    for _ in range(100):
        deep = {"type": "object", "properties": {"a": deep}}
    response = server.post(CHAT, server.chat(tools=[tool(parameters=deep)]))
    assert str(error_of(response)["param"]).startswith("tools[0].function.parameters.properties.a")


@pytest.mark.parametrize(
    ("path", "wish", "param"),
    [
        (CHAT, {"functions": []}, "functions"),
        (CHAT, {"function_call": "auto"}, "function_call"),
        (CHAT, {"audio": {"voice": "x"}}, "audio"),
        (CHAT, {"modalities": ["text", "audio"]}, "modalities"),
        (CHAT, {"store": True}, "store"),
        (CHAT, {"reasoning_effort": "low"}, "reasoning_effort"),
        (COMPLETIONS, {"suffix": "the end"}, "suffix"),
    ],
)
def test_what_is_not_built_is_refused_by_name(server: Running, path: str, wish: dict[str, Any], param: str) -> None:
    body = server.chat(**wish) if path == CHAT else server.completion(**wish)
    response = server.post(path, body)
    assert response.status_code == 400
    assert (error_of(response)["param"], error_of(response)["code"]) == (param, "not_supported")


def test_what_changes_nothing_is_taken(server: Running) -> None:
    harmless: dict[str, Any] = {
        "tools": [],
        "tool_choice": "none",
        "parallel_tool_calls": False,
        "response_format": {"type": "text"},
        "modalities": ["text"],
        "store": False,
        "service_tier": "auto",
        "user": "somebody@example.com",
        "metadata": {"job": "7"},
        "safety_identifier": "abc",
        "prompt_cache_key": "k",
        "stop": None,
    }
    response = server.post(CHAT, server.chat(**harmless))
    assert response.status_code == 200, response.text
    assert response.json()["service_tier"] == "default"


@pytest.mark.parametrize("name", ["tokenize", "messages", "chat_template", "add_generation_prompt", "a b", "tools"])
def test_template_variables_cannot_replace_the_servers_own(server: Running, name: str) -> None:
    response = server.post(CHAT, server.chat(chat_template_kwargs={name: True}))
    assert error_of(response)["param"] == "chat_template_kwargs"


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"user": "a\r\nb"}, "user"),
        ({"user": "x" * 10_000}, "user"),
        ({"safety_identifier": "x" * 65}, "safety_identifier"),
        ({"metadata": {str(i): "x" for i in range(17)}}, "metadata"),
        ({"metadata": {"a": "x" * 513}}, "metadata.a"),
        ({"cache_salt": "a/b"}, "cache_salt"),
        ({"cache_salt": "a\u0000"}, "cache_salt"),
        ({"cache_salt": "😀"}, "cache_salt"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"include_obfuscation": 1}}, "stream_options.include_obfuscation"),
        ({"stream": 1}, "stream"),
        ({"continue_final_message": True, "add_generation_prompt": True}, "continue_final_message"),
    ],
)
def test_other_fields(server: Running, wrong: dict[str, Any], param: str) -> None:
    assert error_of(server.post(CHAT, server.chat(**wrong)))["param"] == param


def test_continuing_the_final_message(server: Running) -> None:
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Once upon"}]
    body = server.chat(messages=messages, continue_final_message=True)
    response = server.post(CHAT, body)
    assert response.status_code == 200, response.text
    opened = server.post(CHAT, server.chat(messages=messages)).json()
    assert response.json()["usage"]["prompt_tokens"] < opened["usage"]["prompt_tokens"]


def test_pairs_of_parameters_never_fail_the_server(server: Running) -> None:
    """A small all-pairs sweep: every two of these wishes together are served or refused, never a 5xx."""
    wishes: list[dict[str, Any]] = [
        {"temperature": 0},
        {"temperature": 2.0},
        {"top_p": 1e-9},
        {"top_k": 1},
        {"min_p": 1.0},
        {"typical_p": 0.01},
        {"repetition_penalty": 1e-3},
        {"presence_penalty": -2},
        {"frequency_penalty": 2},
        {"logit_bias": {"300": -100}},
        {"n": 3},
        {"seed": -1},
        {"stop": ["a"]},
        {"min_tokens": 4},
        {"ignore_eos": True},
        {"stop_token_ids": [5, 6]},
        {"bad_words": ["the"]},
        {"allowed_token_ids": [300, 301]},
        {"prompt_logprobs": 2},
        {"logprobs": True, "top_logprobs": 20},
        {"skip_special_tokens": False},
        {"priority": -5},
        {"stream": True},
    ]
    for one, other in itertools.combinations(wishes, 2):
        response = server.post(CHAT, {**server.chat(**one), **other})
        assert response.status_code in (200, 400), (one, other, response.text)
        if response.status_code == 200 and "stream" not in other:
            assert all(choice["finish_reason"] in ("stop", "length") for choice in response.json()["choices"])


def test_every_bound_in_the_schema_is_finite() -> None:
    for path, field in (*INTEGERS, *FLOATS):
        bounds = next(p for p in alternatives(properties(path)[field]) if p.get("type") in ("integer", "number"))
        low = bounds.get("minimum", bounds.get("exclusiveMinimum"))
        assert low is not None, field
        assert math.isfinite(low), field
        assert math.isfinite(bounds["maximum"]), field


FLOOD = 300_000


@pytest.mark.parametrize(
    "flood",
    [
        {"logit_bias": {f"{i}x": "z" for i in range(FLOOD)}},
        {"metadata": {str(i): 1 for i in range(FLOOD)}},
        {f"unknown{i}": 1 for i in range(FLOOD)},
        {"messages": [5] * FLOOD},
        {"messages": [{"role": "user", "content": "x"}] * FLOOD},
        {"messages": [{"role": "user", "content": [5] * 1000}] * 300},
        {"messages": [{"role": "assistant", "tool_calls": [1] * FLOOD}]},
        {"stop": [1] * FLOOD},
        {"tools": [1] * FLOOD},
        {"modalities": [1] * FLOOD},
        {"stop_token_ids": ["a"] * FLOOD},
    ],
    ids=lambda flood: next(iter(flood)),
)
def test_a_flood_of_mistakes_is_not_listed_one_by_one(flood: dict[str, Any]) -> None:
    """BI-08's spirit: what is refused must be cheap to refuse."""
    with pytest.raises(ValidationError) as caught:
        ChatRequest.model_validate(flood)
    assert caught.value.error_count() < 10
