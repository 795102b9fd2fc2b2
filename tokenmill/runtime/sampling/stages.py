"""What changes logits before temperature: one class a stage, one instance a sequence that asks for it.

A stage's ``prepare`` looks at a sequence once, when the worker learns of it, and returns the stage's own data or
None. A step collects the instances of its rows and calls ``apply`` once a stage: rows that do not ask
for a stage are not touched by it, and a stage that no row asks for costs nothing.

What depends on tokens so far is kept up to date by reading only the new ones (``TokenCounts``); built anew
from the sequence's tokens after a preemption, it is exactly what it was.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tokenmill.core.params import SamplingParams
from tokenmill.engine.contracts import Grammars
from tokenmill.runtime.sampling.filters import Typical
from tokenmill.runtime.sampling.grammar import Follower

GREEDY_BELOW = 1e-5
"""Temperatures below this are 0: the limit, without the overflow."""

BAN_BIAS = -100.0
"""A logit bias this low is a ban, as the API promises, whatever the size of the logits."""


@dataclass(slots=True)
class SampledSequence:
    """What sampling knows of a sequence. ``token_ids`` is the worker's own list, and grows."""

    token_ids: list[int]
    prompt_len: int
    params: SamplingParams
    seed: int
    stop_token_ids: frozenset[int]
    vocab_size: int
    grammars: Grammars | None = None
    """What makes matchers for ``params.grammar``."""
    stages: tuple[Stage, ...] = field(init=False)
    """The stages that this sequence asks for, in order."""
    is_plain: bool = field(init=False)
    """The likeliest token, or a draw after temperature, top-k, top-p and min-p, is all that is wanted: nobody needs to
    see the logits."""

    def __post_init__(self) -> None:
        prepared = (stage.prepare(self) for stage in STAGES)
        self.stages = tuple(stage for stage in prepared if stage is not None)
        reported = self.params.logprobs is not None or self.params.prompt_logprobs is not None
        greedy = self.params.temperature < GREEDY_BELOW
        self.is_plain = not (self.stages or reported) and (greedy or not Typical.wanted(self.params))


class Stage(ABC):
    """One way of changing logits."""

    @classmethod
    @abstractmethod
    def prepare(cls, seq: SampledSequence) -> Self | None:
        """The stage's data for this sequence; None if its parameters do not ask for the stage."""

    @classmethod
    @abstractmethod
    def apply(cls, scores: Tensor, rows: list[int], states: Sequence[Any]) -> None:
        """Change rows ``rows`` of ``scores`` [S, V] float32 in place; ``states[i]`` belongs to ``rows[i]``."""

    @property
    def fault(self) -> str | None:
        """Why ``apply`` left the row no token, if the stage itself failed."""
        return None


class TokenCounts:
    """How often each token occurs in ``token_ids[begin:]``; reads each token once."""

    def __init__(self, token_ids: list[int], begin: int, vocab_size: int) -> None:
        self._token_ids = token_ids
        self._num_read = begin
        self._vocab_size = vocab_size
        self._slots: dict[int, int] = {}
        self._ids: npt.NDArray[np.int64] = np.empty(64, dtype=np.int64)
        self._counts: npt.NDArray[np.float32] = np.empty(64, dtype=np.float32)

    def read(self) -> tuple[Tensor, Tensor]:
        """Distinct token ids [D] int64 and their counts [D] float32, up to the last token known."""
        for token_id in self._token_ids[self._num_read :]:
            if token_id < self._vocab_size:
                self._count(token_id)
        self._num_read = len(self._token_ids)
        used = len(self._slots)
        return torch.from_numpy(self._ids[:used]), torch.from_numpy(self._counts[:used])

    def _count(self, token_id: int) -> None:
        slot = self._slots.get(token_id)
        if slot is None:
            slot = self._add(token_id)
        self._counts[slot] += 1.0

    def _add(self, token_id: int) -> int:
        slot = len(self._slots)
        if slot == len(self._ids):
            self._ids = np.concatenate((self._ids, np.empty_like(self._ids)))
            self._counts = np.concatenate((self._counts, np.empty_like(self._counts)))
        self._slots[token_id] = slot
        self._ids[slot], self._counts[slot] = token_id, 0.0
        return slot


