"""Which of seven resources holds an engine back.

What counts is what one cares for at the moment. While nobody waits for a place, that is how long a step takes, and the
regime is what takes most of the busy time: compute, memory bandwidth, interconnect bandwidth, interconnect latency, or
host overhead. While a queue stands it is how much the engine gets done; then a limit on *who may run* holds it back, if
lifting it would: KV blocks (memory capacity), or a decision (scheduler: the largest batch, static batching, the tokens
of a step). The queue alone proves nothing: an engine whose products already fill the processor does no more with twice
the batch. So the limit is blamed only if the same work, priced with it lifted, would be done ``WORTH`` times as fast.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tokenmill.engine.telemetry import StepAccount
from tokenmill.perf.diagnose.case import Limits
from tokenmill.perf.diagnose.pricing import Pricer, Table
from tokenmill.perf.roofline import BOUNDS, HOST

CAPACITY, SCHEDULER = "memory capacity", "scheduler"
WORTH = 1.25
"""A limit whose doubling brings less than this is not what holds the engine back."""
MIN_SHARE = 0.05
"""A cause that blocked the queue for less of the busy time is not looked into."""

HOST_PARTS = ("scheduling", "text", "sampling")


@dataclass(frozen=True, slots=True)
class Relief:
    """What lifting one limit would bring."""

    regime: str
    cause: str
    """A ``Cause`` of the queue, or ``held``: nothing ran though somebody waited."""
    share: float
    """Of the busy time, in which it kept requests waiting."""
    times: float
    """How many times as many sequences (of ``token_budget``: prompt tokens) a step would hold."""
    gain: float
    """How many times as fast the same work would be done, over the whole time."""


def bound_seconds(table: Table, account: StepAccount) -> dict[str, float]:
    """Busy seconds by what bounds them; they add up to ``account.busy_s``."""
    found = dict.fromkeys(BOUNDS, 0.0)
    for (_, bound), seconds in table.items():
        found[bound] += seconds
    found[HOST] += sum(account.parts.get(part, 0.0) for part in HOST_PARTS)
    return found


def reliefs(pricer: Pricer, account: StepAccount, limits: Limits) -> list[Relief]:
    """The limits that kept requests waiting, the most rewarding first."""
    busy_s, found = account.busy_s, []
    for cause, blocked_s in account.blocked_s.items():
        share = min(blocked_s / busy_s, 1.0) if busy_s else 0.0
        if share < MIN_SHARE or cause not in _REGIME:
            continue
        times = _room(cause, account, limits)
        if cause == "token_budget":
            ratio = pricer.with_chunks(times)
        else:
            ratio = pricer.with_rows(times, prompts=first_time(account) if cause == "kv_blocks" else 1.0)
        found.append(Relief(_REGIME[cause], cause, share, times, overall(busy_ratio(account, ratio), share)))
    held_s = account.parts.get("held", 0.0)
    if busy_s and held_s / (busy_s + held_s) >= MIN_SHARE:
        share = held_s / (busy_s + held_s)
        found.append(Relief(SCHEDULER, "held", share, 1.0, 1 / (1 - share)))
    return sorted(found, key=lambda relief: -relief.gain)


_REGIME = {
    "kv_blocks": CAPACITY,
    "max_seqs": SCHEDULER,
    "batch_policy": SCHEDULER,
    "token_budget": SCHEDULER,
}


def _room(cause: str, account: StepAccount, limits: Limits) -> float:
    """How many times as many sequences (or prompt tokens) would be in a step without the limit.

    Twice, if as many wait; static batching gives way to whatever the largest batch allows.
    """
    if cause == "token_budget":
        return 2.0
    rows = max(account.mean_rows, 1e-9)
    waiting = account.waiting_s / max(sum(account.blocked_s.values()), 1e-9)
    wanted = 1.0 + waiting / rows
    if cause == "batch_policy":
        return max(1.0, min(wanted, limits.max_seqs / rows)) if limits.max_seqs else min(wanted, 2.0)
    return min(wanted, 2.0)


def first_time(account: StepAccount) -> float:
    """Share of the prompt tokens that were computed for the first time, and not again after a preemption."""
    prefill = sum(each.prefill_tokens for each in account.classes.values())
    return max(0.0, 1.0 - account.lost_tokens / prefill) if prefill else 1.0


def busy_ratio(account: StepAccount, model_ratio: float) -> float:
    """Busy time for the same work, over what it is, when the model takes ``model_ratio`` of its time."""
    return 1.0 - account.parts.get("model", 0.0) / account.busy_s * (1.0 - model_ratio)


def overall(ratio: float, share: float) -> float:
    """How many times as fast, if ``share`` of the time shrinks to ``ratio`` of itself."""
    return 1.0 / (1.0 - share * (1.0 - ratio))


def regime_of(bounds: Mapping[str, float], found: list[Relief]) -> str | None:
    """The name of what holds back; None if nothing ran."""
    if not sum(bounds.values()):
        return None
    if found and found[0].gain >= WORTH:
        return found[0].regime
    return max(bounds, key=lambda bound: bounds[bound])
