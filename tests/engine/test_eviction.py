"""The order in which cached blocks are given up, and what finding the next one costs in a large pool."""

from __future__ import annotations

import random
import time

from tokenmill.engine.kvcache.eviction import PINNED, EvictionQueue


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
