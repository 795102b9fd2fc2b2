"""langchain-openai: chats, streams, batches, structured output, tools, embeddings."""

from __future__ import annotations

import asyncio
from typing import Literal

import pytest
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings
from pydantic import BaseModel, ConfigDict, Field

from tests.clients.conftest import MODEL

ASK = [HumanMessage("Tell me a story about a fox.")]


class Animal(BaseModel):
    """An animal in a story."""

    model_config = ConfigDict(extra="forbid")

    kind: Literal["fox", "bear", "owl"]
    age: int = Field(ge=0, le=20)
    brave: bool


@tool
def find_animal(kind: Literal["fox", "bear", "owl"]) -> str:
    """Where an animal lives."""
    return f"the {kind} lives in the wood"


@pytest.fixture
def chat(v1: str) -> ChatOpenAI:
    return ChatOpenAI(base_url=v1, api_key="none", model=MODEL, temperature=0, max_tokens=24, max_retries=0)


def test_the_same_text_whole_streamed_and_asynchronously(chat: ChatOpenAI) -> None:
    whole = chat.invoke(ASK)
    assert isinstance(whole.content, str) and whole.content
    assert whole.usage_metadata is not None and whole.usage_metadata["output_tokens"] == 24
    assert whole.response_metadata["finish_reason"] == "length"
    assert "".join(str(chunk.content) for chunk in chat.stream(ASK)) == whole.content
    assert asyncio.run(chat.ainvoke(ASK)).content == whole.content
    assert [each.content for each in chat.batch([ASK] * 4)] == [whole.content] * 4


def test_completions(v1: str) -> None:
    answer = OpenAI(base_url=v1, api_key="none", model=MODEL, temperature=0, max_tokens=12, max_retries=0)
    assert answer.invoke("Once upon a time")


def test_structured_output(chat: ChatOpenAI) -> None:
    longer = chat.model_copy(update={"max_tokens": 100})
    for method in ("json_schema", "function_calling"):
        made = longer.with_structured_output(Animal, method=method).invoke("A fox, please.")
        assert isinstance(made, Animal)


def test_tools_there_and_back(chat: ChatOpenAI) -> None:
    chat = chat.model_copy(update={"max_tokens": 100})
    asked = chat.bind_tools([find_animal], tool_choice="any", parallel_tool_calls=False, strict=True).invoke(ASK)
    assert isinstance(asked, AIMessage)
    (call,) = asked.tool_calls
    assert call["name"] == "find_animal"
    found = find_animal.invoke(call)
    assert isinstance(found, ToolMessage)
    assert chat.bind_tools([find_animal]).invoke([*ASK, asked, found]).content is not None


def test_embeddings(v1: str) -> None:
    embed = OpenAIEmbeddings(base_url=v1, api_key="none", model=MODEL, check_embedding_ctx_length=False)
    one, two, again = embed.embed_documents(["A fox.", "The owl flew over the wood.", "A fox."])
    assert one == again != two
    assert sum(x * x for x in one) == pytest.approx(1, rel=1e-3)
    assert embed.embed_query("A fox.") == pytest.approx(one)
