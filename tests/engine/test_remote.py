"""The engine in a process of its own: the same answers, and what happens to requests when that process dies.

The model is the fake executor, whose tokens are a function of prompt and seed alone, so that every token of a request
that went on in a second engine can be compared with those that one engine would have brought.

Cases FT-01, FT-02, FT-03, FT-05, FT-06, FT-07, FT-08, FT-10, FT-14, FT-20.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

from tests.engine import chaos
from tests.server.service import CODEC_FOLDER
from tokenmill.core.clock import MonotonicClock
from tokenmill.core.engine_config import EngineConfig
from tokenmill.core.errors import (
    Aborted,
    ConfigError,
    ContextLengthExceeded,
    DeadlineExceeded,
    InvalidRequest,
    NeverFits,
    PoisonRequest,
    Unavailable,
)
from tokenmill.core.grammar import Grammar
from tokenmill.core.params import SamplingParams
from tokenmill.core.request import Progress
from tokenmill.engine.choice import Output
from tokenmill.engine.faults import VARIABLE, Fault, armed
from tokenmill.engine.remote import wire
from tokenmill.engine.remote.child import Child
from tokenmill.engine.remote.options import RemoteSettings
from tokenmill.engine.remote.service import RemoteService
from tokenmill.engine.service import Submission
from tokenmill.engine.text import TextCodec
from tokenmill.testing.executor import FakeExecutor

ROOT = Path(__file__).resolve().parents[2]
ARGV = (sys.executable, "-m", "tests.engine.remote_child")
PROMPT = tuple(range(300, 340))
POISON = 777


@lru_cache
def codec() -> TextCodec:
    return TextCodec.load(CODEC_FOLDER)


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@asynccontextmanager
async def serving(*, config: EngineConfig | None = None, **options: Any) -> AsyncIterator[RemoteService]:
    service = await RemoteService.launch(
        ARGV,
        config or EngineConfig.from_options(num_blocks=256),
        codec(),
        MonotonicClock(),
        model_name="fake",
        options=RemoteSettings(**options),
    )
    await service.start()
    try:
        yield service
    finally:
        pid = service.pid
        await service.close()
        assert pid is None or not alive(pid)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def run(test: Callable[[], Awaitable[None]], within_s: float = 60) -> None:
    asyncio.run(asyncio.wait_for(test(), within_s))


def submission(seed: int = 0, max_tokens: int = 20, prompt: tuple[int, ...] = PROMPT, **params: Any) -> Submission:
    return Submission(prompt, SamplingParams(max_tokens=max_tokens, seed=seed, ignore_eos=True, **params))


def expected(seed: int, count: int, prompt: tuple[int, ...] = PROMPT) -> tuple[int, ...]:
    fake = FakeExecutor(4, 16, vocab_size=codec().vocab_size)
    return fake.expected_tokens(prompt, count, seed=seed)


async def collect(handle: Any) -> dict[int, list[Output]]:
    found: dict[int, list[Output]] = {}
    async for output in handle:
        found.setdefault(output.index, []).append(output)
    return found


async def tokens(handle: Any) -> tuple[int, ...]:
    return tuple(t for o in (await collect(handle))[0] for t in o.token_ids)


async def until(done: Callable[[], bool], within_s: float = 20) -> None:
    deadline_s = time.monotonic() + within_s
    while not done():
        assert time.monotonic() < deadline_s, "it did not happen in time"
        await asyncio.sleep(0.01)


def kill(service: RemoteService, sig: signal.Signals = signal.SIGKILL) -> None:
    assert service.pid is not None
    os.kill(service.pid, sig)


# ---- as in one process -------------------------------------------------------------------------------------------


def test_answers_usage_account_and_refusals_are_those_of_one_process() -> None:
    async def test() -> None:
        async with serving() as service:
            handle = service.submit(submission(5, logprobs=2))
            outputs = (await collect(handle))[0]
            token_ids = tuple(t for o in outputs for t in o.token_ids)
            assert token_ids == expected(5, 20)
            assert "".join(o.text for o in outputs) == codec().decode(list(token_ids))
            assert all(o.logprobs and len(o.logprobs[0].top) == 2 for o in outputs)
            assert (handle.usage.prompt_tokens, handle.usage.completion_tokens) == (40, 20)
            assert handle.account is not None and handle.first_token_s is not None
            told = await service.explain(handle.request_id)
            assert told is not None and told["state"] == "finished"
            with pytest.raises(ContextLengthExceeded):
                service.submit(submission(max_tokens=10_000))
            with pytest.raises(InvalidRequest, match="token id"):
                service.submit(submission(prompt=(10**6,)))
            many = await collect(service.submit(submission(3, n=3, prompt_logprobs=1)))
            assert sorted(many) == [0, 1, 2]
            await until(lambda: service.stats()["running"] == 0)
            stats = service.stats()
            assert stats["blocks_free"] + stats["blocks_cached"] == stats["blocks_total"]
            assert service.condition.state == "ready"

    run(test)


def test_a_request_under_way_is_explained_aborted_stopped_and_timed_out() -> None:
    async def test() -> None:
        async with serving() as service:
            handle = service.submit(submission(max_tokens=400))
            task = asyncio.ensure_future(collect(handle))
            await until(lambda: service.stats()["running"] == 1)
            told = await service.explain(handle.request_id)
            assert told is not None and told["state"] == "running"
            handle.abort()
            with pytest.raises(Aborted):
                await task
            assert await service.explain("unknown") is None
            whole = codec().decode(list(expected(1, 60)))
            stop = whole[len(whole) // 2 :][:3]
            outputs = (await collect(service.submit(submission(1, 60, stop=(stop,)))))[0]
            assert "".join(o.text for o in outputs) == whole[: whole.index(stop)]
            with pytest.raises(DeadlineExceeded):
                await collect(service.submit(Submission(PROMPT, SamplingParams(max_tokens=400), timeout_s=0.05)))
            await until(lambda: service.stats()["blocks_held"] == 0)

    run(test)


def test_a_pool_too_small_is_told_at_once() -> None:
    async def test() -> None:
        async with serving(config=EngineConfig.from_options(num_blocks=4)) as service:
            with pytest.raises(NeverFits):
                service.submit(submission(max_tokens=300))

    run(test)


def test_grammars_are_compiled_in_the_engine() -> None:
    pytest.importorskip("llguidance")

    async def test() -> None:
        async with serving() as service:
            await service.compile(Grammar("regex", "[ab]{3}"))
            with pytest.raises(InvalidRequest) as caught:
                await service.compile(Grammar("regex", "("), param="extra_body.regex")
            assert caught.value.param == "extra_body.regex"

    run(test)


def test_an_engine_that_cannot_be_made_says_why() -> None:
    async def test() -> None:
        with pytest.raises(ConfigError, match="no such model"):
            async with serving(config=EngineConfig.from_options(model="missing")):
                pass

    run(test)


# ---- when it dies ------------------------------------------------------------------------------------------------


def test_ft02_ft03_killed_and_nothing_is_lost() -> None:
    """FT-01, FT-02, FT-03: 16 streams under way, 16 that wait; every token is the right one, and none comes twice."""

    async def test() -> None:
        config = EngineConfig.from_options(num_blocks=256, max_seqs=16, max_step_tokens=64)
        async with serving(config=config) as service:
            handles = [service.submit(submission(seed, 60)) for seed in range(32)]
            tasks = [asyncio.ensure_future(tokens(handle)) for handle in handles]
            await until(lambda: service.stats()["running"] == 16)
            first = service.pid
            kill(service)
            await until(lambda: service.condition.state == "restarting")
            assert not service.ready and service.live
            with pytest.raises(Unavailable) as refused:
                service.submit(submission())
            assert refused.value.retry_after_s
            assert await asyncio.gather(*tasks) == [expected(seed, 60) for seed in range(32)]
            assert service.pid != first and service.ready
            assert service.stats()["engine_deaths"] == 1
            assert all(handle.usage.completion_tokens == 60 for handle in handles)
            await until(lambda: service.stats()["blocks_held"] == 0)

    run(test)


def test_ft05_ft06_killed_at_any_token_with_everything_that_a_request_can_ask_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """FT-05, FT-06: choices, log-probabilities of prompt and answer, stop strings, best_of, cached prefixes."""

    monkeypatch.setattr("tokenmill.engine.remote.service.BACKOFF_S", (0.0,))

    async def test() -> None:
        rng = random.Random(7)
        wishes: list[dict[str, Any]] = [
            {"n": 4}, {"logprobs": 3}, {"prompt_logprobs": 2, "logprobs": 0}, {"n": 2, "best_of": 4}, {"min_tokens": 9},
            {"stop": (codec().decode(list(expected(5, 40)))[20:23],)}, {},
        ]  # fmt: skip

        def submissions() -> list[Submission]:
            return [submission(seed, 40, **wish) for seed, wish in enumerate(wishes)]

        async def everything(service: RemoteService) -> list[Any]:
            handles = [service.submit(each) for each in submissions()]
            answers = await asyncio.gather(*(collect(handle) for handle in handles))
            joined = [
                {
                    index: (
                        [t for o in outputs for t in o.token_ids],
                        [entry for o in outputs for entry in o.logprobs or ()],
                        "".join(o.text for o in outputs),
                        (outputs[-1].finish_reason, outputs[-1].stop_reason),
                    )
                    for index, outputs in answer.items()
                }
                for answer in answers
            ]
            return [joined, [handle.prompt_logprobs for handle in handles]]

        async with serving(max_deaths=100) as service:
            undisturbed = await everything(service)
            for _ in range(4):
                task = asyncio.ensure_future(everything(service))
                await asyncio.sleep(rng.uniform(0.0, 0.12))
                kill(service)
                assert await task == undisturbed
                await until(lambda: service.ready)

    run(test)


def test_recovery_fail_ends_what_had_begun_and_does_the_rest() -> None:
    async def test() -> None:
        config = EngineConfig.from_options(num_blocks=256, max_seqs=2)
        async with serving(config=config, recovery="fail") as service:
            begun = [service.submit(submission(seed, 400)) for seed in range(2)]
            tasks = [asyncio.ensure_future(tokens(handle)) for handle in begun]
            waiting = asyncio.ensure_future(tokens(service.submit(submission(9, 10))))
            await until(lambda: service.stats()["steps"] > 5)
            kill(service)
            for lost in await asyncio.gather(*tasks, return_exceptions=True):
                assert isinstance(lost, Unavailable) and lost.code == "engine_failed"
            assert await waiting == expected(9, 10)

    run(test)


def test_ft07_poison_costs_two_engines_and_one_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """FT-07: the step of one request crashes the process, again and again: it alone fails, its neighbours are exact."""
    fault = {"point": "worker.step", "action": "abort", "token": POISON}
    monkeypatch.setenv(VARIABLE, json.dumps([fault]))

    async def test() -> None:
        async with serving() as service:
            neighbours = [asyncio.ensure_future(tokens(service.submit(submission(s, 80)))) for s in range(6)]
            await until(lambda: service.stats()["steps"] > 5)
            poison = service.submit(submission(prompt=(*PROMPT, POISON)))
            with pytest.raises(PoisonRequest):
                await collect(poison)
            later = asyncio.ensure_future(tokens(service.submit(submission(50)))) if service.ready else None
            assert await asyncio.gather(*neighbours) == [expected(seed, 80) for seed in range(6)]
            assert service.stats()["engine_deaths"] == 2
            await until(lambda: service.ready)
            with pytest.raises(PoisonRequest):  # a client that tries again
                service.submit(submission(prompt=(*PROMPT, POISON)))
            assert service.stats()["engine_deaths"] == 2
            assert later is None or await later == expected(50, 20)

    run(test)


def test_ft08_a_process_that_hangs_is_killed_and_its_work_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """FT-08: a step that does not end; then a process that is stopped, pulses and all."""
    fault = {"point": "worker.step", "action": "hang", "after": 30}
    monkeypatch.setenv(VARIABLE, json.dumps([fault]))
    monkeypatch.setattr("tokenmill.engine.remote.service.TICK_S", 0.2)

    async def test() -> None:
        async with serving(stuck_after_s=1.0) as service:
            assert await tokens(service.submit(submission(4, 50))) == expected(4, 50)
            assert service.stats()["engine_deaths"] == 1

    async def stopped() -> None:
        async with serving() as service:
            first = service.pid
            assert first is not None
            task = asyncio.ensure_future(tokens(service.submit(submission(4, 60))))
            await until(lambda: service.stats()["steps"] > 2)
            kill(service, signal.SIGSTOP)
            assert await task == expected(4, 60)
            assert service.pid != first and not alive(first)

    run(test)
    monkeypatch.delenv(VARIABLE)
    run(stopped)


def test_an_engine_that_fails_as_a_whole_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pool's bookkeeping raises, which no request is to blame for: that process ends, and the next one goes on."""
    monkeypatch.setenv(VARIABLE, json.dumps([{"point": "kv.alloc", "after": 30}]))
    monkeypatch.setattr("tokenmill.engine.remote.service.BACKOFF_S", (0.0,))

    async def test() -> None:
        async with serving(max_deaths=100) as service:
            tasks = [asyncio.ensure_future(tokens(service.submit(submission(s, 100)))) for s in range(6)]
            assert await asyncio.gather(*tasks) == [expected(s, 100) for s in range(6)]
            assert service.stats()["engine_deaths"] >= 1

    run(test)


