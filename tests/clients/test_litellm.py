"""litellm: the router that many put before their servers."""

from __future__ import annotations

import json

import litellm
import pytest

from tests.clients.conftest import MODEL

ASK = [{"role": "user", "content": "Tell me a story about a fox."}]
TOOL = {
    "type": "function",
    "function": {
        "name": "find_animal",
        "description": "Where an animal lives.",
        "parameters": {
            "type": "object",
            "properties": {"kind": {"type": "string", "enum": ["fox", "bear"]}},
            "required": ["kind"],
            "additionalProperties": False,
        },
    },
}


@pytest.fixture
def wishes(v1: str) -> dict[str, object]:
    return {"model": f"openai/{MODEL}", "api_base": v1, "api_key": "none", "temperature": 0, "num_retries": 0}


def test_chat_whole_and_streamed(wishes: dict[str, object]) -> None:
    whole = litellm.completion(messages=ASK, max_tokens=24, **wishes)
    text = whole.choices[0].message.content
    assert text and whole.usage.completion_tokens == 24
    chunks = list(litellm.completion(messages=ASK, max_tokens=24, stream=True, **wishes))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text
    assert litellm.stream_chunk_builder(chunks).choices[0].message.content == text


def test_tools(wishes: dict[str, object]) -> None:
    answer = litellm.completion(
        messages=ASK, tools=[TOOL], tool_choice="required", parallel_tool_calls=False, max_tokens=64, **wishes
    )
    (call,) = answer.choices[0].message.tool_calls
    assert call.function.name == "find_animal"
    assert json.loads(call.function.arguments)["kind"] in ("fox", "bear")


def test_json_schema(wishes: dict[str, object]) -> None:
    schema = TOOL["function"]["parameters"]  # type: ignore[index]
    wanted = {"type": "json_schema", "json_schema": {"name": "animal", "schema": schema, "strict": True}}
    answer = litellm.completion(messages=ASK, response_format=wanted, max_tokens=64, **wishes)
    assert json.loads(answer.choices[0].message.content)["kind"] in ("fox", "bear")


def test_text_completion_embedding_and_responses(wishes: dict[str, object], v1: str) -> None:
    assert litellm.text_completion(prompt="Once upon", max_tokens=8, **wishes).choices[0].text
    embedding = litellm.embedding(model=f"openai/{MODEL}", input=["A fox."], api_base=v1, api_key="none")
    assert len(embedding.data[0]["embedding"]) == 256
    answer = litellm.responses(input="Tell me a story.", max_output_tokens=16, **wishes)
    assert answer.usage.output_tokens == 16


def test_errors_have_the_right_class(wishes: dict[str, object]) -> None:
    with pytest.raises(litellm.NotFoundError, match="does not exist"):
        litellm.completion(messages=ASK, **{**wishes, "model": "openai/nobody"})
    with pytest.raises(litellm.BadRequestError, match="temperature"):
        litellm.completion(messages=ASK, **{**wishes, "temperature": 9})
