"""``Worker``: owns the model, the KV pool and the sequence table, and carries out one plan at a time.

::

    plan ─ table ─ block copies ─ inputs ─ model ─┬─ last hidden states of rows that sample ─ logits ─ sampler ─ tokens
                                                  └─ prompt positions asked about ─ logits ─ log-probabilities

It decides nothing. Plans come strictly in order; tokens drawn are put into the table, so the next plan may
build on them before anyone has told what they are. A row that fails (its logits are not finite, every token
is banned) reports an error instead of a token; the other rows of the step never notice.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tokenmill.core.errors import NotSupported
from tokenmill.core.params import SamplingParams
from tokenmill.core.step import NewSequence, StepPlan, StepResult, TokenLogprobs
from tokenmill.kernels import ops
from tokenmill.kernels.kv import KVTensors
from tokenmill.models.decoder import Decoder
from tokenmill.runtime.inputs import StepInputs
from tokenmill.runtime.poison import fresh_blocks, poison_all, poison_blocks
from tokenmill.runtime.sampling import Sampler
from tokenmill.runtime.sampling.logprobs import describe
from tokenmill.runtime.sampling.sampler import NOT_FINITE
from tokenmill.runtime.table import Row, SequenceTable

PROMPT_LOGITS_ROWS = 64
"""Prompt positions whose logits are held at once: a vocabulary of 150,000 takes 600 kB a row."""

_WARM_UP_TOKENS = 16


@dataclass(slots=True)
class _Outcome:
    """The columns of a ``StepResult`` under construction."""

    seq_ids: list[int] = field(default_factory=list)
    token_ids: list[tuple[int, ...]] = field(default_factory=list)
    logprobs: dict[int, tuple[TokenLogprobs, ...]] = field(default_factory=dict)
    prompt_logprobs: dict[int, tuple[int, tuple[TokenLogprobs, ...]]] = field(default_factory=dict)
    errors: dict[int, str] = field(default_factory=dict)

    def fail(self, row: Row, reason: str) -> None:
        row.entry.failed = True
        self.errors[row.seq_id] = reason


class Worker:
    """Carries out step plans on one device.

    Args:
        model: with its weights loaded.
        kv: the pool that the plans' block ids refer to; nothing else may write it.
        poison: fill blocks with NaN before they are used (``runtime/poison.py``); for tests.
    """

    def __init__(self, model: Decoder, kv: KVTensors, *, poison: bool = False) -> None:
        self.model = model
        self.kv = kv
        self._poison = poison
        self._table = SequenceTable(model.config.vocab_size)
        self._sampler = Sampler()
        if poison:
            poison_all(kv)

    @property
    def known_seq_ids(self) -> frozenset[int]:
        """Sequences not dropped yet."""
        return frozenset(self._table.entries)

    def warm_up(self) -> None:
        """Run a step whose outcome nobody wants, so that the first real one meets everything allocated."""
        num_tokens = min(_WARM_UP_TOKENS, self.kv.block_size)
        params = SamplingParams(temperature=0.0)
        new = NewSequence(-1, (0,) * num_tokens, num_tokens, params, 0, frozenset(), (0,))
        self.run(StepPlan(-1, (-1,), (0,), (num_tokens,), (new,)))
        self.run(StepPlan(-1, (), (), (), dropped=(-1,)))
        if self._poison:
            poison_blocks(self.kv, (0,))

    @torch.inference_mode()
    def run(self, plan: StepPlan) -> StepResult:
        """Carry out a plan. Raises ``NotSupported`` for drafts; anything else that raises is a bug or the machine's."""
        began_s = time.perf_counter()
        if plan.drafts:
            raise NotSupported("drafts are not verified yet; plan without them")
        self._table.update(plan)
        if self._poison:
            poison_blocks(self.kv, fresh_blocks(plan, self._table, self.kv.block_size))
        ops.copy_blocks(self.kv, plan.copies)
        outcome = _Outcome()
        rows = self._table.rows(plan)
        if rows:
            self._compute(rows, outcome)
        return StepResult(
            plan.step_id,
            tuple(outcome.seq_ids),
            tuple(outcome.token_ids),
            outcome.logprobs,
            outcome.prompt_logprobs,
            outcome.errors,
            seconds=time.perf_counter() - began_s,
        )

    def _compute(self, rows: list[Row], outcome: _Outcome) -> None:
        model = self.model
        inputs = StepInputs.build(rows, model.config, block_size=self.kv.block_size, device=model.device)
        hidden = model.forward(inputs.token_ids, inputs.batch.positions, inputs.batch, self.kv)
        for index, row in enumerate(rows):
            if row.entry.sampling.params.prompt_logprobs is not None:
                self._describe_prompt(hidden, inputs.offsets[index], row, outcome)
        sampling = [i for i, row in enumerate(rows) if row.samples and not row.entry.failed]
        last = [inputs.offsets[i] + rows[i].end - rows[i].start - 1 for i in sampling]
        self._sample(hidden[last], [rows[i] for i in sampling], outcome)

    def _sample(self, hidden: Tensor, rows: list[Row], outcome: _Outcome) -> None:
        """Draw a token for each row from its last hidden state; ``hidden`` is [S, hidden_size]."""
        if not rows:
            return
        logits = self.model.logits(hidden).cpu()  # tokens are chosen on the host
        samples = self._sampler.sample(logits, [row.entry.sampling for row in rows])
        for row, sample in zip(rows, samples, strict=True):
            if sample.token_id is None:
                outcome.fail(row, sample.error or "no token")
                continue
            row.entry.token_ids.append(sample.token_id)
            outcome.seq_ids.append(row.seq_id)
            outcome.token_ids.append((sample.token_id,))
            if sample.logprobs is not None:
                outcome.logprobs[row.seq_id] = (sample.logprobs,)

    def _describe_prompt(self, hidden: Tensor, offset: int, row: Row, outcome: _Outcome) -> None:
        """Log-probabilities of prompt tokens: the hidden state at position ``p`` is about the token at ``p + 1``."""
        sampling = row.entry.sampling
        first, last = row.start + 1, min(row.end, sampling.prompt_len - 1)
        num_top = sampling.params.prompt_logprobs or 0
        entries: list[TokenLogprobs] = []
        for begin in range(first, last + 1, PROMPT_LOGITS_ROWS):
            end = min(begin + PROMPT_LOGITS_ROWS, last + 1)
            at = offset + begin - first
            logits = self.model.logits(hidden[at : at + end - begin]).cpu()
            if not bool(logits.amax(1).isfinite().all()):
                outcome.fail(row, NOT_FINITE.format(position=f"{begin} … {end - 1}"))
                return
            entries += describe(logits, row.entry.token_ids[begin:end], [num_top] * (end - begin))
        if entries:
            outcome.prompt_logprobs[row.seq_id] = (first, tuple(entries))
