"""Whom to let in, and whom to tell at once when to come back.

What waits for the engine is bounded in choices and in tokens still to compute, and nobody is taken who would have to
wait longer than he may. A refusal costs next to nothing, says how long the queue will take, and is never anybody's who
has been accepted. In order:

    background   first: none is taken while half of the queue is full; it has a queue of half the size for itself
    429          the tenant's part of the queue is used up (its weight over the weights of those who are here)
    503          the whole queue is

With a file of keys, part of every queue is left to whoever is not here yet: one tenant alone gets all but one weight's
share. Without one, a tenant that is alone gets all.

Places in the batch that are free are not counted as queue, but the prompts still to be computed before its own are what
a request waits for there too: hundreds that begin at once would have their first tokens late, and end all together. A
request that finds the queue empty is always taken, however large: it would never be otherwise. Whoever waits is known
from the engine's events, counted on the event loop, so the bounds are exact even while the engine stands still.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from tokenmill.core.errors import RateLimited, Unavailable
from tokenmill.core.events import Admitted, Failed, StepEvents
from tokenmill.engine.service import Service, Submission
from tokenmill.server.access.meters import UNSTATED_TOKENS, Meters, Reservation
from tokenmill.server.pace import Pace

if TYPE_CHECKING:
    from tokenmill.server.context import Ticket
    from tokenmill.server.settings import ServerSettings

MAX_RETRY_AFTER_S = 120.0
JITTER = 0.25
"""Each refused client is told up to this share more than the estimate, so that they do not all come back at once."""
LOST_AFTER_S = 60.0
"""A request that was given up and of which the engine has told nothing for so long is no longer counted."""


@dataclass(slots=True)
class Queue:
    """What waits: of one tenant, of everybody, or in the background."""

    choices: int = 0
    prompt_tokens: int = 0
    answer_tokens: float = 0.0
    under_way: int = 0
    """Submissions that have not ended, the waiting included."""
    weight: float = 1.0

    @property
    def tokens(self) -> float:
        return self.prompt_tokens + self.answer_tokens

    def add(self, choices: int, prompt_tokens: int, answer_tokens: float) -> None:
        self.choices += choices
        self.prompt_tokens += prompt_tokens
        self.answer_tokens += answer_tokens
        if not self.choices:
            self.prompt_tokens, self.answer_tokens = 0, 0.0  # sums of fractions leave crumbs


@dataclass(slots=True)
class _Entry:
    """A submission that the engine has and has not ended."""

    tenant: str
    background: bool
    num_choices: int
    waiting: int
    """Choices that have not begun."""
    prompt_tokens: int
    """Still to compute by whoever waits."""
    answer_tokens: float
    """Expected of each choice."""
    queues: tuple[Queue, ...] = ()
    slot: Slot | None = None
    """None: given up, and the engine has yet to say so."""
    left_s: float = 0.0
    entered_s: float = 0.0
    foreseen_s: float = 0.0
    """How long it was thought to wait, before the correction by others' waits."""


class _Wish(NamedTuple):
    """What somebody would add to the queue."""

    tenant: str
    weight: float
    background: bool
    num_choices: int
    tokens: float
    timeout_s: float | None = None


@dataclass(slots=True)
class Slot:
    """One HTTP request's place: from its admission until ``close``."""

    admission: Admission
    reservation: Reservation | None
    request_ids: list[str] = field(default_factory=list)
    begun: asyncio.Event = field(default_factory=asyncio.Event)

    async def wait_begun(self) -> None:
        """Return once the engine has begun, if there is a limit to waiting.

        Raises:
            Unavailable: ``queue_timeout``, it has not begun in time. The caller gives it up: it holds nothing.
        """
        limit_s = self.admission.queue_timeout_s
        if limit_s is None:
            return
        try:
            await asyncio.wait_for(self.begun.wait(), limit_s)
        except TimeoutError:
            raise Unavailable(
                f"The request waited {limit_s:g} s for the engine and was given up; try again later.",
                code="queue_timeout",
                retry_after_s=self.admission.retry_after_s(),
            ) from None

    def close(self, used_tokens: int, submitted: Sequence[str], *, lost: bool = False) -> None:
        """The request is over; of ``submitted`` the engine knows. ``lost``: it is gone and will tell nothing."""
        if self.reservation is not None:
            self.reservation.close(used_tokens)
        self.admission.leave(self, submitted, lost=lost)


