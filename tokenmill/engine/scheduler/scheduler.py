"""The scheduler: which tokens of which sequences to compute next. Pure: records in, records out.

Each sequence has tokens known and tokens computed; a step lets some of them catch up. ``plan(now)`` chooses:

1. sequences one token behind (they are generating) come first, each gets its token;
2. sequences further behind (a prompt, or everything after a preemption) share what is left of the step's
   token budget, in order of admission: this cuts prompts into chunks;
3. waiting sequences are admitted while budget, batch and KV blocks allow, in the policy's order.

When a running sequence needs a block and none is available, the one that the policy would have taken up last
gives its blocks up and waits again. ``commit(plan, result, now)`` takes in what the step brought. Several
plans may be in flight: a planned token counts as computed and a sampled one as known at once, and a result
for a sequence that has left since finds nobody (its ``seq_id`` is gone).

Nothing here knows a device, a clock or text. Everything decided is told in ``StepEvents`` with its cause.
"""

from __future__ import annotations

import heapq
from collections import deque
from itertools import chain
from itertools import count as counter
from typing import Literal

from tokenmill.core.engine_config import SchedulerConfig
from tokenmill.core.errors import (
    Aborted,
    DeadlineExceeded,
    InvalidRequest,
    Preempted,
    RequestError,
)
from tokenmill.core.events import (
    Account,
    Admitted,
    Cause,
    EmbeddingEvent,
    Evicted,
    Failed,
    PreemptedForBlocks,
    StepEvents,
)
from tokenmill.core.request import FinishReason, Request
from tokenmill.core.sequence import Sequence
from tokenmill.core.step import NewSequence, StepPlan, StepResult
from tokenmill.engine.kvcache import KVCache
from tokenmill.engine.scheduler.account import CauseClock
from tokenmill.engine.scheduler.background import BackgroundLast, BackgroundShare
from tokenmill.engine.scheduler.batching import make_batching
from tokenmill.engine.scheduler.budget import make_budget
from tokenmill.engine.scheduler.draft import PlanDraft, left_to_short
from tokenmill.engine.scheduler.fits import check_fits
from tokenmill.engine.scheduler.invariants import check
from tokenmill.engine.scheduler.policy import make_policy
from tokenmill.engine.scheduler.preemption import make_preemption
from tokenmill.engine.scheduler.requests import LiveRequest, account_of
from tokenmill.engine.scheduler.results import new_prompt_logprobs, row_error, tokens_by_row

Outcome = Literal["finished", "failed", "aborted"]


