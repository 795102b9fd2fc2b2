"""``Worker``: owns the model, the KV pool and the sequence table, and carries out plans.

::

    plan ─ table ─ block copies ─ model ─┬─ last tokens of rows that sample ─┬─ plain: the model chooses ─ tokens
                                         │                                   └─ logits ─ sampler ─ tokens
                                         ├─ prompt positions asked about ─ logits ─ log-probabilities
                                         └─ prompts to embed ─ hidden states ─ pooled ─ embeddings

It decides nothing. Plans come strictly in order; tokens drawn are put into the table, so the next plan may
build on them before anyone has told what they are.

``begin`` takes a plan in, ``finish`` waits for what it brings. A model that draws tokens itself may be under way with
a step when the next one begins, which builds on tokens that nobody here has seen (``UNKNOWN`` in the table until then).
A step in which a row needs more than that (log-probabilities, a grammar, an embedding) is computed when it is finished,
or when the next one begins: what follows such a row has to be known first.

A row that fails (its logits are not finite, every token
is banned) reports an error instead of a token; the other rows of the step never notice. Nor do they when a step
raises: its rows are computed again in halves until the one at fault stands alone (``runtime/bisection.py``).
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from itertools import accumulate

import numpy as np
import torch

from tokenmill.core.errors import NotSupported
from tokenmill.core.params import SamplingParams
from tokenmill.core.step import NewSequence, StepPlan, StepResult, TokenLogprobs
from tokenmill.engine.contracts import Grammars
from tokenmill.engine.faults import fire
from tokenmill.runtime.bisection import Bisection, DeviceFailed, Outcome, telling_device_failures
from tokenmill.runtime.poison import fresh_blocks
from tokenmill.runtime.pooling import HIDDEN_ROWS, Pooled
from tokenmill.runtime.pooling import NOT_FINITE as HIDDEN_NOT_FINITE
from tokenmill.runtime.sampling import SampledSequence, Sampler
from tokenmill.runtime.sampling.logprobs import describe
from tokenmill.runtime.sampling.sampler import NOT_FINITE
from tokenmill.runtime.sampling.stages import GREEDY_BELOW
from tokenmill.runtime.sampling.uniform import uniform
from tokenmill.runtime.step_model import Draws, StepModel, Tokens
from tokenmill.runtime.table import UNKNOWN, Row, SequenceTable

PROMPT_LOGITS_ROWS = 64
"""Prompt positions whose logits are held at once: a vocabulary of 150,000 takes 600 kB a row."""

MIN_STEP_TOKENS = 16
"""The warm-up's step."""


@dataclass(slots=True, eq=False)
class Begun:
    """A step between ``begin`` and ``finish``."""

    step_id: int
    rows: list[Row]
    began_s: float
    tokens: Tokens | None = None
    """Of a step that runs; None: it is still to be computed."""
    sampling: list[Row] = field(default_factory=list)
    """The rows that ``tokens`` are of."""
    outcome: Outcome = field(default_factory=Outcome)
    seconds: float = 0.0
    sampling_seconds: float = 0.0


