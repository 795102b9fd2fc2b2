"""Many steps at once, where nothing can be decided.

Between two decisions a batch that generates repeats one step: every running sequence gets its next token, the
contexts grow by one, blocks are taken as they fill up. Planning each such step anew costs a simulator most of its
time. ``horizon`` says how many of them would follow if nobody came, up to the one in which the first sequence
reaches its limit; ``skip`` leaves scheduler and cache as if they had been planned and committed one by one. A step
in which a block is wanted that is not there, or a request is looked at, is never skipped: the scheduler decides it.

Why nothing is lost. With every running sequence one token behind and the budget fixed, ``plan`` gives each one
token, in any number of steps. It admits somebody only if the head of the queue, the size of the batch or the
blocks available have changed for the better: the queue's order is fixed while nobody joins, the batch is the same,
and blocks are only taken. A queue that was looked at in vain (``settled``) is therefore looked at in vain again.

Holds for requests of one choice whose generated tokens are their own, so that no block filled meanwhile can be
part of another's prompt: a simulator's. Not for policies that count service, nor for budgets that learn; their
horizon is 0.
"""

from __future__ import annotations

from tokenmill.core.events import Evicted, StepEvents
from tokenmill.engine.scheduler.scheduler import Scheduler


def settled(events: StepEvents) -> bool:
    """The step that brought ``events`` took nobody up, let nobody go, computed no prompt: who waits, waits on."""
    return (
        not events.finished
        and events.num_tokens == events.num_sequences
        and all(isinstance(decision, Evicted) for decision in events.decisions)
    )


def horizon(scheduler: Scheduler, max_steps: int, *, settled: bool) -> int:
    """How many steps from now on (at most ``max_steps``) give each running sequence a token and do nothing else.

    ``settled``: of the last step's events. Call it between steps, none in flight.
    """
    running = scheduler._running.values()
    config = scheduler.config
    if (
        not running
        or scheduler._in_flight
        or scheduler._prefilling
        or scheduler._stalled
        or scheduler._deadlines
        or scheduler.policy.counts_service
        or config.itl_slo_s is not None
        or len(running) > config.max_step_tokens
        or (len(scheduler.policy) and (scheduler._newcomers or not settled))
        or True in [seq.shared_tail for seq in running]
    ):
        return 0
    num_steps = min(max_steps, min([seq.max_tokens - seq.num_tokens for seq in running]))
    available, size = scheduler.cache.pool.num_available, scheduler.cache.block_size
    if len(running) * (num_steps // size + 1) <= available:
        return num_steps
    rooms = [seq.num_slots - seq.num_planned for seq in running]
    low, high = 0, num_steps  # the most steps whose blocks are there
    while low < high:
        middle = (low + high + 1) // 2
        if sum([-((room - middle) // size) for room in rooms if room < middle]) <= available:
            low = middle
        else:
            high = middle - 1
    return low


def skip(scheduler: Scheduler, num_steps: int, now: float) -> StepEvents:
    """Take ``num_steps`` (within the horizon) as done at ``now``; each token drawn equals the sequence's last one.

    Returns who ended with the last of them; executor and journal hear nothing of these steps, and nobody of the tokens.
    """
    cache = scheduler.cache
    ended = []
    cache.grow(scheduler._running.values(), num_steps, now)
    for seq in scheduler._running.values():
        seq.num_planned = end = seq.num_planned + num_steps
        seq.num_tokens += num_steps
        seq.token_ids += seq.token_ids[-1:] * num_steps
        if end >= seq.publish_at:
            cache.publish(seq, end)
        if seq.num_tokens >= seq.max_tokens:
            ended.append(seq)
    for seq in ended:
        scheduler._end(scheduler._requests[seq.request_id], seq, now)
    scheduler.num_steps += num_steps
    return scheduler.take_events()
