"""Structured answers over the wire: the official client, a real model (AC-06), and every bad wish by name."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import statistics
import time
from typing import Any, Literal

import jsonschema
import openai
import pydantic
import pytest

from tests.server.conftest import REAL_MODEL
from tests.server.support import Running
from tokenmill.engine.faults import Fault, armed

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
MESSAGES: Any = [{"role": "user", "content": "A name and an age, please."}]
PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}


def json_schema(schema: Any, *, strict: bool = True) -> Any:
    return {"type": "json_schema", "json_schema": {"name": "it", "schema": schema, "strict": strict}}


@pytest.fixture
def client(real_url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{real_url}/v1", api_key="none", max_retries=0, timeout=60)


def ask(client: openai.OpenAI, **wishes: Any) -> str:
    answer = client.chat.completions.create(model=REAL_MODEL, messages=MESSAGES, max_tokens=100, **wishes)
    (choice, *_) = answer.choices
    assert choice.finish_reason == "stop" and choice.message.refusal is None
    return choice.message.content or ""


@pytest.mark.parametrize("strict", [True, False])
def test_a_schema_is_kept_to(client: openai.OpenAI, strict: bool) -> None:
    for seed in range(3):
        text = ask(client, response_format=json_schema(PERSON, strict=strict), seed=seed)
        jsonschema.validate(json.loads(text), PERSON)


def test_parse_brings_a_model_of_pydantic(client: openai.OpenAI) -> None:
    class Step(pydantic.BaseModel):
        kind: Literal["walk", "run"]
        minutes: pydantic.conint(ge=1, le=90)  # type: ignore[valid-type]

    class Plan(pydantic.BaseModel):
        done: bool
        steps: list[Step] = pydantic.Field(max_length=2)

    answer = client.chat.completions.parse(
        model=REAL_MODEL, messages=MESSAGES, response_format=Plan, max_tokens=120, seed=3
    )
    assert isinstance(answer.choices[0].message.parsed, Plan)


def test_an_answer_cut_by_its_length_says_so(client: openai.OpenAI) -> None:
    """It is the beginning of a valid answer, and ``finish_reason`` tells that it is no more than that."""
    answer = client.chat.completions.create(
        model=REAL_MODEL, messages=MESSAGES, response_format=json_schema(PERSON), max_tokens=3
    )
    assert answer.choices[0].finish_reason == "length"
    assert (answer.choices[0].message.content or "").startswith("{")


def test_a_stop_string_cuts_an_answer(client: openai.OpenAI) -> None:
    text = ask(client, response_format=json_schema(PERSON), stop=["age"], seed=1)
    assert "age" not in text and text.startswith("{")


def test_every_choice_keeps_to_it_streamed_or_not(client: openai.OpenAI) -> None:
    wishes: Any = {"model": REAL_MODEL, "messages": MESSAGES, "max_tokens": 100, "n": 3, "seed": 5}
    wishes["response_format"] = json_schema(PERSON)
    whole = [choice.message.content for choice in client.chat.completions.create(**wishes).choices]
    assert len(set(whole)) > 1
    streamed = ["", "", ""]
    for chunk in client.chat.completions.create(**wishes, stream=True):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
    assert streamed == whole
    for text in streamed:
        jsonschema.validate(json.loads(text), PERSON)


def test_log_probabilities_go_with_it(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=REAL_MODEL,
        messages=MESSAGES,
        max_tokens=60,
        logprobs=True,
        top_logprobs=2,
        extra_body={"structured_outputs": {"choice": ["red", "green"]}},
    )
    entries = answer.choices[0].logprobs.content  # type: ignore[union-attr]
    assert "".join(entry.token for entry in entries or []).startswith(answer.choices[0].message.content or "?")


EXTENSIONS: list[tuple[dict[str, Any], str]] = [
    ({"structured_outputs": {"regex": "[a-c]{2}-[0-9]{3}"}}, "[a-c]{2}-[0-9]{3}"),
    ({"structured_outputs": {"choice": ["red", "green"]}}, "red|green"),
    ({"structured_outputs": {"grammar": 'start: "x" /[0-9]{2}/'}}, "x[0-9]{2}"),
    ({"structured_outputs": {"json": {"enum": [1, 2, 3]}}}, "[123]"),
    ({"structured_outputs": {"json": '{"enum": ["as text"]}'}}, '"as text"'),
    ({"guided_json": {"const": None}}, "null"),
    ({"guided_regex": "^(ab){2}$"}, "abab"),
    ({"guided_choice": ["yes", "no"]}, "yes|no"),
    ({"guided_grammar": 'root ::= "a" [b-d] "e"'}, "a[b-d]e"),
]


@pytest.mark.parametrize(("wish", "pattern"), EXTENSIONS)
def test_the_extensions_on_chat_and_completions(client: openai.OpenAI, wish: dict[str, Any], pattern: str) -> None:
    assert re.fullmatch(pattern, ask(client, extra_body=wish))
    answer = client.completions.create(model=REAL_MODEL, prompt=["One:", "Two:"], max_tokens=60, extra_body=wish)
    assert len(answer.choices) == 2
    assert all(re.fullmatch(pattern, choice.text) for choice in answer.choices)


def test_json_object(client: openai.OpenAI) -> None:
    """A small model seldom ends one by itself: what there is must be the beginning of an object, without blanks."""
    for wish in ({"response_format": {"type": "json_object"}}, {"structured_outputs": {"json_object": True}}):
        answer = client.completions.create(model=REAL_MODEL, prompt="Once", max_tokens=30, extra_body=wish)
        text = answer.choices[0].text
        assert text.startswith("{") and not re.search(r"\s\s", text.split('"')[0])


def test_text_is_free(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=REAL_MODEL, messages=MESSAGES, max_tokens=8, temperature=0, response_format={"type": "text"}
    )
    plain = client.chat.completions.create(model=REAL_MODEL, messages=MESSAGES, max_tokens=8, temperature=0)
    assert answer.choices[0].message.content == plain.choices[0].message.content


def test_others_keep_their_pace_beside_many_grammars(client: openai.OpenAI, real_url: str) -> None:
    """BI-20, E12: thirty-two requests of different grammars beside a plain one. Its tokens are exactly those that it
    has alone, and its pace is that beside thirty-two plain ones; half of the grammars are hostile."""
    canary: Any = {"model": REAL_MODEL, "prompt": "Once upon a time", "max_tokens": 60, "temperature": 0}
    alone = client.completions.create(**canary, extra_body={"ignore_eos": True}).choices[0].text

    def wish(number: int) -> dict[str, Any]:
        if number % 2:
            return {"structured_outputs": {"regex": f"[a-z {number}]{{20,40}}"}}
        return {"structured_outputs": {"regex": f"([ab]*a[ab]{{30}}{number}|(\\w{{0,200}}){{0,200}})"}}

    async def beside(wishes: list[dict[str, Any]]) -> tuple[str, float]:
        async with openai.AsyncOpenAI(base_url=f"{real_url}/v1", api_key="none", max_retries=0, timeout=120) as many:

            async def other(extra: dict[str, Any]) -> str | None:
                try:
                    await many.completions.create(model=REAL_MODEL, prompt="There", max_tokens=30, extra_body=extra)
                except openai.APIStatusError as error:
                    return error.code
                return None

            tasks = [asyncio.create_task(other(extra)) for extra in wishes]
            text, times = "", []
            stream = await many.completions.create(**canary, stream=True, extra_body={"ignore_eos": True})
            async for chunk in stream:
                text += chunk.choices[0].text
                times.append(time.monotonic())
            assert {*await asyncio.gather(*tasks)} <= {None, "grammar_too_complex", "grammar_failed"}
        gaps = [after - before for before, after in itertools.pairwise(times)]
        return text, statistics.median(gaps)

    plain_text, plain_s = asyncio.run(beside([{"ignore_eos": True}] * 32))
    text, beside_s = asyncio.run(beside([wish(number) for number in range(32)]))
    assert text == plain_text == alone
    assert beside_s < 2.5 * plain_s + 0.01


def test_a_grammar_that_breaks_on_the_way_ends_its_request_alone(client: openai.OpenAI) -> None:
    """FT-09: at ``grammar.advance``, in the thread that looks ahead; a plain request beside it is not touched."""
    plain: Any = {"model": REAL_MODEL, "prompt": "Once upon a time", "max_tokens": 24, "temperature": 0}
    alone = client.completions.create(**plain).choices[0].text

    async def both() -> tuple[str, BaseException]:
        base_url = str(client.base_url)
        async with openai.AsyncOpenAI(base_url=base_url, api_key="none", max_retries=0, timeout=60) as many:
            wish = {"guided_regex": "[a-z ]{40,60}"}
            broken = many.completions.create(model=REAL_MODEL, prompt="There", max_tokens=30, extra_body=wish)
            found = await asyncio.gather(many.completions.create(**plain), broken, return_exceptions=True)
        assert not isinstance(found[0], BaseException) and isinstance(found[1], BaseException)
        return found[0].choices[0].text, found[1]

    with armed(Fault("grammar.advance", after=5)):
        text, error = asyncio.run(both())
    assert text == alone
    assert isinstance(error, openai.APIStatusError) and (error.status_code, error.code) == (500, "grammar_failed")
    assert client.completions.create(**plain).choices[0].text == alone


def test_a_compiler_that_breaks_ends_its_request_alone(server: Running) -> None:
    """FT-09: at ``grammar.compile``: 500 without its text, not remembered, and nobody else hears of it."""
    body = server.completion(guided_regex="a compiler that breaks")
    with armed(Fault("grammar.compile", times=1)):
        response = server.post(COMPLETIONS, body)
        assert response.status_code == 500 and response.json()["error"]["type"] == "server_error"
        assert "injected" not in response.text
        assert server.post(COMPLETIONS, server.completion()).status_code == 200
        assert server.post(COMPLETIONS, body).status_code == 200


# ---- what cannot be done is told by name --------------------------------------------------------------------------

BAD: list[tuple[dict[str, Any], str, str]] = [
    ({"response_format": json_schema({"type": "strnig"})}, "response_format.json_schema.schema.type", "invalid_schema"),
    (
        {"response_format": json_schema({"properties": {"a": {"not": {}}}})},
        "response_format.json_schema.schema.properties.a.not",
        "unsupported_schema",
    ),
    (
        {"response_format": json_schema({"$ref": "http://169.254.169.254/x"})},
        "response_format.json_schema.schema.$ref",
        "invalid_schema",
    ),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "missing_required_parameter"),
    (
        {"response_format": {"type": "json_object", "json_schema": {"name": "x"}}},
        "response_format.json_schema",
        "invalid_value",
    ),
    ({"response_format": {"type": "xml"}}, "response_format.type", "invalid_value"),
    ({"structured_outputs": {}}, "structured_outputs", "invalid_value"),
    ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs", "invalid_value"),
    ({"structured_outputs": {"regex": 7}}, "structured_outputs.regex", "invalid_type"),
    ({"structured_outputs": {"regexp": "a"}}, "structured_outputs.regexp", "unknown_parameter"),
    ({"structured_outputs": {"json_object": False}}, "structured_outputs.json_object", "invalid_value"),
    ({"structured_outputs": {"regex": "(a"}}, "structured_outputs.regex", "invalid_grammar"),
    ({"structured_outputs": {"regex": "(a{9999}){9999}"}}, "structured_outputs.regex", "grammar_too_complex"),
    ({"structured_outputs": {"json": "{"}}, "structured_outputs.json", "invalid_schema"),
    ({"structured_outputs": {"grammar": "start: nothing"}}, "structured_outputs.grammar", "invalid_grammar"),
    ({"guided_choice": []}, "guided_choice", "invalid_value"),
    ({"guided_json": "[1]"}, "guided_json", "invalid_schema"),
    ({"guided_regex": "a", "guided_choice": ["b"]}, "guided_choice", "invalid_value"),
    ({"response_format": {"type": "json_object"}, "guided_regex": "a"}, "guided_regex", "invalid_value"),
    ({"guided_regex": "a", "ignore_eos": True}, "ignore_eos", "invalid_value"),
]  # fmt: skip


@pytest.mark.parametrize(("wish", "param", "code"), BAD)
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_a_bad_wish_is_told_by_name(server: Running, path: str, wish: dict[str, Any], param: str, code: str) -> None:
    body = server.chat(**wish) if path == CHAT else server.completion(**wish)
    response = server.post(path, body)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert (error["param"], error["code"], error["type"]) == (param, code, "invalid_request_error")
    assert error["message"]


def test_text_beside_another_form_is_fine(server: Running) -> None:
    response = server.post(CHAT, server.chat(response_format={"type": "text"}, guided_choice=["a"]))
    assert response.status_code == 200


def test_how_often_grammars_were_found_is_counted(server: Running) -> None:
    """BI-21."""
    body = server.completion(guided_regex="counted [0-9]")
    before = server.metric("tokenmill_grammar_hits_total")
    for _ in range(3):
        assert server.post(COMPLETIONS, body).status_code == 200
    assert server.metric("tokenmill_grammar_hits_total") >= before + 2
    assert server.metric("tokenmill_grammar_cache_bytes") > 0
