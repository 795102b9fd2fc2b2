"""The order in which cached blocks are given up, and what finding the next one costs in a large pool."""

from __future__ import annotations

import random
import time

import pytest

from tests.engine.harness import Rig, request
from tokenmill.core.request import CacheHints
from tokenmill.engine.kvcache.eviction import PINNED, EvictionQueue, FairEviction


def test_any_history_gives_way_in_the_documented_order() -> None:
    """Expired first (earliest moment first), then the lowest priority, then the least recently used."""
    rng = random.Random(0)
    queue = EvictionQueue()
    resting: dict[int, tuple[int, int, float | None]] = {}  # block → (priority, arrival, expiry)
    num_popped = num_expired = 0
    for moment in range(20_000):
        now = moment / 100
        block = rng.randrange(40)
        if block not in resting:
            priority, expires_s = rng.choice((0, 1, PINNED)), rng.choice((None, None, now + rng.random()))
            resting[block] = (priority, moment, expires_s)
            queue.add(block, priority, expires_s)
        elif rng.random() < 0.5:
            queue.remove(block, resting.pop(block)[0])
        else:
            expired = [(e, arrival, b) for b, (_, arrival, e) in resting.items() if e is not None and e <= now]
            expected = min(expired)[2] if expired else min(resting, key=lambda b: resting[b][:2])
            assert queue.pop(now) == expected
            del resting[expected]
            num_popped += 1
            num_expired += bool(expired)
        assert sorted(queue) == sorted(resting)
    assert num_popped > 1000 and 100 < num_expired < num_popped


def turn_s(num_cached: int) -> float:
    """Seconds to give up the oldest of ``num_cached`` blocks and let another come to rest."""
    queue = EvictionQueue()
    for block in range(num_cached):
        queue.add(block, 0, None)
    begin = time.thread_time()
    for _ in range(20_000):
        queue.add(queue.pop(0.0), 0, None)
    return (time.thread_time() - begin) / 20_000


def test_a_turn_costs_the_same_in_a_large_pool() -> None:
    """A queue that has to look past what was given up before would take over ten times as long here."""
    control = min(turn_s(64) for _ in range(3))
    assert min(turn_s(65_536) for _ in range(3)) < 5 * control


# ---- between tenants -------------------------------------------------------------------------------


def hit_share(num_strangers: int, *, wishes: CacheHints | None = None, tenant: str = "b") -> float:
    """Of the tokens of tenant ``a``'s prompts, asked again and again, those that were found in the cache.

    Before each of them come ``num_strangers`` prompts that nobody asks twice.
    """
    rig = Rig(num_blocks=128, block_size=4)
    own = [tuple(range(100 * n, 100 * n + 41)) for n in range(3)]
    stranger, hits, tokens = 0, 0, 0
    for turn in range(40):
        for _ in range(num_strangers):
            prompt = tuple(range(5000 + 50 * stranger, 5000 + 50 * stranger + 40))
            rig.add(request(f"s{stranger}", prompt, 1, tenant=tenant, cache_salt=tenant, cache=wishes))
            stranger += 1
            rig.run()
        name = f"a{turn}"
        rig.add(request(name, own[turn % 3], 1, tenant="a", cache_salt="a"))
        rig.run()
        if turn >= 3:
            hits += rig.records[name].cached_tokens
            tokens += 40
    return hits / tokens


def test_se19_a_stream_of_prompts_evicts_nobody_else_s() -> None:
    """SE-19: beside a tenant that fills the cache with what it never asks again, another keeps its hits."""
    alone = hit_share(0)
    assert alone > 0.95
    assert hit_share(8) >= 0.9 * alone
    assert hit_share(8, tenant="a") < 0.1, "it would have evicted its own"


@pytest.mark.parametrize("wishes", [CacheHints(priority=100), CacheHints(pin=True), CacheHints(ttl_s=1e6)])
def test_se19_priority_and_pinning_do_not_help_the_stream(wishes: CacheHints) -> None:
    assert hit_share(8, wishes=wishes) >= 0.9


def test_a_turn_costs_the_same_with_many_tenants() -> None:
    def turn(num_tenants: int) -> float:
        tenants = [f"t{block % num_tenants}" if block % 2 else "big" for block in range(8192)]
        queue = FairEviction(tenants)
        for block in range(8192):
            queue.add(block, 0, None)
        begin = time.thread_time()
        for _ in range(20_000):
            queue.add(queue.pop(0.0), 0, None)
        return time.thread_time() - begin

    control = min(turn(2) for _ in range(3))
    assert min(turn(4000) for _ in range(3)) < 5 * control