def test_a_crash_loop_ends_and_nobody_waits() -> None:
    async def test() -> None:
        async with serving(max_deaths=1) as service:
            task = asyncio.ensure_future(tokens(service.submit(submission(0, 400))))
            await until(lambda: service.stats()["steps"] > 2)
            kill(service)
            with pytest.raises(Unavailable) as lost:
                await task
            assert lost.value.code == "engine_failed"
            assert service.failed and not service.live and service.condition.state == "dead"

    run(test)


def test_ft25_killed_at_random_under_load(monkeypatch: pytest.MonkeyPatch) -> None:
    """FT-25, in short: every request is exactly right or an explicit error (``tests/engine/chaos.py`` has hours)."""
    monkeypatch.setattr("tokenmill.engine.remote.service.BACKOFF_S", (0.0,))
    monkeypatch.setattr("tokenmill.engine.remote.service.TICK_S", 0.2)
    found = asyncio.run(chaos.run(seconds=2.5, every_s=0.7, clients=8, seed=3))
    assert chaos.verdict(found) is None, found
    assert found["right"] > 0
    assert set(found) <= {"right", "refused", "poison_request", "SIGKILL", "SIGSEGV", "SIGSTOP"}, found


def test_an_abort_while_there_is_no_engine() -> None:
    async def test() -> None:
        async with serving() as service:
            handle = service.submit(submission(0, 400))
            task = asyncio.ensure_future(collect(handle))
            await until(lambda: service.stats()["steps"] > 2)
            kill(service)
            await until(lambda: service.pid is None)
            handle.abort()
            with pytest.raises(Aborted):
                await task
            await until(lambda: service.ready)
            assert await service.drain(1)

    run(test)


