"""BI-25, BI-27: every two values of every two parameters, and bytes that are almost a request, against the server."""

from __future__ import annotations

import itertools
import os
import random
import time
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from pydantic import TypeAdapter

from tests.fuzz.inputs import as_json, disordered, mutated
from tests.fuzz.targets import CHAT as CHAT_SEEDS
from tests.fuzz.targets import COMPLETIONS as COMPLETION_SEEDS
from tests.server.service import MODEL
from tests.server.support import Running, error_of
from tokenmill.server.protocol.chat import ChatAnswer
from tokenmill.server.protocol.completions import CompletionAnswer

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
ABSENT: Any = object()

COMMON: dict[str, list[Any]] = {
    "max_tokens": [ABSENT, 1, 5, -1],
    "temperature": [ABSENT, 0, 2.0, "1"],
    "top_p": [ABSENT, 1e-9, 1.0, 1.5],
    "top_k": [ABSENT, 0, 1, -5],
    "min_p": [ABSENT, 0.0, 1.0, 2],
    "typical_p": [ABSENT, 0.01, 1.0, 0],
    "presence_penalty": [ABSENT, -2, 2, 3],
    "frequency_penalty": [ABSENT, -2, 2, None],
    "repetition_penalty": [ABSENT, 1e-3, 2.0, 0],
    "logit_bias": [ABSENT, {"300": -100}, {"4095": 100}, {"x": 1}],
    "n": [ABSENT, 1, 3, 0],
    "seed": [ABSENT, 0, -1, 1.5],
    "stop": [ABSENT, "a", ["a", "b"], ["a"] * 5],
    "stop_token_ids": [ABSENT, [], [5, 6], [10**9]],
    "min_tokens": [ABSENT, 0, 4, -1],
    "ignore_eos": [ABSENT, True, False, "yes"],
    "bad_words": [ABSENT, [], ["the"], [""]],
    "allowed_token_ids": [ABSENT, [300], [300, 301], []],
    "prompt_logprobs": [ABSENT, 0, 2, 99],
    "skip_special_tokens": [ABSENT, True, False, 0],
    "include_stop_str_in_output": [ABSENT, True, False, "no"],
    "priority": [ABSENT, -5, 5, 1.5],
    "timeout_s": [ABSENT, 30, 86400, 0],
    "cache_salt": [ABSENT, "", "salt", 5],
    "cache": [ABSENT, {}, {"priority": 5, "pin": True}, {"priority": 1000}],
    "metadata": [ABSENT, {}, {"a": "b"}, {"a": 1}],
    "user": [ABSENT, "", "u", 5],
    "stream": [ABSENT, False, True, "true"],
    "stream_options": [ABSENT, None, {"include_usage": True}, {"include_obfuscation": True}],
}
OF_CHAT: dict[str, list[Any]] = {
    "logprobs": [ABSENT, True, False, 1],
    "top_logprobs": [ABSENT, 0, 20, 21],
    "max_completion_tokens": [ABSENT, 1, 4, 0],
    "response_format": [ABSENT, {"type": "text"}, {"type": "json_object"}, {"type": "xml"}],
    "tool_choice": [ABSENT, "none", "auto", "sometimes"],
    "service_tier": [ABSENT, "auto", "default", "gold"],
}
OF_COMPLETIONS: dict[str, list[Any]] = {
    "logprobs": [ABSENT, 0, 5, 99],
    "echo": [ABSENT, True, False, 1],
    "best_of": [ABSENT, 1, 4, 0],
    "suffix": [ABSENT, None, "", "x"],
    "prompt": ["a", [300, 301], ["a", "b"], [[1], "a"]],
}


