"""The official client against the real server: what an application sees."""

from __future__ import annotations

import asyncio

import openai
import pytest

from tests.server.service import MODEL
from tests.server.support import Running

MESSAGES = [{"role": "user", "content": "Tell me a story."}]


def test_chat(server: Running) -> None:
    answer = server.client().chat.completions.create(model=MODEL, messages=MESSAGES, max_completion_tokens=6)
    assert answer.object == "chat.completion"
    assert answer.id.startswith("chatcmpl-")
    assert answer._request_id == "req_" + answer.id.removeprefix("chatcmpl-")
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 6
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 6


def test_streamed_chat_is_the_whole_one_in_pieces(server: Running) -> None:
    client = server.client()
    wishes = {"model": MODEL, "messages": MESSAGES, "max_tokens": 12, "seed": 5}
    whole = client.chat.completions.create(**wishes)
    chunks = list(client.chat.completions.create(**wishes, stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert all(chunk.choices[0].delta.role is None for chunk in chunks[1:])
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content
    assert [c.choices[0].finish_reason for c in chunks if c.choices[0].finish_reason] == ["length"]
    assert len({chunk.id for chunk in chunks}) == 1


def test_async_client_with_many_requests_at_once(server: Running) -> None:
    async def ask(client: openai.AsyncOpenAI, seed: int) -> tuple[str, str]:
        wishes = {"model": MODEL, "messages": MESSAGES, "max_tokens": 8, "seed": seed}
        whole = await client.chat.completions.create(**wishes)
        stream = await client.chat.completions.create(**wishes, stream=True)
        parts = [chunk.choices[0].delta.content or "" async for chunk in stream]
        return whole.choices[0].message.content or "", "".join(parts)

    async def ask_all() -> list[tuple[str, str]]:
        async with server.async_client() as client:
            return await asyncio.gather(*(ask(client, seed) for seed in range(12)))

    answers = asyncio.run(ask_all())
    assert all(whole == streamed for whole, streamed in answers)
    assert len({whole for whole, _ in answers}) == 12


def test_stream_helper_accumulates(server: Running) -> None:
    wishes = {"model": MODEL, "messages": MESSAGES, "max_tokens": 5, "seed": 2}
    client = server.client()
    with client.chat.completions.stream(**wishes) as stream:
        for _ in stream:
            pass
        content = stream.current_completion_snapshot.choices[0].message.content
    assert content == client.chat.completions.create(**wishes).choices[0].message.content


def test_leaving_a_stream_early_frees_it(server: Running) -> None:
    stream = server.client().chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=400, stream=True)
    next(iter(stream))
    stream.close()
    assert server.wait_idle(0.5) < 0.5


def test_seed_decides_and_choices_continue_it(server: Running) -> None:
    """Choice ``i`` draws as a request with seed + i would (core/params.py)."""
    client = server.client()

    def texts(**more: int) -> list[str]:
        answer = client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=8, **more)
        return [choice.message.content or "" for choice in answer.choices]

    assert texts(seed=7) == texts(seed=7)
    assert texts(seed=7, n=3) == texts(seed=7) + texts(seed=8) + texts(seed=9)
    assert texts() != texts(), "without a seed, each request draws its own"