def test_ft10_ft14_the_engine_ends_with_its_parent(tmp_path: Path) -> None:
    """FT-10, FT-14: the HTTP process is killed; its engine is gone within five seconds."""
    script = (
        "import asyncio, tests.engine.test_remote as t\n"
        "async def main():\n"
        "    async with t.serving() as service:\n"
        "        print(service.pid, flush=True)\n"
        "        await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert alive(child)
    parent.kill()
    parent.wait()
    deadline_s = time.monotonic() + 5
    while alive(child) and "zombie" not in Path(f"/proc/{child}/status").read_text():
        assert time.monotonic() < deadline_s, "an orphan"
        time.sleep(0.02)
    parent.stdout.close()


# ---- what crosses ------------------------------------------------------------------------------------------------

GARBAGE = [
    b"\x80\x04\x95\x1a\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94.",  # a pickle
    b"GET / HTTP/1.1\r\n\r\n",
    wire.HEADER.pack(b"TM", 99, 4) + b"\x81\xa1a\x01",
    wire.HEADER.pack(b"TM", wire.VERSION, wire.MAX_BYTES + 1),
    wire.HEADER.pack(b"TM", wire.VERSION, 5) + b"\xc1\xc1\xc1\xc1\xc1",
    wire.HEADER.pack(b"TM", wire.VERSION, 3) + b"\x93\x93\x93",
    wire.pack(wire.Close()) + b"\x00" * 7 + b"\xff" * 64,
    wire.HEADER.pack(b"TM", wire.VERSION, 4) + b"\x81\xa4",
]


@pytest.mark.parametrize("data", GARBAGE, ids=range(len(GARBAGE)))
def test_ft20_garbage_closes_the_connection_and_crashes_nobody(data: bytes) -> None:
    """FT-20, on the engine's side: it ends quietly; nothing is unpickled, nothing huge is allocated."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        command = [*ARGV, str(theirs.fileno()), str(os.getpid())]
        process = subprocess.Popen(
            command, pass_fds=(theirs.fileno(),), cwd=ROOT, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL
        )
        theirs.close()
        ours.sendall(wire.pack(wire.Build(EngineConfig.from_options(num_blocks=8), 60.0)))
        ours.sendall(data)
        ours.shutdown(socket.SHUT_WR)
        assert process.wait(20) in (0, 2)
        assert process.stderr is not None
        process.stderr.close()


def test_ft20_garbage_from_the_engine_costs_that_engine_alone() -> None:
    async def test() -> None:
        async with serving() as service:
            handle = service.submit(submission(3, 80))
            task = asyncio.ensure_future(tokens(handle))
            await until(lambda: service.stats()["steps"] > 2)
            with armed(Fault("remote.receive", _break, times=1)):
                assert await task == expected(3, 80)
            assert service.stats()["engine_deaths"] == 1

    def _break(report: object) -> None:
        raise wire.ProtocolError("a frame does not begin as frames do")

    run(test)


def test_random_bytes_are_never_a_message() -> None:
    rng = random.Random(1)
    frame = wire.pack(wire.Add(_request()))
    for _ in range(2000):
        data = bytearray(frame[wire.HEADER.size :])
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        try:
            message = wire.command_of(bytes(data[: rng.randint(0, len(data))] if rng.random() < 0.3 else data))
        except wire.ProtocolError:
            continue
        assert isinstance(message, (wire.Add, wire.Abort, wire.Stop, wire.Close, wire.Explain, wire.Compile))


def test_messages_come_back_as_they_were() -> None:
    request = _request()
    for message in (wire.Add(request), wire.Abort("a"), wire.Stop("a", 1), wire.Build(EngineConfig(), 3.0)):
        assert wire.command_of(wire.pack(message)[wire.HEADER.size :]) == message
    problem = wire.Problem.of(InvalidRequest("no", param="x", code="c"))
    error = problem.error()
    assert isinstance(error, InvalidRequest)
    assert (error.message, error.param, error.code) == ("no", "x", "c")
    assert isinstance(wire.Problem("os", "no", "c").error(), Exception)
    assert type(wire.Problem("os", "no", "c").error()).__name__ == "RequestError"


def _request() -> Any:
    from tests.engine.harness import request

    params = SamplingParams(logit_bias={3: 1.5}, stop=("x",), grammar=Grammar("regex", "a+"), bad_words_ids=((1, 2),))
    made = request("r", (1, 2, 3), params=params, stop_token_ids=frozenset((5, 6)), deadline_s=4.5)
    import dataclasses

    return dataclasses.replace(made, progress=Progress(((7, 8),), frozenset((0,)), 1))


def test_a_start_that_talks_nonsense_is_an_error_and_no_orphan() -> None:
    async def test() -> None:
        script = "import socket,sys; s=socket.socket(fileno=int(sys.argv[1])); s.sendall(b'x'*64); s.recv(9)"
        with pytest.raises((wire.ProtocolError, EOFError, OSError)):
            await Child.start((sys.executable, "-c", script), wire.Build(EngineConfig(), 60.0))

    run(test)
