"""Embeddings from an engine in a process of its own, also when that process is killed on the way."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.engine.test_remote import codec, in_the_repository, kill, run, serving, until
from tokenmill.core.engine_config import EngineConfig
from tokenmill.core.errors import InvalidRequest
from tokenmill.core.pooling import NO_TOKENS, Pooling
from tokenmill.engine.service import Submission
from tokenmill.testing.executor import FakeExecutor

__all__ = ["in_the_repository"]  # a fixture

POOLINGS = (Pooling("last"), Pooling("mean", dimensions=5), Pooling(normalize=False))
PROMPTS = [tuple(range(300 + i, 340 + 9 * i)) for i in range(24)]


def expected(prompt: tuple[int, ...], pooling: Pooling) -> bytes:
    fake = FakeExecutor(4, 16, vocab_size=codec().vocab_size)
    return fake.expected_embedding(prompt, Pooling(pooling.kind or "last", pooling.dimensions, pooling.normalize))


async def embed(service: Any, prompt: tuple[int, ...], pooling: Pooling) -> bytes:
    handle = service.submit(Submission(prompt, NO_TOKENS, pooling=pooling))
    assert [output async for output in handle] == [], "no token"
    assert handle.usage.completion_tokens == 0
    assert handle.account is not None
    return bytes(handle.embedding)


@pytest.mark.parametrize("killed", [False, True])
def test_an_embedding_is_the_same_from_another_process_and_from_a_second_one(killed: bool) -> None:
    async def test() -> None:
        config = EngineConfig.from_options(num_blocks=256, max_seqs=4, max_step_tokens=16)
        async with serving(config=config) as service:
            wanted = [(prompt, POOLINGS[i % 3]) for i, prompt in enumerate(PROMPTS)]
            tasks = [asyncio.ensure_future(embed(service, *wish)) for wish in wanted]
            if killed:
                await until(lambda: service.stats()["running"] > 0)
                kill(service)
            assert await asyncio.gather(*tasks) == [expected(*wish) for wish in wanted]
            with pytest.raises(InvalidRequest, match="dimensions"):
                service.submit(Submission(PROMPTS[0], NO_TOKENS, pooling=Pooling(dimensions=9)))

    run(test)
