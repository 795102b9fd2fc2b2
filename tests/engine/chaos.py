"""``python -m tests.engine.chaos --minutes 60``: an engine's process killed and stopped at random, under load. FT-25.

Every request must end exactly right or with an explicit error; a wrong token, a silent truncation or a request that
never ends is a failure. The fake executor stands for the model, so that what is right is known of every token.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import sys
import time
from collections import Counter
from typing import Any

from tests.server.service import CODEC_FOLDER
from tokenmill.core.clock import MonotonicClock
from tokenmill.core.engine_config import EngineConfig
from tokenmill.core.errors import TokenmillError, Unavailable
from tokenmill.core.params import SamplingParams
from tokenmill.engine.remote.options import RemoteSettings
from tokenmill.engine.remote.service import RemoteService
from tokenmill.engine.service import Submission
from tokenmill.engine.text import TextCodec
from tokenmill.testing.executor import FakeExecutor

HUNG_S = 120.0
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGSEGV, signal.SIGSTOP)


class Chaos:
    """Clients, and somebody who kills."""

    def __init__(self, service: RemoteService, codec: TextCodec, rng: random.Random, end_s: float) -> None:
        self.service, self.rng, self.end_s = service, rng, end_s
        self.outcomes: Counter[str] = Counter()
        self._fake = FakeExecutor(4, 16, vocab_size=codec.vocab_size)

    async def client(self, number: int) -> None:
        while time.monotonic() < self.end_s:
            seed, count = self.rng.randrange(2**32), self.rng.randint(1, 120)
            prompt = tuple(self.rng.randrange(300, 900) for _ in range(self.rng.randint(1, 60)))
            params = SamplingParams(max_tokens=count, seed=seed, ignore_eos=True)
            try:
                got = await asyncio.wait_for(self._tokens(Submission(prompt, params)), HUNG_S)
                right = got == self._fake.expected_tokens(prompt, count, seed=seed)
                self.outcomes["right" if right else "WRONG"] += 1
            except TimeoutError:
                self.outcomes["HUNG"] += 1
            except Unavailable:
                self.outcomes["refused"] += 1
                await asyncio.sleep(0.1)
            except TokenmillError as error:
                self.outcomes[error.code] += 1

    async def _tokens(self, submission: Submission) -> tuple[int, ...]:
        found: list[int] = []
        async for output in self.service.submit(submission):
            found += output.token_ids
        return tuple(found)

    async def killer(self, every_s: float) -> None:
        while time.monotonic() < self.end_s:
            await asyncio.sleep(self.rng.expovariate(1 / every_s))
            pid = self.service.pid
            if pid is not None and self.service.ready:
                sig = self.rng.choice(SIGNALS)
                self.outcomes[sig.name] += 1
                os.kill(pid, sig)


async def run(seconds: float, every_s: float, clients: int, seed: int) -> Counter[str]:
    """What came of all requests, and how often which signal was sent."""
    codec = TextCodec.load(CODEC_FOLDER)
    service = await RemoteService.launch(
        (sys.executable, "-m", "tests.engine.remote_child"),
        EngineConfig.from_options(num_blocks=128, max_seqs=12),
        codec,
        MonotonicClock(),
        model_name="fake",
        options=RemoteSettings(max_deaths=10**9, stuck_after_s=5.0),
    )
    await service.start()
    chaos = Chaos(service, codec, random.Random(seed), time.monotonic() + seconds)
    try:
        await asyncio.gather(chaos.killer(every_s), *(chaos.client(i) for i in range(clients)))
        await _until_idle(service)
    finally:
        await service.close()
    return chaos.outcomes


async def _until_idle(service: RemoteService) -> None:
    deadline_s = time.monotonic() + 30
    while not service.ready or service.stats()["blocks_held"]:
        assert time.monotonic() < deadline_s, ("blocks are held by nobody", service.stats())
        await asyncio.sleep(0.05)


def verdict(outcomes: Counter[str]) -> Any:
    """None if all is well."""
    bad = {name: count for name, count in outcomes.items() if name in ("WRONG", "HUNG")}
    return bad or None


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--every", type=float, default=36.0, help="seconds between two kills, on average")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    found = asyncio.run(run(60 * given.minutes, given.every, given.clients, given.seed))
    print(dict(found))
    sys.exit(1 if verdict(found) else 0)
