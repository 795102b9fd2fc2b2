"""What is always true of a scheduler between two calls. For tests after each step, and for an idle server."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenmill.engine.scheduler.scheduler import Scheduler


def check(scheduler: Scheduler) -> None:
    """Assert every invariant of scheduler and cache."""
    running, requests = scheduler._running, scheduler._requests
    scheduler.cache.check(running.values())
    waiting = list(scheduler.policy)
    held = [seq for live in requests.values() for seq in live.held_siblings]
    everyone = [*running.values(), *waiting, *held]
    assert len({seq.order for seq in everyone}) == len(everyone), "a sequence is in two places"
    live_orders = {seq.order for live in requests.values() for seq in live.live.values()}
    assert live_orders == {seq.order for seq in everyone}, "a live sequence is nowhere, or a dead one somewhere"
    for seq in everyone:
        assert seq.num_tokens == len(seq.token_ids) < max(seq.max_tokens, seq.prompt_len + 1), seq
        assert seq.num_remaining >= 0, seq
    for seq in (*waiting, *held):
        assert not seq.block_ids and not seq.num_planned and not seq.num_pending, seq
    assert len(running) <= scheduler.config.max_seqs
    assert scheduler._prefilling <= running.keys() and scheduler._stalled.keys() <= running.keys()
    assert scheduler._num_background == sum(live.request.background for live in requests.values())
    if not requests:
        assert scheduler.cache.pool.num_held == 0, "an idle scheduler holds blocks"
