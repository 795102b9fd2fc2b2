"""Log-probabilities of the model's own distribution: the logits as they came, before any stage.

The floor keeps them finite in JSON: a token of probability zero is reported at ``LOGPROB_FLOOR`` (other
servers' convention). Order and rank are those of the logits, equal ones by token id, so rank ``r`` is always
entry ``r`` of the list of likeliest tokens, and a greedy choice has rank 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tokenmill.core.step import TokenLogprobs
from tokenmill.runtime.sampling.filters import likeliest

LOGPROB_FLOOR = -9999.0
AT_ONCE = 2**20
"""Logits worked on at once: with large vocabularies a few rows after the other, in memory that stays warm."""


def describe(logits: Tensor, token_ids: Sequence[int], num_top: Sequence[int]) -> list[TokenLogprobs]:
    """The log-probability and rank of a token in each row, and the row's likeliest tokens.

    Args:
        logits: [S, V] float32, finite or -inf, not all -inf in a row.
        token_ids: the token to report, one a row.
        num_top: how many of the likeliest to report, one number a row.
    """
    num_rows = max(1, AT_ONCE // logits.shape[1])
    entries: list[TokenLogprobs] = []
    for begin in range(0, len(logits), num_rows):
        part = slice(begin, begin + num_rows)
        entries += _describe(logits[part], token_ids[part], num_top[part])
    return entries


def _describe(logits: Tensor, token_ids: Sequence[int], num_top: Sequence[int]) -> list[TokenLogprobs]:
    logprobs = logits.log_softmax(1).clamp_(min=LOGPROB_FLOOR)
    chosen = torch.tensor(token_ids, dtype=torch.int64)[:, None]
    own: list[float] = logprobs.gather(1, chosen)[:, 0].tolist()
    ranks = _ranks(logits, chosen)
    width = min(max(num_top), logits.shape[1])
    top_ids: list[list[int]] = [[] for _ in own]
    top_logprobs: list[list[float]] = [[] for _ in own]
    if width > 0:
        top = likeliest(logits, width)
        top_ids, top_logprobs = top.tolist(), logprobs.gather(1, top).tolist()
    return [
        TokenLogprobs(token_ids[i], own[i], ranks[i], tuple(zip(top_ids[i][:n], top_logprobs[i][:n], strict=True)))
        for i, n in enumerate(num_top)
    ]


def _ranks(logits: Tensor, chosen: Tensor) -> list[int]:
    """1 + how many tokens come before the chosen one."""
    value = logits.gather(1, chosen)
    earlier = torch.arange(logits.shape[1]) < chosen
    before = (logits > value) | ((logits == value) & earlier)
    ranks: list[int] = (before.sum(1) + 1).tolist()
    return ranks
