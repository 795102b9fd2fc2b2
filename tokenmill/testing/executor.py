"""``FakeExecutor``: carries out plans without a model, and checks that they are right.

What stands in for the model is a chain of hashes: the "KV" of position ``p`` is a hash of tokens ``0 … p``,
so it depends on the whole history as real keys and values do, and the token drawn after it is a pure
function of that hash and the sequence's seed. Whatever the schedule (chunks, company, cached prefixes,
preemption, depth), a sequence must therefore get the same tokens; ``expected_tokens`` gives them from the
prompt alone.

Blocks hold the hashes that were written to them. Before a row may sample or go on, every position it
attends to is compared with the sequence's own chain: a stale block, a wrong copy, a block given to two
sequences, a position skipped or computed twice all raise ``PlanViolation`` with the place.

Steps are evaluated lazily, in order, when a result is asked for: with depth > 1 the scheduler really plans
without knowing the tokens in flight. Standard library only.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from tokenmill.core.errors import NotSupported
from tokenmill.core.params import SamplingParams
from tokenmill.core.pooling import Pooling
from tokenmill.core.step import NewSequence, StepPlan, StepResult, TokenLogprobs

_MASK = 2**64 - 1
_FIRST_HASH = 0x243F6A8885A308D3


class PlanViolation(AssertionError):
    """A plan that breaks the rules of ``core/step.py``, or would read or write the wrong KV."""


def simple_seconds(plan: StepPlan) -> float:
    """A step's virtual time: one millisecond, and ten microseconds a token."""
    return 1e-3 + 1e-5 * plan.num_tokens


def extend_chain(chain: list[int], token_ids: Iterable[int]) -> None:
    """Append the hash of each further token's history to ``chain``."""
    last = chain[-1] if chain else _FIRST_HASH
    for token_id in token_ids:
        last = _mix(last ^ (token_id + 1))
        chain.append(last)


@dataclass(slots=True)
class _Sequence:
    """What the executor knows of a sequence: tokens, their chain, its blocks, how far it is computed."""

    token_ids: list[int]
    chain: list[int]
    prompt_len: int
    params: SamplingParams
    seed: int
    stop_token_ids: tuple[int, ...]
    block_ids: list[int]
    pooling: Pooling | None
    num_computed: int | None = None
    """None until its first row, which may start after a cached prefix."""
    failed: bool = False

    @classmethod
    def from_new(cls, new: NewSequence) -> _Sequence:
        chain: list[int] = []
        extend_chain(chain, new.token_ids)
        stops = tuple(sorted(new.stop_token_ids))
        return cls(
            list(new.token_ids), chain, new.prompt_len, new.params, new.seed, stops, list(new.block_ids), new.pooling
        )


@dataclass(slots=True)
class _FakePending:
    executor: FakeExecutor
    plan: StepPlan
    done: StepResult | None = None

    def result(self) -> StepResult:
        while self.done is None:
            self.executor.run_next()
        return self.done


@dataclass(slots=True)
class _Outcome:
    """The columns of a ``StepResult`` under construction."""

    seq_ids: list[int] = field(default_factory=list)
    token_ids: list[tuple[int, ...]] = field(default_factory=list)
    logprobs: dict[int, tuple[TokenLogprobs, ...]] = field(default_factory=dict)
    prompt_logprobs: dict[int, tuple[int, tuple[TokenLogprobs, ...]]] = field(default_factory=dict)
    errors: dict[int, str] = field(default_factory=dict)
    embeddings: dict[int, bytes] = field(default_factory=dict)