def test_chat_logprobs(server: Running) -> None:
    answer = server.client().chat.completions.create(
        model=MODEL, messages=MESSAGES, max_tokens=5, logprobs=True, top_logprobs=3
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert len(logprobs.content) == 5
    assert all(len(entry.top_logprobs) == 3 for entry in logprobs.content)
    joined = b"".join(bytes(entry.bytes or []) for entry in logprobs.content)
    assert joined.decode(errors="replace") == answer.choices[0].message.content


def test_completions_of_text_and_tokens(server: Running) -> None:
    client = server.client()
    tokens = server.post("/tokenize", {"prompt": "Once upon a time"}).json()["tokens"]
    by_text = client.completions.create(model=MODEL, prompt="Once upon a time", max_tokens=6, seed=1)
    by_tokens = client.completions.create(model=MODEL, prompt=tokens, max_tokens=6, seed=1)
    assert by_text.choices[0].text == by_tokens.choices[0].text
    streamed = client.completions.create(model=MODEL, prompt=tokens, max_tokens=6, seed=1, stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed) == by_text.choices[0].text


def test_completions_default_to_sixteen_tokens(server: Running) -> None:
    answer = server.client().completions.create(model=MODEL, prompt="Once")
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 16


def test_many_prompts_keep_their_order(server: Running) -> None:
    client = server.client()
    prompts = ["One fish", "Two fish", "Red fish"]
    answer = client.completions.create(model=MODEL, prompt=prompts, max_tokens=4, seed=3, n=2)
    assert [choice.index for choice in answer.choices] == list(range(6))
    for i, prompt in enumerate(prompts):
        alone = client.completions.create(model=MODEL, prompt=prompt, max_tokens=4, seed=3, n=2)
        assert [c.text for c in alone.choices] == [c.text for c in answer.choices[2 * i : 2 * i + 2]]


def test_best_of_returns_n_of_them(server: Running) -> None:
    answer = server.client().completions.create(model=MODEL, prompt="Once", max_tokens=4, best_of=5, n=2, seed=1)
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 20
    assert answer.choices[0].logprobs is None


def test_stop_strings(server: Running) -> None:
    client = server.client()
    wishes = {"model": MODEL, "prompt": "Once", "max_tokens": 20, "seed": 4}
    text = client.completions.create(**wishes).choices[0].text
    stop = text[len(text) // 2 :][:3]
    choice = client.completions.create(**wishes, stop=[stop]).choices[0]
    assert choice.text == text[: text.index(stop)]
    assert choice.finish_reason == "stop"
    assert choice.model_extra is not None
    assert choice.model_extra["stop_reason"] == stop
    kept = client.completions.create(**wishes, stop=stop, extra_body={"include_stop_str_in_output": True})
    assert kept.choices[0].text == text[: text.index(stop)] + stop


def test_extensions_go_through_extra_body(server: Running) -> None:
    answer = server.client().chat.completions.create(
        model=MODEL,
        messages=MESSAGES,
        max_tokens=3,
        extra_body={"top_k": 5, "min_p": 0.1, "ignore_eos": True, "min_tokens": 2, "prompt_logprobs": 1},
    )
    assert answer.model_extra is not None
    assert answer.usage is not None
    assert len(answer.model_extra["prompt_logprobs"]) == answer.usage.prompt_tokens
    assert answer.model_extra["prompt_logprobs"][0] is None


def test_content_parts_and_roles(server: Running) -> None:
    parts = [{"type": "text", "text": "Tell me "}, {"type": "text", "text": "a story."}]
    client = server.client()
    wishes = {"model": MODEL, "max_tokens": 4, "seed": 1}
    as_parts = client.chat.completions.create(messages=[{"role": "user", "content": parts}], **wishes)
    as_text = client.chat.completions.create(messages=MESSAGES, **wishes)
    assert as_parts.choices[0].message.content == as_text.choices[0].message.content


def test_timing_and_cached_tokens(server: Running) -> None:
    client = server.client()
    messages = [{"role": "user", "content": "A long enough beginning to fill some blocks of the cache. " * 4}]
    first = client.chat.completions.create(model=MODEL, messages=messages, max_tokens=4)
    again = client.chat.completions.create(model=MODEL, messages=messages, max_tokens=4)
    assert first.usage is not None
    assert again.usage is not None
    assert again.usage.prompt_tokens_details is not None
    assert 0 < (again.usage.prompt_tokens_details.cached_tokens or 0) < again.usage.prompt_tokens
    salted = client.chat.completions.create(
        model=MODEL, messages=messages, max_tokens=4, extra_body={"cache_salt": "mine"}
    )
    assert salted.usage is not None
    assert salted.usage.prompt_tokens_details is not None
    assert salted.usage.prompt_tokens_details.cached_tokens == 0
    assert again.model_extra is not None
    timing = again.model_extra["timing"]
    assert timing["total_s"] == pytest.approx(timing["queue_s"] + timing["prefill_s"] + timing["decode_s"])
    assert 0 < timing["ttft_s"] < timing["total_s"] + 1
    assert timing["chunks"] >= 1
    assert timing["preemptions"] == 0


def test_the_account_of_a_request_adds_up(server: Running) -> None:
    answer = server.client().chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=6)
    by_answer_id = server.get(f"/v1/requests/{answer.id}").json()
    assert by_answer_id == server.get(f"/v1/requests/{answer._request_id}").json()
    assert sum(cause["seconds"] for cause in by_answer_id["causes"]) == pytest.approx(by_answer_id["total_s"])
    assert answer.model_extra is not None
    assert answer.model_extra["timing"]["total_s"] == pytest.approx(by_answer_id["total_s"])


def test_models(server: Running) -> None:
    """AC-12."""
    client = server.client()
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL  # the client encodes the slash
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("nobody/none")
    assert caught.value.code == "model_not_found"


@pytest.mark.parametrize(
    ("wrong", "error", "param", "code"),
    [
        ({"model": "gpt-nobody"}, openai.NotFoundError, "model", "model_not_found"),
        ({"temperature": 3.0}, openai.BadRequestError, "temperature", "invalid_value"),
        ({"messages": []}, openai.BadRequestError, "messages", "invalid_value"),
        ({"max_tokens": 100000}, openai.BadRequestError, "max_tokens", "context_length_exceeded"),
        ({"extra_body": {"temprature": 1}}, openai.BadRequestError, "temprature", "unknown_parameter"),
    ],
)
def test_errors_reach_the_application(
    server: Running, wrong: dict[str, object], error: type[openai.APIStatusError], param: str, code: str
) -> None:
    wishes: dict[str, object] = {"model": MODEL, "messages": MESSAGES, "max_tokens": 50, **wrong}
    with pytest.raises(error) as caught:
        server.client().chat.completions.create(**wishes)  # type: ignore[call-overload]
    assert (caught.value.param, caught.value.code) == (param, code)
    assert str(caught.value.request_id).startswith("req_")


def test_a_deadline_passed_is_the_servers_failure(server: Running) -> None:
    """AC-04: a timeout is an error, not a finish reason."""
    with pytest.raises(openai.InternalServerError) as caught:
        server.client().chat.completions.create(
            model=MODEL, messages=MESSAGES, max_tokens=400, extra_body={"timeout_s": 0.05}
        )
    assert caught.value.status_code == 504
    assert caught.value.code == "deadline_exceeded"