class Admission:
    """Counts what waits, foresees how long, and refuses. On the event loop only."""

    def __init__(
        self,
        service: Service,
        settings: ServerSettings,
        meters: Meters,
        *,
        reserve_weight: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """
        Args:
            reserve_weight: part of the queue that is left to tenants who are not here yet.
            chance: a number from 0 to 1 for each refusal.
        """
        stats = service.stats()
        self._max_seqs = int(stats["max_seqs"])
        self._fair = bool(stats["fair_share"])
        self._service = service
        self._meters = meters
        self._reserve_weight = reserve_weight
        self._clock = clock
        self._chance = chance
        self._max_choices = settings.max_waiting_requests
        self._max_tokens = settings.max_waiting_tokens
        self._max_wait_s = settings.max_wait_s
        self.queue_timeout_s = settings.queue_timeout_s
        self.pace = Pace(self._max_seqs, int(stats["max_step_tokens"]))
        self.waiting = Queue()
        """Interactive requests."""
        self.background = Queue()
        self._tenants: dict[str, Queue] = {}
        self._weights = 0.0
        self._running = 0
        self._short_of_blocks = False  # what bounds the batch is KV blocks, and not its places
        self._entries: dict[str, _Entry] = {}
        service.subscribe(self._step)

    # ---- coming in ---------------------------------------------------------------------------------

    def check(self, ticket: Ticket, *, ahead: int = 0) -> None:
        """Refuse what would be refused however small it is, before its body is read. Raises as ``enter``.

        Args:
            ahead: requests that came before it and have not entered yet; they are taken to be as others were.
        """
        self._check(_Wish(ticket.access.tenant, ticket.access.weight, ticket.background, 1, 1.0), ahead)

    def enter(self, ticket: Ticket, submissions: Sequence[Submission]) -> Slot:
        """A place for everything that one HTTP request submits; one tenant, and at least one submission.

        Raises:
            RateLimited: its key's or tenant's limits, or its tenant's part of the queue, are used up.
            Unavailable: the queue is full, or would take longer than the request may.
        """
        limit, first, background = self._service.max_context, submissions[0], ticket.background
        entries = [_entry(submission, limit, self.pace) for submission in submissions]
        num_choices = sum(entry.num_choices for entry in entries)
        tokens = sum(entry.prompt_tokens + entry.num_choices * entry.answer_tokens for entry in entries)
        wish = _Wish(first.tenant, first.weight, background, num_choices, tokens, first.timeout_s)
        self._check(wish)
        self.pace.entered(sum(entry.prompt_tokens for entry in entries), tokens)
        foreseen_s = 0.0 if background else self._wait_s(wish) / self.pace.late
        reservation = None
        if not background:
            reserved = sum(_reserved(submission, limit) for submission in submissions)
            reservation = self._meters.reserve(ticket.access, reserved)
        slot = Slot(self, reservation)
        for submission, entry in zip(submissions, entries, strict=True):
            assert submission.request_id is not None, "the server names its requests"
            slot.request_ids.append(submission.request_id)
            entry.slot = slot
            entry.entered_s, entry.foreseen_s = self._clock(), foreseen_s
            entry.queues = self._take_up(submission)
            self._entries[submission.request_id] = entry
            for queue in entry.queues:
                queue.add(entry.num_choices, entry.prompt_tokens, entry.num_choices * entry.answer_tokens)
                queue.under_way += 1
        return slot

    def _take_up(self, submission: Submission) -> tuple[Queue, ...]:
        """The queues in which it is counted."""
        if submission.background:
            return (self.background,)
        own = self._tenants.get(submission.tenant)
        if own is None:
            own = self._tenants[submission.tenant] = Queue()
            own.weight = 0.0
        self._weights += submission.weight - own.weight
        own.weight = submission.weight
        return self.waiting, own

    def _check(self, wish: _Wish, ahead: int = 0) -> None:
        if wish.background:
            self._check_background(wish)
            return
        waiting = self.waiting
        if not waiting.choices and not ahead:
            return
        choices, tokens = wish.num_choices, wish.tokens
        free = max(0, self._max_seqs - self._running)
        if waiting.choices + choices - free > self._max_choices or waiting.tokens + tokens > self._max_tokens:
            self._forget_lost()
            self._refuse(wish, "The server's queue is full")
        own, share = self._own(wish)
        if own.choices and (
            own.choices + choices - free > max(1.0, share * self._max_choices)
            or own.tokens + tokens > share * self._max_tokens
        ):
            self._refuse(wish, "This tenant's part of the queue is full", over=True)
        fits = waiting.choices + ahead + choices <= free and not self._short_of_blocks
        prompts = ahead * self.pace.mean_prompt
        if fits:  # beside all others in the batch it waits for nobody's answer, but for the prompts before its own
            wait_s = self.pace.prefill_s(waiting.prompt_tokens + prompts, self._running)
        else:
            wait_s = self._wait_s(wish) + self.pace.seconds(prompts, ahead * self.pace.mean_answer)
        if wish.timeout_s is not None and wait_s > wish.timeout_s:
            self._refuse(wish, f"The queue takes {wait_s:.1f} s, longer than the request's timeout_s")
        if wait_s > self._max_wait_s:
            self._refuse(wish, f"The queue takes {wait_s:.1f} s, longer than anybody should wait")

    def _check_background(self, wish: _Wish) -> None:
        queue = self.background
        full = queue.choices and (
            queue.choices + wish.num_choices > self._max_choices // 2
            or queue.tokens + wish.tokens > self._max_tokens / 2
        )
        busy = self.waiting.choices > self._max_choices / 2 or self.waiting.tokens > self._max_tokens / 2
        if full or busy:
            raise Unavailable(
                "The server is too busy for background work; try again later.",
                code="server_overloaded",
                retry_after_s=self.retry_after_s(),
            )

    def _refuse(self, wish: _Wish, why: str, *, over: bool | None = None) -> None:
        """429 for a tenant with more than its share of what waits, else 503."""
        if over is None:
            own, share = self._own(wish)
            over = self._reserve_weight > 0 and own.tokens > share * self.waiting.tokens
        wait_s = self._told_s(self._wait_s(wish))
        message = f"{why}; try again in {wait_s:.0f} s."
        if over:
            raise RateLimited(message, retry_after_s=wait_s)
        raise Unavailable(message, code="server_overloaded", retry_after_s=wait_s)

    # ---- looking -----------------------------------------------------------------------------------

    def wait_s(self) -> float:
        """How long what waits now will take."""
        return self.pace.seconds(self.waiting.prompt_tokens, self.waiting.answer_tokens)

    def retry_after_s(self) -> float:
        """What a refused client is told."""
        return self._told_s(self.wait_s())

    def tenant_of(self, request_id: str) -> str | None:
        """Whose request it is; None unless it is under way."""
        entry = self._entries.get(request_id)
        return None if entry is None else entry.tenant

    def _wait_s(self, wish: _Wish) -> float:
        """How long it would wait: for everybody before it, or under fair share at most for its own tenant's part."""
        whole_s = self.wait_s()
        if not self._fair:
            return whole_s
        own, share = self._own(wish, reserve_weight=0.0)
        return min(whole_s, self.pace.seconds(own.prompt_tokens, own.answer_tokens) / share)

    def _told_s(self, wait_s: float) -> float:
        """The estimate, and a little more by chance."""
        return min(MAX_RETRY_AFTER_S, max(1.0, wait_s) * (1.0 + JITTER * self._chance()))

    def _own(self, wish: _Wish, reserve_weight: float | None = None) -> tuple[Queue, float]:
        """The tenant's queue, and its share of everything that may wait."""
        reserve_weight = self._reserve_weight if reserve_weight is None else reserve_weight
        own = self._tenants.get(wish.tenant)
        absent = wish.weight if own is None else 0.0
        return own or Queue(), wish.weight / (max(self._weights, 0.0) + absent + reserve_weight)

    # ---- what the engine tells ---------------------------------------------------------------------

    def _step(self, events: StepEvents) -> None:
        if events.num_tokens:
            full = self._running >= self._max_seqs or self._short_of_blocks
            self.pace.step(events, self._clock(), crowded=full and self.waiting.choices > 0)
        for decision in events.decisions:
            if isinstance(decision, Admitted) and not decision.resumed:
                self._begun(decision)
            elif isinstance(decision, Failed):
                self._remove(decision.request_id)
        for record in events.finished:
            entry = self._remove(record.request_id)
            if entry is not None and record.outcome == "finished" and entry.answer_tokens:
                self.pace.ended(record, entry.num_choices)
        if not self._entries:
            self.pace.idle()

    def _begun(self, event: Admitted) -> None:
        entry = self._entries.get(event.request_id)
        if entry is None or not entry.waiting:
            return
        if entry.waiting == entry.num_choices:
            self.pace.waited(self._clock() - entry.entered_s, entry.foreseen_s)
        entry.waiting -= 1
        self._running += not entry.background
        self._short_of_blocks = event.waited_for == "kv_blocks"
        for queue in entry.queues:
            queue.add(-1, -entry.prompt_tokens, -entry.answer_tokens)
        entry.prompt_tokens = 0  # the first choice computes it
        if entry.slot is not None:
            entry.slot.begun.set()

    # ---- going out ---------------------------------------------------------------------------------

    def leave(self, slot: Slot, submitted: Sequence[str], *, lost: bool) -> None:
        """Nobody waits for the slot's submissions any more; what the engine has counts until it lets go of it."""
        for request_id in slot.request_ids:
            if lost or request_id not in submitted:
                self._remove(request_id)
            elif (entry := self._entries.get(request_id)) is not None:
                entry.slot, entry.left_s = None, self._clock()

    def _remove(self, request_id: str) -> _Entry | None:
        entry = self._entries.pop(request_id, None)
        if entry is None:
            return None
        if not entry.background:
            self._running -= entry.num_choices - entry.waiting
        for queue in entry.queues:
            queue.add(-entry.waiting, -entry.prompt_tokens, -entry.waiting * entry.answer_tokens)
            queue.under_way -= 1
        own = self._tenants.get(entry.tenant)
        if own is not None and not own.under_way:
            del self._tenants[entry.tenant]
            self._weights = self._weights - own.weight if self._tenants else 0.0
        if entry.slot is not None:
            entry.slot.begun.set()
        return entry

    def _forget_lost(self) -> None:
        """Of what was given up long ago the engine will tell nothing more."""
        now = self._clock()
        for request_id, entry in list(self._entries.items()):
            if entry.slot is None and now - entry.left_s > LOST_AFTER_S:
                self._remove(request_id)


def _entry(submission: Submission, max_context: int, pace: Pace) -> _Entry:
    choices = submission.params.num_sequences
    answer = pace.expected_tokens(_max_new_tokens(submission, max_context))
    return _Entry(submission.tenant, submission.background, choices, choices, len(submission.prompt_token_ids), answer)


def _reserved(submission: Submission, max_context: int) -> int:
    """What is taken from the tenant's tokens beforehand."""
    most = _max_new_tokens(submission, max_context)
    if submission.params.max_tokens is None:
        most = min(most, UNSTATED_TOKENS)
    return len(submission.prompt_token_ids) + submission.params.num_sequences * most


def _max_new_tokens(submission: Submission, max_context: int) -> int:
    room = max(0, max_context - len(submission.prompt_token_ids))
    wanted = submission.params.max_tokens
    return room if wanted is None else min(wanted, room)