@dataclass(slots=True)
class AllowedTokens(Stage):
    """``allowed_token_ids``: bans every other token."""

    token_ids: Tensor

    @classmethod
    def prepare(cls, seq: SampledSequence) -> Self | None:
        allowed = seq.params.allowed_token_ids
        return None if allowed is None else cls(_ids(allowed, seq.vocab_size))

    @classmethod
    def apply(cls, scores: Tensor, rows: list[int], states: Sequence[AllowedTokens]) -> None:
        at = _places(rows, [state.token_ids for state in states])
        kept = scores[at]
        scores[torch.tensor(rows)] = -math.inf
        scores[at] = kept


@dataclass(slots=True)
class LogitBias(Stage):
    """``logit_bias``: adds to the logits of named tokens."""

    token_ids: Tensor
    biases: Tensor

    @classmethod
    def prepare(cls, seq: SampledSequence) -> Self | None:
        bias = {t: b for t, b in seq.params.logit_bias.items() if t < seq.vocab_size}
        if not bias:
            return None
        values = [-math.inf if b <= BAN_BIAS else b for b in bias.values()]
        return cls(_ids(bias, seq.vocab_size), torch.tensor(values, dtype=torch.float32))

    @classmethod
    def apply(cls, scores: Tensor, rows: list[int], states: Sequence[LogitBias]) -> None:
        at = _places(rows, [state.token_ids for state in states])
        scores[at] = scores[at] + torch.cat([state.biases for state in states])


@dataclass(slots=True)
class BadWords(Stage):
    """``bad_words_ids``: bans the last token of a sequence whose other tokens have just gone by."""

    seq: SampledSequence
    single_ids: list[int]
    longer: dict[int, list[tuple[int, ...]]]
    """Words of two and more tokens, by the one before their last."""

    @classmethod
    def prepare(cls, seq: SampledSequence) -> Self | None:
        words = [tuple(word) for word in seq.params.bad_words_ids if max(word) < seq.vocab_size]
        if not words:
            return None
        longer: dict[int, list[tuple[int, ...]]] = {}
        for word in words:
            if len(word) > 1:
                longer.setdefault(word[-2], []).append(word)
        return cls(seq, [word[0] for word in words if len(word) == 1], longer)

    def banned(self) -> list[int]:
        """The tokens that would complete a word now."""
        tokens = self.seq.token_ids
        begun = self.longer.get(tokens[-1], ())
        return self.single_ids + [w[-1] for w in begun if tuple(tokens[-(len(w) - 1) :]) == w[:-1]]

    @classmethod
    def apply(cls, scores: Tensor, rows: list[int], states: Sequence[BadWords]) -> None:
        banned = [torch.tensor(state.banned(), dtype=torch.int64) for state in states]
        scores[_places(rows, banned)] = -math.inf


@dataclass(slots=True)
class MinTokens(Stage):
    """``min_tokens``: bans the tokens that end a sequence until enough are out."""

    seq: SampledSequence
    until: int
    """Length of the sequence, prompt included, from which it may end."""
    stop_ids: Tensor

    @classmethod
    def prepare(cls, seq: SampledSequence) -> Self | None:
        if seq.params.min_tokens == 0 or not seq.stop_token_ids:
            return None
        stop_ids = _ids(sorted(seq.stop_token_ids), seq.vocab_size)
        return cls(seq, seq.prompt_len + seq.params.min_tokens, stop_ids)

    @classmethod
    def apply(cls, scores: Tensor, rows: list[int], states: Sequence[MinTokens]) -> None:
        bound = [(row, state) for row, state in zip(rows, states, strict=True) if state.holds]
        if bound:
            scores[_places([row for row, _ in bound], [state.stop_ids for _, state in bound])] = -math.inf

    @property
    def holds(self) -> bool:
        return len(self.seq.token_ids) < self.until


