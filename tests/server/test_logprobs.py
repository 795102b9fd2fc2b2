"""CC-17: log-probabilities line up with tokens and text, on a real model whose greedy choice can be checked."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.server.support import events
from tokenmill.core.engine_config import EngineConfig
from tokenmill.server.app import create_app
from tokenmill.server.logprobs import FLOOR, finite
from tokenmill.server.serve import Server, address_of, bind
from tokenmill.server.settings import ServerSettings

launch = pytest.importorskip("tokenmill.launch")
MODEL = "story-draft"
TEXT = "Once upon a time, a café 😀 stood"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """The smaller built-in model behind the real server."""
    launched = launch.build(EngineConfig.from_options(model=MODEL, num_blocks=128, max_context=256, num_threads=1))
    service = launched.service()
    settings = ServerSettings(port=0)
    sock = bind(settings)
    ready = threading.Event()
    server = Server(create_app(service, settings), sock, lambda address: ready.set())

    async def main() -> None:
        await service.start()
        await server.run_until_stopped()
        await service.close()

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    assert ready.wait(20)
    yield address_of(sock)
    server.handle_exit(15, None)
    thread.join(20)


def complete(url: str, **wishes: Any) -> dict[str, Any]:
    response = httpx.post(f"{url}/v1/completions", json={"model": MODEL, "temperature": 0, **wishes}, timeout=60)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def check(choice: dict[str, Any], num_tokens: int) -> None:
    """Everything that must hold between the lists and the text."""
    logprobs = choice["logprobs"]
    assert {len(values) for values in logprobs.values()} == {num_tokens}
    assert logprobs["token_logprobs"][0] is None
    assert logprobs["top_logprobs"][0] is None
    assert all(-1e4 < logprob <= 0 for logprob in logprobs["token_logprobs"][1:])
    offsets, text = logprobs["text_offset"], choice["text"]
    assert offsets == sorted(offsets)
    for i, (token, offset) in enumerate(zip(logprobs["tokens"], offsets, strict=True)):
        if "\ufffd" not in token and not token.startswith("<|"):
            assert text[offset : offset + len(token)] == token, i


@pytest.mark.parametrize("max_tokens", [0, 1, 8])
@pytest.mark.parametrize("as_tokens", [False, True])
def test_cc17_prompt_and_answer_line_up(url: str, max_tokens: int, as_tokens: bool) -> None:
    """CC-17: with tokens that hold parts of a character."""
    tokens = httpx.post(f"{url}/tokenize", json={"prompt": TEXT}).json()["tokens"]
    prompt = tokens if as_tokens else TEXT
    answer = complete(url, prompt=prompt, echo=True, logprobs=3, max_tokens=max_tokens, ignore_eos=True)
    choice = answer["choices"][0]
    assert choice["text"].startswith(TEXT)
    assert answer["usage"]["completion_tokens"] == max_tokens
    check(choice, len(tokens) + max_tokens)


def test_cc17_a_greedy_token_is_the_likeliest_bit_for_bit(url: str) -> None:
    """CC-17: lm-eval asks for equality, not for nearness; as a prompt and as an answer."""
    answer = complete(url, prompt=TEXT, logprobs=5, max_tokens=16)["choices"][0]
    for logprob, top in zip(answer["logprobs"]["token_logprobs"], answer["logprobs"]["top_logprobs"], strict=True):
        assert logprob == max(top.values())
    again = complete(url, prompt=TEXT + answer["text"], echo=True, logprobs=1, max_tokens=1)["choices"][0]["logprobs"]
    greedy = [
        logprob == max(top.values())
        for logprob, top in zip(again["token_logprobs"][1:], again["top_logprobs"][1:], strict=True)
    ]
    assert greedy[-16:] == [True] * 16
    assert not all(greedy), "a human's text is not all greedy"


def test_cc17_list_prompts_keep_their_own(url: str) -> None:
    """CC-17."""
    prompts = [TEXT, "The dog", "A"]
    together = complete(url, prompt=prompts, echo=True, logprobs=2, max_tokens=2)["choices"]
    for prompt, choice in zip(prompts, together, strict=True):
        alone = complete(url, prompt=prompt, echo=True, logprobs=2, max_tokens=2)["choices"][0]
        assert alone["logprobs"] == choice["logprobs"]
        assert alone["text"] == choice["text"]


def test_cc17_streamed_with_echo_is_the_same(url: str) -> None:
    """CC-17."""
    wishes = {"prompt": TEXT, "echo": True, "logprobs": 2, "max_tokens": 6}
    whole = complete(url, **wishes)["choices"][0]
    body = {"model": MODEL, "temperature": 0, "stream": True, **wishes}
    *chunks, _ = events(httpx.post(f"{url}/v1/completions", json=body, timeout=60).text)
    for name, values in whole["logprobs"].items():
        assert [v for c in chunks for k in c["choices"] if k["logprobs"] for v in k["logprobs"][name]] == values, name


def test_cc17_a_distribution_sums_to_one(url: str) -> None:
    """The probabilities reported are probabilities: twenty of them stay below one, and descend."""
    messages = [{"role": "user", "content": "Tell me about a dog."}]
    body = {"model": MODEL, "messages": messages, "max_tokens": 8, "logprobs": True, "top_logprobs": 20}
    content = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60).json()["choices"][0]["logprobs"][
        "content"
    ]
    for entry in content:
        values = [top["logprob"] for top in entry["top_logprobs"]]
        assert values == sorted(values, reverse=True)
        assert sum(map(math.exp, values)) <= 1 + 1e-5


def test_cc17_prompt_log_probabilities_agree_with_echo(url: str) -> None:
    """The extension's format says the same as OpenAI's."""
    echoed = complete(url, prompt=TEXT, echo=True, logprobs=0, max_tokens=1)["choices"][0]["logprobs"]
    choice = complete(url, prompt=TEXT, prompt_logprobs=1, max_tokens=1)["choices"][0]
    tokens = httpx.post(f"{url}/tokenize", json={"prompt": TEXT}).json()["tokens"]
    listed = choice["prompt_logprobs"]
    assert listed[0] is None
    found = [entry[str(token)]["logprob"] for entry, token in zip(listed[1:], tokens[1:], strict=True)]
    assert found == echoed["token_logprobs"][1 : len(tokens)]
    assert all(1 in {value["rank"] for value in entry.values()} for entry in listed[1:])


def test_nothing_is_below_the_floor() -> None:
    """NU-06: JSON has no minus infinity."""
    assert finite(-math.inf) == FLOOR
    assert finite(-1.5) == -1.5
