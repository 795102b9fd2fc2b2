"""instructor: models of pydantic, by tools and by schemas."""

from __future__ import annotations

from typing import Literal

import instructor
import pytest
from openai import OpenAI
from pydantic import BaseModel, ConfigDict, Field

from tests.clients.conftest import MODEL


class Friend(BaseModel):
    model_config = ConfigDict(extra="forbid")

    kind: Literal["mouse", "frog"]
    steps: int = Field(ge=1, le=9)


class Animal(BaseModel):
    model_config = ConfigDict(extra="forbid")

    kind: Literal["fox", "bear", "owl"]
    age: int = Field(ge=0, le=20)
    friends: list[Friend] = Field(min_length=1, max_length=2)


@pytest.mark.parametrize("mode", ["TOOLS", "TOOLS_STRICT", "JSON_SCHEMA"])
def test_a_model_is_made_at_the_first_try(mode: str, v1: str) -> None:
    wishes = {} if mode == "JSON_SCHEMA" else {"parallel_tool_calls": False}  # a model this small would go on and on
    client = instructor.from_openai(OpenAI(base_url=v1, api_key="none", max_retries=0), mode=instructor.Mode[mode])
    made = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "A fox and a frog."}],
        response_model=Animal,
        max_retries=0,
        max_tokens=200,
        temperature=0,
        **wishes,
    )
    assert isinstance(made, Animal)