class Worker:
    """Carries out step plans on one device.

    Args:
        model: with its weights and the pool that the plans' block ids refer to.
        grammars: what follows answers that must keep to a grammar; without it such a request fails.
        poison: fill blocks with NaN before they are used (``runtime/poison.py``); for tests.
    """

    def __init__(self, model: StepModel, *, grammars: Grammars | None = None, poison: bool = False) -> None:
        self.model = model
        self._poison = poison
        self._table = SequenceTable(model.config.vocab_size, grammars)
        self._sampler = Sampler()
        self._bisection = Bisection()
        self._sampling_s = 0.0  # of the step being computed
        self._settled_s = 0.0  # when the last step was over
        self._open: deque[Begun] = deque()
        if poison:
            model.poison(range(model.num_blocks))

    @property
    def known_seq_ids(self) -> frozenset[int]:
        """Sequences not dropped yet."""
        return frozenset(self._table.entries)

    def warm_up(self) -> None:
        """Run a step whose outcome nobody wants, so that the first real one meets everything allocated."""
        num_tokens = min(MIN_STEP_TOKENS, self.model.block_size, self.model.max_context)
        params = SamplingParams(temperature=0.0)
        new = NewSequence(-1, (0,) * num_tokens, num_tokens, params, 0, frozenset(), (0,))
        self.run(StepPlan(-1, (-1,), (0,), (num_tokens,), (new,)))
        self.run(StepPlan(-1, (), (), (), dropped=(-1,)))
        if self._poison:
            self.model.poison((0,))

    def run(self, plan: StepPlan) -> StepResult:
        """Carry out a plan, from beginning to end; raises what ``begin`` and ``finish`` raise."""
        return self.finish(self.begin(plan))

    def begin(self, plan: StepPlan) -> Begun:
        """Take a plan in, and start what can be started of it.

        Raises ``NotSupported`` for drafts; anything else that raises is a bug or the machine's.
        """
        if plan.drafts:
            raise NotSupported("drafts are not verified yet; plan without them")
        if self._open and self._open[-1].tokens is None:
            self._settle(self._open[-1])
        step = Begun(plan.step_id, [], time.perf_counter())
        self.model.forget(self._table.slots(plan.dropped))
        self._table.update(plan, step.outcome.refuse)
        if self._poison:
            self.model.poison(fresh_blocks(plan, self._table, self.model.block_size))
        if plan.copies:
            self.model.copy_blocks(plan.copies)
        step.rows = self._table.rows(plan)
        self._open.append(step)
        self._launch(step)
        return step

    def finish(self, step: Begun) -> StepResult:
        """Wait for a step, and for all before it. Raises where the machine is broken and not a request."""
        if step in self._open:
            self._settle(step)
        outcome = step.outcome
        return StepResult(
            step.step_id,
            tuple(outcome.seq_ids),
            tuple(outcome.token_ids),
            outcome.logprobs,
            outcome.prompt_logprobs,
            outcome.errors,
            outcome.error_codes,
            embeddings=outcome.embeddings,
            seconds=step.seconds,
            sampling_seconds=step.sampling_seconds,
        )

    def _launch(self, step: Begun) -> None:
        """Let the model go ahead with the step, if it can."""
        rows = step.rows
        if not rows or not self.model.can_launch(rows):
            return
        try:
            fire("worker.step", rows, tokens=lambda: (t for row in rows for t in row.entry.token_ids))
            with telling_device_failures():
                step.tokens = self.model.launch(rows)
        except DeviceFailed:
            raise
        except Exception:  # noqa: BLE001 (computed the long way it raises again, and then the row at fault is found)
            return
        step.sampling = [row for row in rows if row.samples]
        for row in step.sampling:
            row.entry.token_ids.append(UNKNOWN)

    def _settle(self, step: Begun) -> None:
        """Have all that ``step`` brings, and the steps before it."""
        while self._open:
            first = self._open.popleft()
            first.began_s = max(first.began_s, self._settled_s)
            self._sampling_s = 0.0
            if first.tokens is not None:
                self._take(first.tokens, first)
            elif rows := [row for row in first.rows if not row.entry.failed]:
                self._bisection.run(self._compute, rows, first.outcome)
            self._settled_s = time.perf_counter()
            first.seconds, first.sampling_seconds = self._settled_s - first.began_s, self._sampling_s
            if first is step:
                return

    def _take(self, tokens: Tokens, step: Begun) -> None:
        """Wait for the tokens of a step that was launched, and put them in their places."""
        with telling_device_failures():
            drawn = tokens.wait()
        outcome = step.outcome
        for row, token_id in zip(step.sampling, drawn, strict=True):
            if row.entry.failed:
                continue  # told before: this step began when it was not known
            if token_id < 0:
                outcome.fail(row, NOT_FINITE.format(position=row.end))
                continue
            row.entry.token_ids[row.end] = token_id
            outcome.seq_ids.append(row.seq_id)
            outcome.token_ids.append((token_id,))

    def _compute(self, rows: list[Row], outcome: Outcome) -> None:
        ends = list(accumulate(row.end - row.start for row in rows))
        sampling = [i for i, row in enumerate(rows) if row.samples]
        fire("worker.step", rows, tokens=lambda: (t for row in rows for t in row.entry.token_ids))
        self._sampler.look_ahead([rows[i].entry.sampling for i in sampling])
        self.model.forward(rows, [ends[i] - 1 for i in sampling])
        sampling = self._take_plain(rows, sampling, outcome)
        for row, end in zip(rows, ends, strict=True):
            if row.entry.pooled is not None:
                self._pool(end - row.end, row, row.entry.pooled, outcome)
            if row.entry.sampling.params.prompt_logprobs is not None:
                self._describe_prompt(end - (row.end - row.start), row, outcome)
        sampling = [i for i in sampling if not rows[i].entry.failed]
        if sampling:
            self._sample([ends[i] - 1 for i in sampling], [rows[i] for i in sampling], outcome)

    def _take_plain(self, rows: list[Row], sampling: list[int], outcome: Outcome) -> list[int]:
        """Let the model choose where a token is all that is wanted; returns the rows left to the sampler."""
        if not any(self.model.chooses(rows[i]) for i in sampling):
            return sampling
        began_s = time.perf_counter()
        chosen = self.model.choose(_draws([rows[i].entry.sampling for i in sampling]))
        self._sampling_s += time.perf_counter() - began_s
        if chosen is None:
            return sampling
        left = []
        for i, token_id in zip(sampling, chosen, strict=True):
            if token_id < 0:
                left.append(i)
                continue
            row = rows[i]
            row.entry.token_ids.append(token_id)
            outcome.seq_ids.append(row.seq_id)
            outcome.token_ids.append((token_id,))
        return left

    @torch.inference_mode()
    def _sample(self, tokens: list[int], rows: list[Row], outcome: Outcome) -> None:
        """Draw a token for each row; ``tokens``: the step's tokens that they follow."""
        logits = self.model.logits(tokens)
        fire("worker.logits", (rows, logits))
        fire("worker.sample", rows, tokens=lambda: (t for row in rows for t in row.entry.token_ids))
        began_s = time.perf_counter()
        samples = self._sampler.sample(logits, [row.entry.sampling for row in rows])
        self._sampling_s += time.perf_counter() - began_s
        for row, sample in zip(rows, samples, strict=True):
            if sample.token_id is None:
                outcome.fail(row, sample.error or "no token", sample.error_code)
                continue
            row.entry.token_ids.append(sample.token_id)
            outcome.seq_ids.append(row.seq_id)
            outcome.token_ids.append((sample.token_id,))
            if sample.logprobs is not None:
                outcome.logprobs[row.seq_id] = (sample.logprobs,)

    def _pool(self, offset: int, row: Row, pooled: Pooled, outcome: Outcome) -> None:
        """Take the row's hidden states into its embedding; position ``p`` is the step's token ``offset + p``."""
        positions = pooled.wanted(row.start, row.end)
        for begin in range(0, len(positions), HIDDEN_ROWS):
            tokens = [offset + position for position in positions[begin : begin + HIDDEN_ROWS]]
            pooled.add(self.model.hidden(tokens).numpy())
        if row.end < pooled.num_tokens:
            return
        values = pooled.values()
        if values is None:
            outcome.fail(row, HIDDEN_NOT_FINITE.format(position=row.end - 1))
            return
        outcome.seq_ids.append(row.seq_id)
        outcome.token_ids.append(())
        outcome.embeddings[row.seq_id] = values

    @torch.inference_mode()
    def _describe_prompt(self, offset: int, row: Row, outcome: Outcome) -> None:
        """Log-probabilities of prompt tokens: the step's token at position ``p`` is about the one at ``p + 1``."""
        sampling = row.entry.sampling
        first, last = row.start + 1, min(row.end, sampling.prompt_len - 1)
        num_top = sampling.params.prompt_logprobs or 0
        entries: list[TokenLogprobs] = []
        for begin in range(first, last + 1, PROMPT_LOGITS_ROWS):
            end = min(begin + PROMPT_LOGITS_ROWS, last + 1)
            at = offset + begin - first
            logits = self.model.logits(range(at, at + end - begin))
            if not bool(logits.amax(1).isfinite().all()):
                outcome.fail(row, NOT_FINITE.format(position=f"{begin} … {end - 1}"))
                return
            entries += describe(logits, row.entry.token_ids[begin:end], [num_top] * (end - begin))
        if entries:
            outcome.prompt_logprobs[row.seq_id] = (first, tuple(entries))


def _draws(sequences: list[SampledSequence]) -> Draws | None:
    """What ``StepModel.choose`` is asked for; None: nothing but the likeliest."""
    temperatures = [_temperature(seq) for seq in sequences]
    if not any(temperatures):
        return None
    params = [seq.params for seq in sequences]
    return Draws(
        np.array(temperatures, np.float32),
        uniform([seq.seed for seq in sequences], [len(seq.token_ids) for seq in sequences]),
        np.array([max(wish.top_k, 0) for wish in params], np.int32),
        np.array([wish.top_p for wish in params], np.float32),
        np.array([wish.min_p for wish in params], np.float32),
    )


def _temperature(seq: SampledSequence) -> float:
    """As ``Draws`` has it."""
    if not seq.is_plain:
        return -1.0
    return seq.params.temperature if seq.params.temperature >= GREEDY_BELOW else 0.0
