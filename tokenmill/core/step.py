"""``StepPlan`` and ``StepResult``: the only records that cross between deciding and doing.

A step catches some sequences up by some tokens. Row ``i`` of a plan says: compute tokens
``starts[i] … starts[i] + counts[i] - 1`` of sequence ``seq_ids[i]``. Nothing says "prefill" or "decode":
a prompt, a chunk of one, one new token, and drafts to verify differ only in their counts. A row samples
when it reaches the last token that the worker knows of its sequence.

The records are columns, not rows of objects: a plan over 256 sequences is built and read at a fraction
of a microsecond per sequence. Sequences new to the worker come whole (``new``), known ones as deltas
(``block_updates``). A worker that carries out plans in order needs nothing else, so a list of plans and
results is a trace that replays exactly (``engine/journal.py``).

They are named tuples because one is made in a third of a frozen dataclass's time and cannot be changed either;
they are read by name, never unpacked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from tokenmill.core.params import SamplingParams
from tokenmill.core.pooling import Pooling


class NewSequence(NamedTuple):
    """A sequence the worker does not know (first time, or again after preemption), whole."""

    seq_id: int
    token_ids: tuple[int, ...]
    """Prompt, and what was generated before a preemption."""
    prompt_len: int
    params: SamplingParams
    seed: int
    stop_token_ids: frozenset[int]
    block_ids: tuple[int, ...]
    pooling: Pooling | None = None
    """If given, its prompt becomes an embedding, and no token is drawn."""


class StepPlan(NamedTuple):
    """What to compute in one step. ``seq_ids``, ``starts`` and ``counts`` are parallel columns."""

    step_id: int
    seq_ids: tuple[int, ...]
    starts: tuple[int, ...]
    """First token position to compute = tokens whose KV is already in the cache."""
    counts: tuple[int, ...]
    """How many tokens, drafts included; at least 1."""
    new: tuple[NewSequence, ...] = ()
    block_updates: Mapping[int, tuple[int, tuple[int, ...]]] = {}
    """seq_id → (index, block ids): the block table from ``index`` on becomes these."""
    copies: tuple[tuple[int, int], ...] = ()
    """(source, destination) blocks to copy before anything is computed (copy-on-write)."""
    drafts: Mapping[int, tuple[int, ...]] = {}
    """seq_id → guessed tokens after the last known one, to be verified in this row."""
    dropped: tuple[int, ...] = ()
    """Sequences to forget before anything else: finished, aborted or preempted."""

    @property
    def num_tokens(self) -> int:
        return sum(self.counts)

    @property
    def empty(self) -> bool:
        """Nothing to compute (there may be sequences to forget)."""
        return not self.seq_ids


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Log-probabilities at one position, in nats, of the model's own distribution."""

    token_id: int
    logprob: float
    rank: int
    """1 for the likeliest token."""
    top: tuple[tuple[int, float], ...]
    """The likeliest tokens with theirs, descending; ties by token id."""


class StepResult(NamedTuple):
    """What a step brought. ``seq_ids`` and ``token_ids`` are parallel: the rows that sampled."""

    step_id: int
    seq_ids: tuple[int, ...]
    token_ids: tuple[tuple[int, ...], ...]
    """The tokens drawn: one, or with drafts the accepted ones and one more; none where there is an embedding."""
    logprobs: Mapping[int, tuple[TokenLogprobs, ...]] = {}
    """seq_id → one entry per token drawn, where asked for."""
    prompt_logprobs: Mapping[int, tuple[int, tuple[TokenLogprobs, ...]]] = {}
    """seq_id → (position, entries): entry ``k`` is about the prompt token at ``position + k``."""
    errors: Mapping[int, str] = {}
    """seq_id → why this sequence alone failed (its logits were not finite, every token banned)."""
    error_codes: Mapping[int, str] = {}
    """seq_id → the code of that error (``core/errors.py``), where it is not ``numerical_error``."""
    drafts: Mapping[int, tuple[int, ...]] = {}
    """seq_id → guesses for the next step."""
    embeddings: Mapping[int, bytes] = {}
    """seq_id → its embedding, complete: little-endian float32."""
    seconds: float = 0.0
    """How long the step took on the executor's clock."""
    sampling_seconds: float = 0.0
    """Of these, drawing tokens from logits, as far as the executor tells them apart."""