class FakeExecutor:
    """An ``Executor`` (``engine/contracts.py``) that draws tokens from hashes and trusts no plan.

    Args:
        num_blocks, block_size: the KV pool that plans refer to.
        hidden_size: numbers of an embedding before it is cut.
        vocab_size: tokens drawn lie in ``0 … vocab_size - 1``.
        seconds: a step's virtual time; becomes ``StepResult.seconds``.
        stop_probability: how often the lowest of a sequence's stop tokens is drawn (otherwise none of them is).
        fail: called with (seq_id, position of the token to draw); a string makes that row fail with it.
        verify: compare all KV that rows read; False only where the executor's own speed matters.
    """

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        *,
        vocab_size: int = 1000,
        hidden_size: int = 8,
        seconds: Callable[[StepPlan], float] = simple_seconds,
        stop_probability: float = 0.0,
        fail: Callable[[int, int], str | None] | None = None,
        verify: bool = True,
    ) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.stop_probability = stop_probability
        self.started = False
        self.closed = False
        self.num_steps = 0
        self.num_tokens = 0
        """Tokens computed so far, recomputed ones included."""
        self._seconds = seconds
        self._fail = fail
        self._verify = verify
        self._sequences: dict[int, _Sequence] = {}
        self._slots: dict[int, list[int | None]] = {}
        self._queue: list[_FakePending] = []
        self._last_step_id: int | None = None

    # --- the contract -------------------------------------------------------------------------------

    def start(self) -> None:
        self.started = True

    def submit(self, plan: StepPlan) -> _FakePending:
        _require(not self.closed, plan, "submitted after close()")
        pending = _FakePending(self, plan)
        self._queue.append(pending)
        return pending

    def close(self) -> None:
        self.closed = True

    # --- what tests ask -----------------------------------------------------------------------------

    @property
    def known_seq_ids(self) -> frozenset[int]:
        """Sequences not dropped yet: empty once the scheduler has told of every end."""
        return frozenset(self._sequences)

    def expected_tokens(
        self,
        prompt_token_ids: Iterable[int],
        num_tokens: int,
        *,
        seed: int = 0,
        stop_token_ids: Iterable[int] = (),
        min_tokens: int = 0,
    ) -> tuple[int, ...]:
        """The continuation any right schedule gives: ``num_tokens``, or fewer where a stop token ends it."""
        chain: list[int] = []
        extend_chain(chain, prompt_token_ids)
        stops = tuple(sorted(stop_token_ids))
        drawn: list[int] = []
        while len(drawn) < num_tokens and not (drawn and drawn[-1] in stops):
            drawn.append(self._draw(chain[-1], seed, stops, may_stop=len(drawn) >= min_tokens))
            extend_chain(chain, drawn[-1:])
        return tuple(drawn)

    def expected_embedding(self, prompt_token_ids: Iterable[int], pooling: Pooling) -> bytes:
        """The embedding that any right schedule gives: numbers made of the prompt's history and nothing else."""
        chain: list[int] = []
        extend_chain(chain, prompt_token_ids)
        root = chain[-1] if pooling.kind == "last" else _mix(sum(chain) & _MASK)
        numbers = [_mix(root + 1 + i) / 2**63 - 1.0 for i in range(self.hidden_size)][: pooling.dimensions]
        length = math.hypot(*numbers) if pooling.normalize else 1.0
        return struct.pack(f"<{len(numbers)}f", *(number / length for number in numbers))

    # --- one step -----------------------------------------------------------------------------------

    def run_next(self) -> None:
        """Evaluate the oldest step submitted."""
        pending = self._queue.pop(0)
        pending.done = self._run(pending.plan)

    def _run(self, plan: StepPlan) -> StepResult:
        self._check_columns(plan)
        self._update_table(plan)
        for source, destination in plan.copies:
            self._check_blocks(plan, (source, destination))
            self._slots[destination] = list(self._block(source))
        rows = [
            (seq_id, self._sequences[seq_id], start, count)
            for seq_id, start, count in zip(plan.seq_ids, plan.starts, plan.counts, strict=True)
            if not self._sequences[seq_id].failed
        ]
        written: set[tuple[int, int]] = set()
        for seq_id, seq, start, count in rows:
            self._write_row(plan, seq_id, seq, start, count, written)
        outcome = _Outcome()
        for seq_id, seq, start, count in rows:
            if self._verify:
                self._verify_row(plan, seq_id, seq, start + count)
            self._finish_row(outcome, seq_id, seq, start, count)
        self.num_steps += 1
        self.num_tokens += plan.num_tokens
        return StepResult(
            plan.step_id,
            tuple(outcome.seq_ids),
            tuple(outcome.token_ids),
            outcome.logprobs,
            outcome.prompt_logprobs,
            outcome.errors,
            embeddings=outcome.embeddings,
            seconds=self._seconds(plan),
        )

    def _check_columns(self, plan: StepPlan) -> None:
        if plan.drafts:
            raise NotSupported("drafts are not verified yet; plan without them")
        _require(self.started, plan, "submitted before start()")
        _require(self._last_step_id is None or plan.step_id > self._last_step_id, plan, "step_id must grow")
        self._last_step_id = plan.step_id
        _require(len(plan.seq_ids) == len(plan.starts) == len(plan.counts), plan, "columns differ in length")
        _require(len(set(plan.seq_ids)) == len(plan.seq_ids), plan, "a sequence has two rows")

    def _update_table(self, plan: StepPlan) -> None:
        for seq_id in plan.dropped:
            _require(seq_id in self._sequences, plan, f"drops unknown sequence {seq_id}")
            del self._sequences[seq_id]
        for new in plan.new:
            _require(new.seq_id not in self._sequences, plan, f"sequence {new.seq_id} is new but known")
            _require(1 <= new.prompt_len <= len(new.token_ids), plan, f"sequence {new.seq_id}: bad prompt_len")
            self._sequences[new.seq_id] = _Sequence.from_new(new)
        for seq_id, (index, block_ids) in plan.block_updates.items():
            _require(seq_id in self._sequences, plan, f"blocks for unknown sequence {seq_id}")
            table = self._sequences[seq_id].block_ids
            _require(0 <= index <= len(table), plan, f"sequence {seq_id}: block update leaves a hole at {index}")
            table[index:] = block_ids
        for seq_id in (*(new.seq_id for new in plan.new), *plan.block_updates):
            table = self._sequences[seq_id].block_ids
            self._check_blocks(plan, table)
            _require(len(set(table)) == len(table), plan, f"sequence {seq_id} has a block twice: {table}")
        for seq_id in plan.seq_ids:
            _require(seq_id in self._sequences, plan, f"row of unknown sequence {seq_id}")

    def _check_blocks(self, plan: StepPlan, block_ids: Iterable[int]) -> None:
        for block_id in block_ids:
            _require(0 <= block_id < self.num_blocks, plan, f"block {block_id} is outside the pool")

    def _write_row(
        self, plan: StepPlan, seq_id: int, seq: _Sequence, start: int, count: int, written: set[tuple[int, int]]
    ) -> None:
        where = f"sequence {seq_id}, positions {start}+{count}"
        known = len(seq.token_ids)
        _require(count >= 1 and start >= 0, plan, f"{where}: empty or negative")
        _require(start + count <= known, plan, f"{where}: only {known} tokens are known")
        if seq.num_computed is not None:
            _require(start == seq.num_computed, plan, f"{where}: {seq.num_computed} are computed")
        elif seq.pooling is not None and seq.pooling.kind == "mean":
            _require(start == 0, plan, f"{where}: a mean over the prompt skips its beginning")
        _require(start + count <= len(seq.block_ids) * self.block_size, plan, f"{where}: no block for its end")
        for position in range(start, start + count):
            index, offset = divmod(position, self.block_size)
            slot = (seq.block_ids[index], offset)
            _require(slot not in written, plan, f"{where}: slot {slot} is written twice in this step")
            written.add(slot)
            self._block(slot[0])[offset] = seq.chain[position]
        seq.num_computed = start + count

    def _verify_row(self, plan: StepPlan, seq_id: int, seq: _Sequence, end: int) -> None:
        """Positions ``0 … end - 1`` must hold this sequence's own history."""
        size = self.block_size
        for index in range(-(-end // size)):
            wanted = seq.chain[index * size : min(end, (index + 1) * size)]
            found = self._block(seq.block_ids[index])[: len(wanted)]
            if found != wanted:
                offset = next(i for i, pair in enumerate(zip(found, wanted, strict=True)) if pair[0] != pair[1])
                state = "was never written" if found[offset] is None else "holds another history"
                _require(
                    False,
                    plan,
                    f"sequence {seq_id} reads position {index * size + offset}"
                    f" in block {seq.block_ids[index]}, which {state}",
                )

    def _finish_row(self, outcome: _Outcome, seq_id: int, seq: _Sequence, start: int, count: int) -> None:
        end = start + count
        if seq.params.prompt_logprobs is not None and start + 1 < seq.prompt_len:
            described = range(start + 1, min(end, seq.prompt_len - 1) + 1)
            entries = tuple(
                self._logprobs(seq.chain[p - 1], seq.token_ids[p], seq.params.prompt_logprobs) for p in described
            )
            outcome.prompt_logprobs[seq_id] = (start + 1, entries)
        if end < len(seq.token_ids):
            return
        error = self._fail(seq_id, end) if self._fail is not None else None
        if error is not None:
            seq.failed = True
            outcome.errors[seq_id] = error
            return
        if seq.pooling is not None:
            outcome.seq_ids.append(seq_id)
            outcome.token_ids.append(())
            outcome.embeddings[seq_id] = self.expected_embedding(seq.token_ids, seq.pooling)
            return
        may_stop = end - seq.prompt_len >= seq.params.min_tokens
        token_id = self._draw(seq.chain[-1], seq.seed, seq.stop_token_ids, may_stop=may_stop)
        if seq.params.logprobs is not None:
            outcome.logprobs[seq_id] = (self._logprobs(seq.chain[-1], token_id, seq.params.logprobs),)
        seq.token_ids.append(token_id)
        extend_chain(seq.chain, (token_id,))
        outcome.seq_ids.append(seq_id)
        outcome.token_ids.append((token_id,))

    def _draw(self, history: int, seed: int, stop_token_ids: tuple[int, ...], *, may_stop: bool) -> int:
        bits = _mix(history ^ _mix(seed & _MASK))
        if stop_token_ids and may_stop and bits / 2**64 < self.stop_probability:
            return stop_token_ids[0]
        token_id = _mix(bits) % self.vocab_size
        while token_id in stop_token_ids:
            token_id = (token_id + 1) % self.vocab_size
        return token_id

    def _logprobs(self, history: int, token_id: int, num_top: int) -> TokenLogprobs:
        top = tuple((_mix(history + 1 + i) % self.vocab_size, -1.0 - i) for i in range(num_top))
        return TokenLogprobs(token_id, -(_mix(history ^ token_id) % 1000) / 100, 1, top)

    def _block(self, block_id: int) -> list[int | None]:
        return self._slots.setdefault(block_id, [None] * self.block_size)


def _mix(value: int) -> int:
    """SplitMix64's finaliser (Steele, Lea, Flood 2014): 64 bits to 64 well-mixed bits."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def _require(ok: bool, plan: StepPlan, what: str) -> None:
    if not ok:
        raise PlanViolation(f"step {plan.step_id}: {what}")
