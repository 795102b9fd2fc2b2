"""The official client, the real server, a real model: the whole way of a request, nothing faked."""

from __future__ import annotations

import asyncio
import time

import httpx
import openai
import pytest

from tests.server.conftest import REAL_MODEL

MESSAGES = [{"role": "user", "content": "Tell me a story about a dog."}]


@pytest.fixture
def client(real_url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{real_url}/v1", api_key="none", max_retries=0, timeout=60)


def free_blocks(real_url: str) -> tuple[float, float]:
    """(not held by requests, all)."""
    lines = dict(
        line.rsplit(" ", 1) for line in httpx.get(f"{real_url}/metrics").text.splitlines() if not line.startswith("#")
    )
    blocks = {name: float(lines[f"tokenmill_kv_blocks{name}"]) for name in ("", "_free", "_cached")}
    return blocks["_free"] + blocks["_cached"], blocks[""]


def test_greedy_is_the_same_streamed_cached_and_in_company(client: openai.OpenAI, real_url: str) -> None:
    wishes = {"model": REAL_MODEL, "messages": MESSAGES, "max_tokens": 24, "temperature": 0}
    whole = client.chat.completions.create(**wishes)
    again = client.chat.completions.create(**wishes)
    streamed = client.chat.completions.create(**wishes, stream=True)
    content = whole.choices[0].message.content
    assert content
    assert again.choices[0].message.content == content
    assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed) == content

    async def in_company() -> list[str | None]:
        async with openai.AsyncOpenAI(base_url=f"{real_url}/v1", api_key="none", max_retries=0) as many:
            others = [{**wishes, "temperature": 1.0, "seed": seed} for seed in range(6)]
            answers = await asyncio.gather(*(many.chat.completions.create(**w) for w in (wishes, *others, wishes)))
        return [answer.choices[0].message.content for answer in answers]

    company = asyncio.run(in_company())
    assert company[0] == company[-1] == content


def test_a_seed_draws_the_same_again(client: openai.OpenAI) -> None:
    wishes = {"model": REAL_MODEL, "messages": MESSAGES, "max_tokens": 16, "seed": 42, "n": 2}
    first, second = (client.chat.completions.create(**wishes) for _ in range(2))
    assert [c.message.content for c in first.choices] == [c.message.content for c in second.choices]
    assert first.choices[0].message.content != first.choices[1].message.content


def test_a_stream_that_is_left_gives_its_blocks_back(client: openai.OpenAI, real_url: str) -> None:
    """ST-01, ST-02: within half a second."""
    wishes = {"model": REAL_MODEL, "messages": MESSAGES, "max_tokens": 200, "extra_body": {"ignore_eos": True}}
    streams = [client.chat.completions.create(**wishes, stream=True) for _ in range(4)]
    for stream in streams:
        next(iter(stream))
        stream.close()
    started_s = time.monotonic()
    while free_blocks(real_url)[0] < free_blocks(real_url)[1]:
        assert time.monotonic() - started_s < 2.0
    assert time.monotonic() - started_s < 1.0  # the promise is half a second; asking takes time too


def test_banning_the_whole_vocabulary_fails_that_request_alone(client: openai.OpenAI) -> None:
    """BI-12, AC-04: an error, never a random token; the next request is served."""
    wishes = {"model": REAL_MODEL, "prompt": "Once", "max_tokens": 4}
    with pytest.raises(openai.APIStatusError) as caught:
        client.completions.create(**wishes, logit_bias={"300": -100}, extra_body={"allowed_token_ids": [300]})
    assert caught.value.status_code in (400, 500)
    assert caught.value.code in ("numerical_error", "invalid_value")
    assert client.completions.create(**wishes).choices[0].finish_reason in ("stop", "length")


def test_allowed_tokens_and_bans_are_kept(client: openai.OpenAI) -> None:
    wishes = {"model": REAL_MODEL, "prompt": "Once", "max_tokens": 6, "logprobs": 1}
    only = client.completions.create(**wishes, extra_body={"allowed_token_ids": [300, 301]})
    assert only.choices[0].logprobs is not None
    assert only.choices[0].logprobs.tokens is not None
    assert len(set(only.choices[0].logprobs.tokens)) <= 2


def test_the_account_adds_up(client: openai.OpenAI, real_url: str) -> None:
    answer = client.chat.completions.create(model=REAL_MODEL, messages=MESSAGES, max_tokens=8)
    account = httpx.get(f"{real_url}/v1/requests/{answer.id}").json()
    assert sum(cause["seconds"] for cause in account["causes"]) == pytest.approx(account["total_s"])
