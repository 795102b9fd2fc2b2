"""The service over a fake executor and the built-in tokenizer: queues, text, aborts, drain, and what happens to a
request when another one, or the engine, fails."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import lru_cache

import pytest

from tokenmill import builtin
from tokenmill.core.clock import MonotonicClock
from tokenmill.core.engine_config import SchedulerConfig
from tokenmill.core.errors import (
    Aborted,
    ContextLengthExceeded,
    DeadlineExceeded,
    InvalidRequest,
    NumericalError,
    Unavailable,
)
from tokenmill.core.params import SamplingParams
from tokenmill.core.step import StepPlan, StepResult
from tokenmill.engine.async_service import EngineService
from tokenmill.engine.choice import Output
from tokenmill.engine.engine import Engine
from tokenmill.engine.kvcache import KVCache
from tokenmill.engine.resolve import ModelLimits
from tokenmill.engine.scheduler import Scheduler
from tokenmill.engine.service import Submission
from tokenmill.engine.text import TextCodec
from tokenmill.testing.executor import FakeExecutor

PROMPT = tuple(range(300, 320))


@lru_cache
def codec() -> TextCodec:
    return TextCodec.load(builtin.path("story"))


class SlowExecutor(FakeExecutor):
    """A fake whose steps take real time, so that others can act in between."""

    delay_s = 0.002
    broken = False

    def _run(self, plan: StepPlan) -> StepResult:
        if self.broken:
            raise OSError("the device is gone")
        time.sleep(self.delay_s)
        return super()._run(plan)


@asynccontextmanager
async def serving(num_blocks: int = 256, **options: object) -> AsyncIterator[EngineService]:
    executor = SlowExecutor(num_blocks, 4, vocab_size=codec().vocab_size, **options)
    executor.start()
    scheduler = Scheduler(KVCache(num_blocks, 4), SchedulerConfig())
    limits = ModelLimits(512, codec().vocab_size, frozenset(codec().eos_token_ids))
    service = EngineService(Engine(scheduler, executor, MonotonicClock()), codec(), limits, model_name="fake")
    await service.start()
    try:
        yield service
    finally:
        await service.close()


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 30))


def submission(max_tokens: int = 20, **params: object) -> Submission:
    return Submission(PROMPT, SamplingParams(max_tokens=max_tokens, **params))


async def collect(handle: object) -> dict[int, list[Output]]:
    found: dict[int, list[Output]] = {}
    async for output in handle:  # type: ignore[attr-defined]
        found.setdefault(output.index, []).append(output)
    return found


def text_of(outputs: list[Output]) -> str:
    return "".join(output.text for output in outputs)


def test_tokens_text_usage_and_account() -> None:
    async def test() -> None:
        async with serving() as service:
            handle = service.submit(submission(seed=5))
            outputs = (await collect(handle))[0]
            token_ids = [t for o in outputs for t in o.token_ids]
            expected = service.engine.executor.expected_tokens(PROMPT, 20, seed=5, stop_token_ids=codec().eos_token_ids)
            assert tuple(token_ids) == expected
            assert text_of(outputs) == codec().decode(token_ids)
            assert [o.finish_reason for o in outputs] == [None] * 19 + ["length"]
            assert (handle.usage.prompt_tokens, handle.usage.completion_tokens) == (20, 20)
            assert handle.account is not None and handle.first_token_s is not None
            assert sum(handle.account.causes.values()) == pytest.approx(handle.account.total_s)
            told = await service.explain(handle.request_id)
            assert told is not None and told["state"] == "finished"
            assert sum(c["seconds"] for c in told["causes"]) == pytest.approx(told["total_s"])

    run(test)


def test_a_stop_string_ends_the_text_and_the_work() -> None:
    async def test() -> None:
        async with serving() as service:
            whole = text_of((await collect(service.submit(submission(60, seed=1))))[0])
            stop = whole[len(whole) // 2 : len(whole) // 2 + 3]
            handle = service.submit(submission(60, seed=1, stop=(stop,)))
            outputs = (await collect(handle))[0]
            assert text_of(outputs) == whole[: whole.index(stop)]
            assert (outputs[-1].finish_reason, outputs[-1].stop_reason) == ("stop", stop)
            assert handle.usage.completion_tokens < 60
            assert service.stats()["blocks_held"] == 0
            kept = service.submit(submission(60, seed=1, stop=(stop,), include_stop=True))
            assert text_of((await collect(kept))[0]) == whole[: whole.index(stop) + len(stop)]

    run(test)


def test_choices_come_interleaved_and_best_of_comes_ranked() -> None:
    async def test() -> None:
        async with serving() as service:
            many = await collect(service.submit(submission(seed=3, n=4, logprobs=0)))
            assert sorted(many) == [0, 1, 2, 3]
            means = {
                text_of(outputs): sum(e.logprob for o in outputs for e in o.logprobs or ()) / 20
                for outputs in many.values()
            }
            handle = service.submit(submission(seed=3, n=2, best_of=4))
            best = await collect(handle)
            ranked = sorted(means, key=lambda text: -means[text])
            assert [text_of(best[0]), text_of(best[1])] == ranked[:2]
            assert handle.usage.completion_tokens == 80

    run(test)


def test_leaving_early_frees_the_blocks() -> None:
    async def test() -> None:
        async with serving() as service:
            handle = service.submit(submission(400))
            async for _ in handle:
                break
            await asyncio.sleep(0)
            other = service.submit(submission(400))
            begin = time.monotonic()
            other.abort()
            other.abort()
            with pytest.raises(Aborted):
                await collect(other)
            while service.stats()["blocks_held"]:
                assert time.monotonic() - begin < 0.5
                await asyncio.sleep(0.005)

    run(test)


def test_what_cannot_be_done_is_refused_at_once() -> None:
    async def test() -> None:
        async with serving() as service:
            with pytest.raises(ContextLengthExceeded, match=r"512 tokens.*prompt has 20.*max_tokens is 493"):
                service.submit(submission(493))
            for params, param in (
                ({"logit_bias": {4096: 1.0}}, "logit_bias"),
                ({"stop_token_ids": (99999,)}, "stop_token_ids"),
                ({"allowed_token_ids": (99999,)}, "allowed_token_ids"),
            ):
                with pytest.raises(InvalidRequest) as caught:
                    service.submit(submission(**params))
                assert caught.value.param == param
            with pytest.raises(InvalidRequest, match="token id 4096"):
                service.submit(Submission((1, 4096), SamplingParams()))
            with pytest.raises(InvalidRequest, match="no tokens"):
                service.submit(Submission((), SamplingParams()))
            await collect(service.submit(submission(492)))

    run(test)


def test_a_deadline_and_a_bad_row_end_one_request_each() -> None:
    async def test() -> None:
        async with serving(fail=lambda seq_id, pos: "not finite" if seq_id in (1, 2) and pos > 25 else None) as s:
            canary = s.submit(submission(200, seed=9))
            with pytest.raises(NumericalError):
                await collect(s.submit(submission(50)))
            with pytest.raises(DeadlineExceeded):
                await collect(s.submit(Submission(PROMPT, SamplingParams(max_tokens=400), timeout_s=0.05)))
            tokens = [t for o in (await collect(canary))[0] for t in o.token_ids]
            stops = codec().eos_token_ids
            assert tuple(tokens) == s.engine.executor.expected_tokens(PROMPT, 200, seed=9, stop_token_ids=stops)
            assert s.live and s.ready

    run(test)


def test_when_the_engine_dies_nobody_waits() -> None:
    async def test() -> None:
        async with serving() as service:
            handles = [service.submit(submission(400)) for _ in range(3)]
            tasks = [asyncio.ensure_future(collect(handle)) for handle in handles]
            await asyncio.sleep(0.02)
            service.engine.executor.broken = True
            for result in await asyncio.gather(*tasks, return_exceptions=True):
                assert isinstance(result, Unavailable) and result.code == "engine_failed"
            assert not service.live and not service.ready
            with pytest.raises(Unavailable):
                service.submit(submission())

    run(test)


def test_drain_finishes_what_runs_and_cuts_what_overruns() -> None:
    async def test() -> None:
        async with serving() as service:
            task = asyncio.ensure_future(collect(service.submit(submission(30))))
            await asyncio.sleep(0.01)
            assert await service.drain(10)
            assert sum(len(o.token_ids) for o in (await task)[0]) == 30
            with pytest.raises(Unavailable, match="shutting down"):
                service.submit(submission())
        async with serving() as service:
            task = asyncio.ensure_future(collect(service.submit(submission(480))))
            await asyncio.sleep(0.01)
            assert not await service.drain(0.05)
            with pytest.raises(Unavailable) as caught:
                await task
            assert caught.value.code == "server_shutting_down"

    run(test)


def test_cached_tokens_and_prompt_logprobs() -> None:
    async def test() -> None:
        async with serving() as service:
            for cached in (0, 16):
                handle = service.submit(submission(2))
                await collect(handle)
                assert handle.usage.cached_tokens == cached
            handle = service.submit(submission(2, prompt_logprobs=1))
            await collect(handle)
            assert handle.prompt_logprobs is not None
            assert handle.prompt_logprobs[0] is None
            assert [entry.token_id for entry in handle.prompt_logprobs[1:] if entry] == list(PROMPT[1:])

    run(test)