def all_pairs(table: dict[str, list[Any]], chance: random.Random) -> list[dict[str, Any]]:
    """Rows that together hold every pair of values of every two fields at least once (greedily, one row at a time)."""
    names = list(table)
    missing = {
        (a, i, b, j)
        for a, b in itertools.combinations(names, 2)
        for i in range(len(table[a]))
        for j in range(len(table[b]))
    }
    rows = []
    while missing:
        first = min(missing) if chance.random() < 0.5 else next(iter(missing))
        row = {first[0]: first[1], first[2]: first[3]}
        for name in chance.sample(names, len(names)):
            if name not in row:
                row[name] = max(
                    range(len(table[name])), key=lambda i: gain(missing, names, row, name, i) + chance.random()
                )
        missing -= {(a, row[a], b, row[b]) for a, b in itertools.combinations(names, 2)}
        rows.append({name: table[name][index] for name, index in row.items()})
    return rows


def gain(missing: set[tuple[str, int, str, int]], names: list[str], row: dict[str, int], name: str, index: int) -> int:
    place = names.index(name)
    return sum(
        ((other, at, name, index) if names.index(other) < place else (name, index, other, at)) in missing
        for other, at in row.items()
    )


def bodies_of(path: str) -> list[dict[str, Any]]:
    """Half of them with the wrong values taken out: one mistake would hide what the others do."""
    own = OF_CHAT if path == CHAT else OF_COMPLETIONS
    chance = random.Random(25)
    table = {**COMMON, **own}
    right = {name: values[:3] for name, values in table.items()}
    base: dict[str, Any] = {"model": MODEL, "max_tokens": 3}
    base |= {"messages": [{"role": "user", "content": "Hi"}]} if path == CHAT else {"prompt": "Hi"}
    rows = [*all_pairs(table, chance), *all_pairs(right, chance)]
    return [{**base, **{name: value for name, value in row.items() if value is not ABSENT}} for row in rows]


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_bi25_pairs_of_values_are_served_or_refused(server: Running, path: str) -> None:
    """BI-25: never a 5xx; what is served is as ``/openapi.json`` says, what is refused says why."""
    served = 0
    described: TypeAdapter[Any] = TypeAdapter(ChatAnswer if path == CHAT else CompletionAnswer)
    bodies = bodies_of(path)
    for body in bodies:
        response = server.post(path, body)
        assert response.status_code in (200, 400), (body, response.text)
        if response.status_code == 400:
            error = error_of(response)
            assert error["param"] or error["code"], error
            continue
        served += 1
        if body.get("stream") is True:
            assert response.text.endswith("data: [DONE]\n\n"), (body, response.text[-300:])
        else:
            described.validate_python(response.json(), strict=True)
    # right values two by two, so that some requests are served and not only refused
    names = list(COMMON)
    for one, other in ((name, names[index - step]) for step in (1, 2, 5) for index, name in enumerate(names)):
        base = server.chat() if path == CHAT else server.completion()
        wishes = {name: COMMON[name][2] for name in (one, other)}
        response = server.post(path, {**base, **wishes})
        assert response.status_code in (200, 400), (wishes, response.text)
        served += response.status_code == 200
    assert served > 60


SECONDS = float(os.environ.get("TOKENMILL_FUZZ_SECONDS", "15")) / 5


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_bi27_bytes_that_are_almost_a_request(server: Running, path: str) -> None:
    """BI-27: no 5xx, no answer that takes long, whatever was changed in a recorded body."""
    seeds = [{**seed, "model": MODEL} for seed in (CHAT_SEEDS if path == CHAT else COMPLETION_SEEDS)]

    @settings(max_examples=40, deadline=None, database=None, derandomize=False, suppress_health_check=list(HealthCheck))
    @given(mutated([as_json(seed) for seed in seeds]) | disordered(seeds).map(as_json))
    def send(body: bytes) -> None:
        started_s = time.monotonic()
        response: httpx.Response = server.post(path, body)
        assert response.status_code in (200, 400, 404, 413), (body, response.text)
        assert time.monotonic() - started_s < 10

    ends_s = time.monotonic() + SECONDS
    send()
    while time.monotonic() < ends_s:
        send()
