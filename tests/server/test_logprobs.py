"""CC-17: log-probabilities line up with tokens and text, on a real model whose greedy choice can be checked."""

from __future__ import annotations

import math
from typing import Any

import httpx
import pytest

from tests.server.conftest import REAL_MODEL
from tests.server.support import events
from tokenmill.server.logprobs import FLOOR, finite

TEXT = "Once upon a time, a café 😀 stood"


def complete(real_url: str, **wishes: Any) -> dict[str, Any]:
    response = httpx.post(
        f"{real_url}/v1/completions", json={"model": REAL_MODEL, "temperature": 0, **wishes}, timeout=60
    )
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
def test_cc17_prompt_and_answer_line_up(real_url: str, max_tokens: int, as_tokens: bool) -> None:
    """CC-17: with tokens that hold parts of a character."""
    tokens = httpx.post(f"{real_url}/tokenize", json={"prompt": TEXT}).json()["tokens"]
    prompt = tokens if as_tokens else TEXT
    answer = complete(real_url, prompt=prompt, echo=True, logprobs=3, max_tokens=max_tokens, ignore_eos=True)
    choice = answer["choices"][0]
    assert choice["text"].startswith(TEXT)
    assert answer["usage"]["completion_tokens"] == max_tokens
    check(choice, len(tokens) + max_tokens)


def test_cc17_a_greedy_token_is_the_likeliest_bit_for_bit(real_url: str) -> None:
    """CC-17: lm-eval asks for equality, not for nearness; as a prompt and as an answer."""
    answer = complete(real_url, prompt=TEXT, logprobs=5, max_tokens=16)["choices"][0]
    for logprob, top in zip(answer["logprobs"]["token_logprobs"], answer["logprobs"]["top_logprobs"], strict=True):
        assert logprob == max(top.values())
    again = complete(real_url, prompt=TEXT + answer["text"], echo=True, logprobs=1, max_tokens=1)["choices"][0][
        "logprobs"
    ]
    greedy = [
        logprob == max(top.values())
        for logprob, top in zip(again["token_logprobs"][1:], again["top_logprobs"][1:], strict=True)
    ]
    assert greedy[-16:] == [True] * 16
    assert not all(greedy), "a human's text is not all greedy"


def test_cc17_list_prompts_keep_their_own(real_url: str) -> None:
    """CC-17."""
    prompts = [TEXT, "The dog", "A"]
    together = complete(real_url, prompt=prompts, echo=True, logprobs=2, max_tokens=2)["choices"]
    for prompt, choice in zip(prompts, together, strict=True):
        alone = complete(real_url, prompt=prompt, echo=True, logprobs=2, max_tokens=2)["choices"][0]
        assert alone["logprobs"] == choice["logprobs"]
        assert alone["text"] == choice["text"]


def test_cc17_streamed_with_echo_is_the_same(real_url: str) -> None:
    """CC-17."""
    wishes = {"prompt": TEXT, "echo": True, "logprobs": 2, "max_tokens": 6}
    whole = complete(real_url, **wishes)["choices"][0]
    body = {"model": REAL_MODEL, "temperature": 0, "stream": True, **wishes}
    *chunks, _ = events(httpx.post(f"{real_url}/v1/completions", json=body, timeout=60).text)
    for name, values in whole["logprobs"].items():
        assert [v for c in chunks for k in c["choices"] if k["logprobs"] for v in k["logprobs"][name]] == values, name


def test_cc17_a_distribution_sums_to_one(real_url: str) -> None:
    """The probabilities reported are probabilities: twenty of them stay below one, and descend."""
    messages = [{"role": "user", "content": "Tell me about a dog."}]
    body = {"model": REAL_MODEL, "messages": messages, "max_tokens": 8, "logprobs": True, "top_logprobs": 20}
    content = httpx.post(f"{real_url}/v1/chat/completions", json=body, timeout=60).json()["choices"][0]["logprobs"][
        "content"
    ]
    for entry in content:
        values = [top["logprob"] for top in entry["top_logprobs"]]
        assert values == sorted(values, reverse=True)
        assert sum(map(math.exp, values)) <= 1 + 1e-5


def test_cc17_prompt_log_probabilities_agree_with_echo(real_url: str) -> None:
    """The extension's format says the same as OpenAI's."""
    echoed = complete(real_url, prompt=TEXT, echo=True, logprobs=0, max_tokens=1)["choices"][0]["logprobs"]
    choice = complete(real_url, prompt=TEXT, prompt_logprobs=1, max_tokens=1)["choices"][0]
    tokens = httpx.post(f"{real_url}/tokenize", json={"prompt": TEXT}).json()["tokens"]
    listed = choice["prompt_logprobs"]
    assert listed[0] is None
    found = [entry[str(token)]["logprob"] for entry, token in zip(listed[1:], tokens[1:], strict=True)]
    assert found == echoed["token_logprobs"][1 : len(tokens)]
    assert all(1 in {value["rank"] for value in entry.values()} for entry in listed[1:])


def test_nothing_is_below_the_floor() -> None:
    """NU-06: JSON has no minus infinity."""
    assert finite(-math.inf) == FLOOR
    assert finite(-1.5) == -1.5
