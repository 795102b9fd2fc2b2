"""``Sampler``: one token a row, or the reason why there is none.

::

    logits ─ finite? ─┬─ stages ─ anything left? ─┬─ temperature 0: the likeliest, lowest id first
                      │                           ├─ no filter: draw in order of token id
                      └─ log-probabilities        └─ filters: draw from the likeliest down

A row whose logits are not finite, or all of whose tokens are banned, gets an error in words instead of a
token; no other row is touched by it. -inf is a legal logit (a token that cannot come); NaN and +inf are
not. A temperature below ``GREEDY_BELOW`` is greedy: its limit, without the overflow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tokenmill.core.errors import GrammarFailed
from tokenmill.core.step import TokenLogprobs
from tokenmill.runtime.sampling.filters import draw, draw_filtered, is_filtered
from tokenmill.runtime.sampling.grammar import look_ahead
from tokenmill.runtime.sampling.logprobs import AT_ONCE, describe
from tokenmill.runtime.sampling.stages import GREEDY_BELOW, STAGES, GrammarMask, SampledSequence, Stage
from tokenmill.runtime.sampling.uniform import uniform

NOT_FINITE = "the model's logits are not finite at position {position}; the checkpoint or its precision is at fault"
OVERFLOW = "the logits at position {position} overflow under the request's penalties; use milder ones"
ALL_BANNED = "every token is banned at position {position}: loosen allowed_token_ids, logit_bias, bad_words or grammar"


class Sample(NamedTuple):
    """What came of one row: a token (with log-probabilities if wanted), or an error."""

    token_id: int | None
    logprobs: TokenLogprobs | None = None
    error: str | None = None
    error_code: str | None = None
    """Where it has one of its own (``core/step.py``: ``error_codes``)."""


class Sampler:
    """Chooses the next token of any number of sequences at once; keeps no state of its own."""

    def look_ahead(self, sequences: Sequence[SampledSequence]) -> None:
        """Begin what ``sample`` will need of these sequences and does not depend on logits."""
        masks = [stage for seq in sequences for stage in seq.stages if isinstance(stage, GrammarMask)]
        look_ahead([stage.follower for stage in masks])

    def sample(self, logits: Tensor, sequences: Sequence[SampledSequence]) -> list[Sample]:
        """Choose the token that follows the last known one of each sequence.

        Args:
            logits: [S, V] float32, one row a sequence; used as scratch.
            sequences: S of them; not changed (the caller appends the token).
        """
        num_rows = max(1, AT_ONCE // logits.shape[1])
        samples: list[Sample] = []
        for begin in range(0, len(sequences), num_rows):
            part = slice(begin, begin + num_rows)
            samples += _sample(logits[part], sequences[part])
        return samples


def _sample(logits: Tensor, sequences: Sequence[SampledSequence]) -> list[Sample]:
    errors = _not_finite(logits, sequences)
    live = [row for row in range(len(sequences)) if row not in errors]
    reported = [row for row in live if sequences[row].params.logprobs is not None]
    untouched = logits[reported] if reported else logits[:0]
    errors |= _apply_stages(logits, live, sequences)
    chosen = _choose(logits, [row for row in live if row not in errors], sequences)
    described = _describe(untouched, reported, chosen, sequences)
    return [
        Sample(chosen.get(row), described.get(row), errors.get(row), GrammarFailed.code if _fault_of(seq) else None)
        for row, seq in enumerate(sequences)
    ]


def _not_finite(logits: Tensor, sequences: Sequence[SampledSequence]) -> dict[int, str]:
    """Rows without a finite maximum (the maximum of a row with a NaN is NaN)."""
    finite: list[bool] = logits.amax(1).isfinite().tolist()
    return {row: NOT_FINITE.format(position=len(seq.token_ids)) for row, seq in enumerate(sequences) if not finite[row]}


def _apply_stages(scores: Tensor, live: list[int], sequences: Sequence[SampledSequence]) -> dict[int, str]:
    """Change ``scores`` in place; returns the rows that have no token left, with the reason."""
    rows: dict[type[Stage], list[int]] = {}
    states: dict[type[Stage], list[Stage]] = {}
    for row in live:
        for state in sequences[row].stages:
            rows.setdefault(type(state), []).append(row)
            states.setdefault(type(state), []).append(state)
    for stage in STAGES:
        if stage in rows:
            stage.apply(scores, rows[stage], states[stage])
    staged = [row for row in live if sequences[row].stages]
    peaks: list[float] = scores[staged].amax(1).tolist() if staged else []
    errors: dict[int, str] = {}
    for row, peak in zip(staged, peaks, strict=True):
        if not math.isfinite(peak):
            reason = (ALL_BANNED if peak == -math.inf else OVERFLOW).format(position=len(sequences[row].token_ids))
            errors[row] = _fault_of(sequences[row]) or reason
    return errors


def _fault_of(seq: SampledSequence) -> str | None:
    return next((stage.fault for stage in seq.stages if stage.fault is not None), None)


def _choose(scores: Tensor, rows: list[int], sequences: Sequence[SampledSequence]) -> dict[int, int]:
    greedy = [row for row in rows if sequences[row].params.temperature < GREEDY_BELOW]
    drawn = [row for row in rows if sequences[row].params.temperature >= GREEDY_BELOW]
    filtered = [row for row in drawn if is_filtered(sequences[row].params)]
    plain = [row for row in drawn if not is_filtered(sequences[row].params)]
    chosen: dict[int, int] = {}
    if greedy:
        chosen.update(zip(greedy, _take(scores, greedy).argmax(1).tolist(), strict=True))
    if plain:
        scaled, uniforms = _scale(scores, plain, sequences)
        chosen.update(zip(plain, draw(scaled.softmax(1), uniforms).tolist(), strict=True))
    if filtered:
        scaled, uniforms = _scale(scores, filtered, sequences)
        wishes = [sequences[row].params for row in filtered]
        chosen.update(zip(filtered, draw_filtered(scaled, scaled.softmax(1), wishes, uniforms).tolist(), strict=True))
    return chosen


def _scale(scores: Tensor, rows: list[int], sequences: Sequence[SampledSequence]) -> tuple[Tensor, Tensor]:
    """Rows over their temperatures [R, V] (the maximum taken off first, so that none overflows), uniforms [R, 1]."""
    taken = _take(scores, rows)
    temperatures = torch.tensor([sequences[row].params.temperature for row in rows], dtype=torch.float32)
    scaled = (taken - taken.amax(1, keepdim=True)).div_(temperatures[:, None])
    uniforms = uniform([sequences[row].seed for row in rows], [len(sequences[row].token_ids) for row in rows])
    return scaled, torch.from_numpy(uniforms)[:, None]


def _take(scores: Tensor, rows: list[int]) -> Tensor:
    return scores if len(rows) == len(scores) else scores[rows]


def _describe(
    logits: Tensor, rows: list[int], chosen: dict[int, int], sequences: Sequence[SampledSequence]
) -> dict[int, TokenLogprobs]:
    """Log-probabilities of the chosen tokens; ``logits[i]`` is row ``rows[i]`` as the model made it."""
    found = [i for i, row in enumerate(rows) if row in chosen]
    if not found:
        return {}
    wanted = [rows[i] for i in found]
    num_top = [sequences[row].params.logprobs or 0 for row in wanted]
    entries = describe(_take(logits, found), [chosen[row] for row in wanted], num_top)
    return dict(zip(wanted, entries, strict=True))