class Scheduler:
    """Holds every sequence under way, waiting or running, and the KV cache's accounting."""

    def __init__(self, cache: KVCache, config: SchedulerConfig) -> None:
        self.cache = cache
        self.config = config
        self.policy = BackgroundLast(make_policy(config), make_policy(config))
        self.batching = make_batching(config)
        self.budget = make_budget(config)
        self.preemption = make_preemption(config)
        self.background = BackgroundShare()
        self.num_steps = 0
        self.num_preemptions = 0
        self._running: dict[int, Sequence] = {}  # by seq_id, in order of admission
        self._requests: dict[str, LiveRequest] = {}
        self._num_background = 0  # requests
        self._prefilling: set[int] = set()  # running, with known tokens yet to compute
        self._stalled: dict[int, Sequence] = {}  # running, left out of the last plan
        self._newcomers: list[Sequence] = []  # joined the queue since the last plan
        self._deadlines: list[tuple[float, str]] = []
        self._dropped: list[int] = []  # the worker knows them, and shall forget them
        self._in_flight: deque[StepPlan] = deque()
        self._draft: PlanDraft | None = None  # while a plan is being made
        self._events = StepEvents()
        self._seq_ids = counter()
        self._queue_clock = CauseClock("max_seqs")
        self._decode_clock = CauseClock("")
        self._num_evicted = 0

    # ---- requests come and go ----------------------------------------------------------------------

    def check_fits(self, request: Request) -> None:
        """Refuse what can never be done. Reads constants only, so any thread may call it.

        Raises:
            NeverFits: the whole pool is too small for one choice of the request.
        """
        check_fits(request, self.cache.pool.num_blocks, self.cache.block_size)

    def add(self, request: Request) -> None:
        """Take a request into the queue.

        Raises:
            NeverFits: see ``check_fits``.
            InvalidRequest: its id is in use.
        """
        self.check_fits(request)
        if request.id in self._requests:
            raise InvalidRequest(f"request id {request.id!r} is in use", param="request_id")
        live = LiveRequest.start(request, next(self._seq_ids))
        for _ in range(request.num_sequences - 1):
            next(self._seq_ids)
        self._requests[request.id] = live
        self._num_background += request.background
        for seq in live.live.values():
            if seq not in live.held_siblings:
                self._enqueue(seq)
        if request.deadline_s is not None:
            heapq.heappush(self._deadlines, (request.deadline_s, request.id))

    def abort(self, request_id: str, now: float) -> None:
        """Give a request up and free its blocks. Unknown ids are fine: it may have ended just now."""
        self._fail(request_id, Aborted("the request was aborted"), now, outcome="aborted")

    def stop(self, request_id: str, index: int, now: float) -> None:
        """One choice is complete by a judgement made outside (a stop string). Unknown is fine, as for ``abort``."""
        live = self._requests.get(request_id)
        if live is not None and index in live.live:
            self._release_siblings(live, now)
            self._end(live, live.live[index], now)

    def preempt(self, seq: Sequence, now: float) -> None:
        """Take a running sequence's blocks away; it waits and is computed again. No token changes by this."""
        self._leave_batch(seq, now)
        seq.seq_id = next(self._seq_ids)
        seq.num_pending = 0
        seq.num_preemptions += 1
        self.num_preemptions += 1
        account = account_of(seq)
        account.num_preemptions += 1
        account.enter("preempted", now, clock=self._queue_clock)
        self.policy.push(seq)

    @property
    def running(self) -> list[Sequence]:
        return list(self._running.values())

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        requests = list(self._requests.values())  # a copy: another thread may ask
        return len(self.policy) + sum(len(live.held_siblings) for live in requests)

    @property
    def has_requests(self) -> bool:
        return bool(self._requests)

    @property
    def blocked_by(self) -> str | None:
        """What the head of the queue waits for (a ``Cause``); None: nobody waits."""
        return self._queue_clock.cause if len(self.policy) else None

    def wake_after_s(self, now: float) -> float | None:
        """With nothing to run now: after how long ``plan`` may find something; None: not before a request comes."""
        waits = []
        head = self.policy.peek()
        if head is not None and not self._running:
            wait_s = self.batching.wake_after_s(now - head.request.arrival_s)
            waits += [] if wait_s is None else [wait_s]
        if self._deadlines:
            waits.append(max(0.0, self._deadlines[0][0] - now))
        return min(waits, default=None)

    # ---- plan --------------------------------------------------------------------------------------

    def plan(self, now: float) -> StepPlan:
        """Choose the next step's work. An empty plan means that there is nothing to do now."""
        self._expire(now)
        for seq in self._newcomers:
            account_of(seq).enter("queue", now, clock=self._queue_clock)
        self._newcomers.clear()
        draft = self._draft = PlanDraft()
        num_preemptions = self.num_preemptions
        behind = self._plan_generating(draft, now)
        shared = 0 < self._num_background < len(self._requests)
        later = self.background.take_out(draft, behind) if shared else []
        room = self.budget.tokens(len(draft.rows))
        room = self._cut_to_budget(draft, room, now)
        num_generating = len(draft.rows)
        room = self._plan_behind(draft, behind, room, now)
        if self.num_preemptions == num_preemptions:
            room = self._admit(draft, room, now, background=not shared)
        else:
            self._queue_clock.change("kv_blocks", now)
        if shared:
            num_generating += self._plan_background(draft, later, room, now)
        return self._seal(draft, num_generating, now)

    def _plan_generating(self, draft: PlanDraft, now: float) -> list[Sequence]:
        """Give every sequence that is one token behind its row; return those further behind."""
        behind: list[Sequence] = []
        add_row, add_start = draft.rows.append, draft.starts.append
        for seq in list(self._running.values()):
            planned = seq.num_planned
            pending = seq.num_pending
            num_known = seq.num_tokens + pending
            if num_known - planned != 1:
                behind.append(seq)
                continue
            if pending and num_known >= seq.max_tokens:
                continue  # the token in flight is its last
            needs_room = planned >= seq.num_slots or seq.shared_tail  # true also of one preempted in this loop
            if needs_room and not self._make_room(seq, num_known, draft, now):
                continue
            add_row(seq)
            add_start(planned)
            seq.num_planned = num_known
            seq.num_pending = pending + 1
        draft.counts = [1] * len(draft.rows)
        return behind

    def _cut_to_budget(self, draft: PlanDraft, room: int, now: float) -> int:
        """Leave out generating sequences beyond the budget; returns the tokens left."""
        if len(draft.rows) > room:
            for seq in draft.rows[room:]:
                seq.num_planned -= 1
                seq.num_pending -= 1
                self._stall(seq, now)
            del draft.rows[room:], draft.starts[room:], draft.counts[room:]
        return room - len(draft.rows)

    def _plan_behind(self, draft: PlanDraft, behind: list[Sequence], room: int, now: float) -> int:
        """Spend what is left of the budget on sequences already admitted that are further behind."""
        for i, seq in enumerate(behind):
            count = min(seq.num_remaining, room)
            if seq.seq_id not in self._running or seq.num_remaining == 0:
                continue  # preempted in this plan, or all it knows is in flight
            if count == 0:
                self._stall(seq, now)
                continue
            if count < seq.num_remaining:
                count -= left_to_short(room, chain(behind[i + 1 :], self._next_for_budget()))
            end = seq.num_planned + count
            if (end > seq.num_slots or seq.shared_tail) and not self._make_room(seq, end, draft, now):
                continue
            draft.add(seq, count)
            room -= count
        return room

    def _next_for_budget(self) -> list[Sequence]:
        """The head of the queue, if it waits for nothing but a part of the step."""
        head = self.policy.peek() if self._queue_clock.cause == "token_budget" else None
        return [] if head is None else [head]

    def _plan_background(self, draft: PlanDraft, later: list[Sequence], room: int, now: float) -> int:
        """Let background work have its share of a step that others need; returns how many of its rows generate."""
        num_rows, num_preemptions = len(draft.rows), self.num_preemptions
        room = self._plan_behind(draft, later, self.background.tokens(sum(draft.counts), room), now)
        num_generating = sum(seq.seq_id not in self._prefilling for seq in draft.rows[num_rows:])
        if self.num_preemptions == num_preemptions:
            self._admit(draft, room, now, background=True)
        return num_generating

    def _make_room(self, seq: Sequence, num_tokens: int, draft: PlanDraft, now: float) -> bool:
        """Get blocks for ``seq``, at the cost of others if it must; False if it had to give way itself."""
        if seq.seq_id not in self._running:
            return False
        while (update := self.cache.extend(seq, num_tokens, now)) is None:
            victim = max(self._running.values(), key=self.policy.rank)
            self._give_way(victim, seq, now)
            if seq.seq_id not in self._running:
                return False
        index, block_ids = update
        if block_ids:
            draft.updates[seq.seq_id] = (index, block_ids)
        return True

    def _give_way(self, victim: Sequence, beneficiary: Sequence, now: float) -> None:
        """Carry out what the preemption policy says becomes of ``victim``."""
        if self.preemption.choose(victim) == "refuse" and not victim.request.background:
            message = f"the KV cache is full and request {beneficiary.request_id} goes first; try again later"
            self._fail(victim.request_id, Preempted(message), now)
            self.num_preemptions += 1
            return
        lost = PreemptedForBlocks(victim.request_id, victim.index, victim.num_planned, beneficiary.request_id)
        self._events.decisions.append(lost)
        self.preempt(victim, now)

    def _admit(self, draft: PlanDraft, room: int, now: float, *, background: bool) -> int:
        """Take up waiting sequences, those of background work only if told so; returns the tokens left.

        Whatever stops this is what the rest of the queue waits for.
        """
        head = self.policy.peek()
        if head is None:
            return room
        if not self.batching.admits(len(self._running), len(self.policy), now - head.request.arrival_s):
            self._queue_clock.change("batch_policy", now)
            return room
        while head is not None and (background or not head.request.background):
            cause = self._obstacle(head, room, now)
            if cause is None:
                self.policy.pop()
                room -= self._start(head, draft, room, now)
            elif not self._background_gives_way(head, cause, now):
                self._queue_clock.change(cause, now)
                return room
            head = self.policy.peek()
        return room

    def _background_gives_way(self, head: Sequence, cause: Cause, now: float) -> bool:
        """Somebody who can wait leaves the batch so that ``head`` may join; False if nobody can."""
        if head.request.background or not self._num_background or cause == "token_budget":
            return False
        victims = [seq for seq in self._running.values() if seq.request.background]
        if victims:
            self._give_way(max(victims, key=self.policy.rank), head, now)
        return bool(victims)

    def _obstacle(self, seq: Sequence, room: int, now: float) -> Cause | None:
        """What keeps the head of the queue waiting; None: it got its blocks."""
        if len(self._running) >= self.config.max_seqs:
            return "max_seqs"
        if room <= 0:
            return "token_budget"
        return None if self._take_blocks(seq, now) else "kv_blocks"

    def _take_blocks(self, seq: Sequence, now: float) -> bool:
        """From the leader of its request, if that one has computed their prompt; else from cache and pool."""
        leader = self._requests[seq.request_id].leader
        computed = leader.seq_id in self._running and leader.seq_id not in self._prefilling
        if computed and seq is not leader and seq.num_generated == 0:
            return self.cache.fork(leader, seq, now)
        return self.cache.admit(seq, now)

    def _start(self, seq: Sequence, draft: PlanDraft, room: int, now: float) -> int:
        """Put a sequence that just got its blocks into the batch; returns how many tokens it spends."""
        waited_for = self._queue_clock.cause
        account = account_of(seq)
        self._events.decisions.append(
            Admitted(seq.request_id, seq.index, seq.num_planned, seq.num_preemptions > 0, waited_for)
        )
        account.enter("prefill", now)
        self._running[seq.seq_id] = seq
        self._prefilling.add(seq.seq_id)
        count = min(seq.num_remaining, room)
        if seq.shared_tail:
            changed = self.cache.extend(seq, seq.num_planned + count, now)
            assert changed is not None, "a fork leaves room for copying the tail"
        request = seq.request
        draft.new[seq.seq_id] = NewSequence(
            seq.seq_id,
            tuple(seq.token_ids) if seq.num_generated else request.prompt_token_ids,
            seq.prompt_len,
            request.params,
            request.sequence_seed(seq.index),
            request.stop_token_ids,
            tuple(seq.block_ids),
            request.pooling,
        )
        draft.add(seq, count)
        return count

    def _seal(self, draft: PlanDraft, num_generating: int, now: float) -> StepPlan:
        """Make the plan, and settle what it means for the accounts."""
        self._draft = None
        rows = draft.rows
        if not rows:
            return StepPlan(self.num_steps, (), (), ())
        self._decode_clock.change("beside_prefill" if len(rows) > num_generating else "", now)
        if self._stalled:
            self._unstall(rows, now)
        if self.policy.counts_service:
            for seq, num_tokens in zip(rows, draft.counts, strict=True):
                self.policy.served(seq, num_tokens)
        plan = StepPlan(
            step_id=self.num_steps,
            seq_ids=tuple([seq.seq_id for seq in rows]),
            starts=tuple(draft.starts),
            counts=tuple(draft.counts),
            new=tuple(draft.new.values()),
            block_updates=draft.updates,
            copies=self.cache.take_copies(),
            dropped=tuple(self._dropped),
        )
        self._dropped.clear()
        self.num_steps += 1
        self._in_flight.append(plan)
        return plan

    # ---- commit ------------------------------------------------------------------------------------

    def commit(self, plan: StepPlan, result: StepResult, now: float) -> StepEvents:
        """Take in a step's result; plans are committed in the order in which they were made."""
        assert self._in_flight.popleft() is plan, "results come in the order of the plans"
        assert result.step_id == plan.step_id
        self._decode_clock.change(self._decode_clock.cause if self._in_flight else "", now)
        self._queue_clock.tick(now)
        num_tokens = plan.num_tokens
        self.budget.observe(num_tokens, result.seconds)
        if self._num_background:
            self.background.observe(num_tokens, result.seconds)
        for seq_id, reason in result.errors.items():
            if seq_id in self._running:
                self._row_failed(self._running[seq_id], reason, result.error_codes.get(seq_id), now)
        if result.prompt_logprobs:
            self._events.prompt_logprobs += new_prompt_logprobs(self._running, result)
        for seq_id, values in result.embeddings.items():
            if seq_id in self._running:
                self._events.embeddings.append(EmbeddingEvent(self._running[seq_id].request_id, values))
        self._take_tokens(plan, result, now)
        events = self.take_events()
        events.num_tokens = num_tokens
        events.num_sequences = len(plan.seq_ids)
        events.seconds = result.seconds
        return events

    def _row_failed(self, seq: Sequence, reason: str, code: str | None, now: float) -> None:
        """One row brought an error. What it computed, and what it read, is not to be read by anyone else.

        Where numbers are not finite, cached blocks that it was given may be at fault: it is computed once
        more, from nothing, and fails only if that does not help.
        """
        self.cache.forget(seq)
        if code is None and seq.was_given_blocks and not seq.distrusts_cache:
            seq.distrusts_cache = True
            self.preempt(seq, now)
            return
        self._fail(seq.request_id, row_error(reason, code), now)

    def _take_tokens(self, plan: StepPlan, result: StepResult, now: float) -> None:
        """Publish what was computed, take in what was sampled. The hot loop: a few attribute reads per row."""
        running, prefilling, logprobs = self._running, self._prefilling, result.logprobs
        has_prompts = bool(prefilling)
        emit = self._events.tokens.append
        for seq_id, start, count, token_ids in zip(  # noqa: B905 (strict costs here)
            plan.seq_ids, plan.starts, plan.counts, tokens_by_row(plan, result)
        ):
            seq = running.get(seq_id)
            if seq is None:
                continue  # finished, aborted or preempted since
            if start + count >= seq.publish_at:
                self.cache.publish(seq, start + count)
            if has_prompts and seq_id in prefilling and not self._advance_prompt(seq, token_ids is not None, now):
                continue
            if token_ids is None:
                continue
            seq.num_pending -= 1
            seq.token_ids.extend(token_ids)
            num_tokens = seq.num_tokens = seq.num_tokens + len(token_ids)
            entries = logprobs.get(seq_id) if logprobs else None
            if token_ids[-1] in seq.stop_token_ids:
                reason: FinishReason = "stop"
            elif num_tokens >= seq.max_tokens:
                reason = "length"
            else:
                emit((seq.request_id, seq.index, token_ids, entries, None))
                continue
            emit((seq.request_id, seq.index, token_ids, entries, reason))
            self._end(self._requests[seq.request_id], seq, now)

    def _advance_prompt(self, seq: Sequence, sampled: bool, now: float) -> bool:
        """Account for a row of a sequence that was behind; False if it ended with its prompt."""
        account = account_of(seq)
        account.num_chunks += 1
        if not sampled:
            return True
        self._caught_up(seq, now)
        if seq.max_tokens > seq.prompt_len:
            return True
        # It asked for no tokens, only for the prompt to be computed, or for an embedding.
        if seq.request.pooling is None:
            self._events.tokens.append((seq.request_id, seq.index, (), None, "length"))
        self._end(self._requests[seq.request_id], seq, now)
        return False

    def _caught_up(self, seq: Sequence, now: float) -> None:
        """The sequence has all its known tokens computed: from here on it generates."""
        self._prefilling.discard(seq.seq_id)
        account = account_of(seq)
        account.enter("decode", now, clock=self._decode_clock)
        if account.first_token_s is None:
            account.first_token_s = now
        self._release_siblings(self._requests[seq.request_id], now)

    def take_events(self) -> StepEvents:
        """What there is to tell since the last time."""
        if self.cache.pool.num_evicted > self._num_evicted:
            self._events.decisions.append(Evicted(self.cache.pool.num_evicted - self._num_evicted))
            self._num_evicted = self.cache.pool.num_evicted
        events, self._events = self._events, StepEvents()
        return events

    # ---- joining and leaving -----------------------------------------------------------------------

    def _enqueue(self, seq: Sequence) -> None:
        self.policy.push(seq)
        self._newcomers.append(seq)

    def _release_siblings(self, live: LiveRequest, now: float) -> None:
        """The prompt is computed (or will not be): the other choices may start."""
        for sibling in live.held_siblings:
            account_of(sibling).enter("queue", now, stalled="step_boundary")
            self._enqueue(sibling)
        live.held_siblings.clear()

    def _stall(self, seq: Sequence, now: float) -> None:
        if seq.seq_id not in self._stalled:
            self._stalled[seq.seq_id] = seq
            account = account_of(seq)
            account.enter(account.state, now, stalled="token_budget")

    def _unstall(self, rows: list[Sequence], now: float) -> None:
        for seq in rows:
            if self._stalled.pop(seq.seq_id, None) is not None:
                account = account_of(seq)
                account.enter(account.state, now, clock=self._decode_clock if account.state == "decode" else None)

    def _leave_batch(self, seq: Sequence, now: float) -> None:
        del self._running[seq.seq_id]
        self._prefilling.discard(seq.seq_id)
        self._stalled.pop(seq.seq_id, None)
        self._dropped.append(seq.seq_id)
        if self._draft is not None:
            self._draft.remove(seq)
        self.cache.release(seq, now)

    def _remove(self, live: LiveRequest, seq: Sequence, now: float) -> None:
        """Take a sequence out of wherever it is."""
        if seq.seq_id in self._running:
            self._leave_batch(seq, now)
        elif seq in live.held_siblings:
            live.held_siblings.remove(seq)
        else:
            self.policy.remove(seq)
        live.end(seq)

    def _end(self, live: LiveRequest, seq: Sequence, now: float) -> None:
        """One choice is complete."""
        self._remove(live, seq, now)
        if not live.live:
            self._close(live, "finished", now)

    def _fail(self, request_id: str, error: RequestError, now: float, outcome: Outcome = "failed") -> None:
        """The request ends with an error, all its choices with it."""
        live = self._requests.get(request_id)
        if live is None:
            return
        for seq in list(live.live.values()):
            self._remove(live, seq, now)
        self._events.decisions.append(Failed(request_id, error))
        self._close(live, outcome, now)

    def _close(self, live: LiveRequest, outcome: Outcome, now: float) -> None:
        del self._requests[live.request.id]
        self._num_background -= live.request.background
        self._events.finished.append(live.record(outcome, now))

    def _expire(self, now: float) -> None:
        while self._deadlines and self._deadlines[0][0] <= now:
            deadline_s, request_id = heapq.heappop(self._deadlines)
            live = self._requests.get(request_id)
            if live is not None and live.request.deadline_s == deadline_s:
                waited_s = deadline_s - live.request.arrival_s
                self._fail(request_id, DeadlineExceeded(f"not done within {waited_s:.3f} s", param="timeout_s"), now)

    # ---- looking -----------------------------------------------------------------------------------

    def arrivals(self, plan: StepPlan) -> dict[int, float]:
        """When the requests of the sequences new in ``plan``, the last one made, arrived; by ``seq_id``."""
        return {new.seq_id: self._running[new.seq_id].request.arrival_s for new in plan.new}

    def request_ids(self, plan: StepPlan) -> list[str]:
        """The requests of the sequences new in ``plan``, the last one made."""
        return list(dict.fromkeys(self._running[new.seq_id].request_id for new in plan.new))

    def explain(self, request_id: str, now: float) -> Account | None:
        """Where the time of a request under way has gone so far; None if it is unknown or over."""
        live = self._requests.get(request_id)
        if live is None:
            return None
        return account_of(list(live.live.values())[0]).summary(now)  # noqa: RUF015 (a copy: another thread may ask)

    def check(self) -> None:
        """Assert every invariant of scheduler and cache. For tests after each step, and for an idle server."""
        check(self)