@dataclass(slots=True)
class RepetitionPenalty(Stage):
    """``repetition_penalty``: divides positive and multiplies negative logits of tokens in prompt or output."""

    penalty: float
    counts: TokenCounts

    @classmethod
    def prepare(cls, seq: SampledSequence) -> Self | None:
        penalty = seq.params.repetition_penalty
        return None if penalty == 1.0 else cls(penalty, TokenCounts(seq.token_ids, 0, seq.vocab_size))

    @classmethod
    def apply(cls, scores: Tensor, rows: list[int], states: Sequence[RepetitionPenalty]) -> None:
        seen = [state.counts.read()[0] for state in states]
        at = _places(rows, seen)
        values = scores[at]
        penalties = torch.cat([torch.full((len(ids),), s.penalty) for ids, s in zip(seen, states, strict=True)])
        scores[at] = torch.where(values > 0, values / penalties, values * penalties)


@dataclass(slots=True)
class OccurrencePenalty(Stage):
    """``presence_penalty`` and ``frequency_penalty``: subtract for tokens already generated, once and by count."""

    presence: float
    frequency: float
    counts: TokenCounts

    @classmethod
    def prepare(cls, seq: SampledSequence) -> Self | None:
        params = seq.params
        if params.presence_penalty == 0.0 and params.frequency_penalty == 0.0:
            return None
        counts = TokenCounts(seq.token_ids, seq.prompt_len, seq.vocab_size)
        return cls(params.presence_penalty, params.frequency_penalty, counts)

    @classmethod
    def apply(cls, scores: Tensor, rows: list[int], states: Sequence[OccurrencePenalty]) -> None:
        seen = [state.counts.read() for state in states]
        at = _places(rows, [ids for ids, _ in seen])
        pairs = zip(seen, states, strict=True)
        scores[at] = scores[at] - torch.cat([counts * s.frequency + s.presence for (_, counts), s in pairs])


_BANS = np.where(
    np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little"), 0.0, -np.inf
).astype(np.float32)
"""What to add to the scores of eight tokens, by their byte of the mask: this costs a tenth of a masked fill."""


@dataclass(slots=True)
class GrammarMask(Stage):
    """``grammar``: bans what cannot come next. An answer that is complete ends, whatever else bans the end."""

    follower: Follower

    @classmethod
    def prepare(cls, seq: SampledSequence) -> Self | None:
        grammar = seq.params.grammar
        return None if grammar is None else cls(Follower(grammar, seq.grammars, seq.token_ids, seq.prompt_len))

    @classmethod
    def apply(cls, scores: Tensor, rows: list[int], states: Sequence[GrammarMask]) -> None:
        values = scores.numpy()
        num_bytes = -(-values.shape[1] // 8)
        bans = np.empty((num_bytes, 8), np.float32)
        for row, state in zip(rows, states, strict=True):
            mask = state.follower.mask()
            if mask is None:
                values[row] = -math.inf
                continue
            if state.follower.complete:
                values[row] = 0.0
            codes = np.frombuffer(mask, np.uint8, num_bytes)
            np.take(_BANS, codes, axis=0, out=bans, mode="clip")  # mode "raise" would make a copy
            values[row] += bans.reshape(-1)[: values.shape[1]]

    @property
    def fault(self) -> str | None:
        return self.follower.fault


STAGES: tuple[type[Stage], ...] = (
    AllowedTokens,
    LogitBias,
    BadWords,
    MinTokens,
    RepetitionPenalty,
    OccurrencePenalty,
    GrammarMask,
)
"""All stages, in the order in which they are carried out."""


def _ids(token_ids: Any, vocab_size: int) -> Tensor:
    """Those of ``token_ids`` that the model has, as int64 [n]; a token that it lacks needs no ban."""
    return torch.tensor([t for t in dict.fromkeys(token_ids) if t < vocab_size], dtype=torch.int64)


def _places(rows: list[int], ids: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Index of all (rows[i], ids[i][j]) at once: row numbers [N] and token ids [N]."""
    lengths = torch.tensor([len(i) for i in ids])
    return torch.repeat_interleave(torch.tensor(rows), lengths), torch.cat(ids)
