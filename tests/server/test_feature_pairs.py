"""CC-13 over HTTP: every two features of a request together, alone and in the worst company, give the same answer."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.server.conftest import REAL_MODEL, real_server
from tests.server.test_pairwise import ABSENT, all_pairs
from tokenmill.bench.scrape import parse_metrics
from tokenmill.bench.soak.canaries import essence
from tokenmill.bench.soak.wire import Answer

PREFIX = "Once upon a time there was a fox who lived by the river and sang to every bird that came. " * 3
SCHEMA = {
    "type": "object",
    "properties": {"name": {"enum": ["Anna", "Tom"]}, "age": {"type": "integer", "minimum": 1, "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
FEATURES: dict[str, list[Any]] = {
    "prompt": ["Hello", PREFIX + "Why?", PREFIX * 3 + "Who?", [PREFIX + "One", "Two"]],
    "temperature": [0, 1],
    "top_p": [ABSENT, 0.8],
    "top_k": [ABSENT, 20],
    "n": [ABSENT, 2],
    "logprobs": [ABSENT, 3],
    "presence_penalty": [ABSENT, 0.7],
    "repetition_penalty": [ABSENT, 1.2],
    "logit_bias": [ABSENT, {"300": -100, "301": 5}],
    "bad_words": [ABSENT, ["the"]],
    "stop": [ABSENT, ["e", "."]],
    "min_tokens": [ABSENT, 6],
    "structured_outputs": [ABSENT, {"json": SCHEMA}, {"regex": "[a-z ]{4,30}"}, {"choice": ["red", "blue"]}],
    "cache_salt": [ABSENT, "mine"],
    "echo": [ABSENT, True],
    "stream": [ABSENT, True],
}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """Prompts are cut into chunks, and the pool is too small for all who run."""
    with real_server(num_blocks=34, max_context=512, max_step_tokens=64, max_seqs=16) as address:
        yield address


def bodies() -> list[dict[str, Any]]:
    rows = all_pairs(FEATURES, random.Random(13))
    return [
        {"model": REAL_MODEL, "max_tokens": 64, "seed": 100 + number}
        | ({"ignore_eos": True} if row["structured_outputs"] is ABSENT else {})
        | {name: value for name, value in row.items() if value is not ABSENT}
        for number, row in enumerate(rows)
    ]


async def ask(client: httpx.AsyncClient, body: dict[str, Any]) -> str:
    """All of the answer that must stay the same."""
    response = await client.post("/v1/completions", json=body)
    assert response.status_code == 200, (body, response.text)
    if not body.get("stream"):
        return essence(Answer(200, {}, response.content, 0.0))
    choices: dict[int, list[Any]] = {}
    for line in response.text.splitlines():
        if line.startswith("data: {"):
            for choice in json.loads(line[6:])["choices"]:
                text, ends = choices.setdefault(choice["index"], ["", []])
                choices[choice["index"]] = [text + choice["text"], [*ends, choice["finish_reason"] or ()]]
    return json.dumps({index: (text, [end for end in ends if end]) for index, (text, ends) in sorted(choices.items())})


def preemptions(url: str) -> float:
    name = "tokenmill_num_preemptions_total"
    return parse_metrics(httpx.get(f"{url}/metrics").text, frozenset({name}))[name]


def test_cc13_every_two_features_alone_and_in_company(url: str) -> None:
    """Chunks and shared prefixes come of themselves; company comes again until somebody was preempted."""
    rows = bodies()

    async def run() -> None:
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            alone = [await ask(client, body) for body in rows]
            assert preemptions(url) == 0
            for seed in range(20):
                order = random.Random(seed).sample([*range(len(rows))] * 2, 2 * len(rows))
                for at, got in zip(order, await asyncio.gather(*(ask(client, rows[at]) for at in order)), strict=True):
                    assert got == alone[at], rows[at]
                if preemptions(url) > 0:
                    return
        raise AssertionError("nobody was ever preempted")

    asyncio.run(run())
