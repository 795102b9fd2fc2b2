"""What narrows the choice after temperature, and the draw from what is left.

All filters look at tokens from the likeliest down (equal ones by token id), so they work on ``Candidates``:
the row sorted, with a weight a token, zero once it is filtered out. Each filter is one class that zeroes
further weights; the mass it refers to is that of the tokens the filters before it kept.

Sorting a whole vocabulary is slow, and most choices are settled by the first few tokens. So a row is tried
on its ``WIDTHS[0]`` likeliest tokens, then on more; if the last of these is filtered out, nothing beyond could
have been kept, and the row is settled. All widths lead to the same token.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tokenmill.core.params import SamplingParams

WIDTHS = (63, 1023)
"""How many of the likeliest tokens are tried before the whole vocabulary is sorted."""


@dataclass(slots=True)
class Candidates:
    """The likeliest tokens of some rows, in order."""

    token_ids: Tensor  # [F, H] int64
    scores: Tensor  # [F, H] float32: logits over temperature
    weights: Tensor  # [F, H] float32: probabilities before filtering; 0: filtered out
    mass: Tensor  # [F, 1] float64: what the weights (those beyond H too) add up to

    def drop(self, mask: Tensor) -> None:
        """Filter out where ``mask`` [F, H] is true."""
        self.weights.masked_fill_(mask, 0.0)

    def mass_before(self) -> Tensor:
        """[F, H] float64: the mass of the tokens in front of each."""
        before = self.weights.cumsum(1, dtype=torch.float64).roll(1, dims=1)
        before[:, 0] = 0.0
        return before


class Filter(ABC):
    """One way of narrowing the choice. Rows that did not ask for it are left as they are."""

    @staticmethod
    @abstractmethod
    def wanted(params: SamplingParams) -> bool: ...

    @staticmethod
    @abstractmethod
    def narrow(rows: Candidates, params: Sequence[SamplingParams]) -> None: ...


class TopK(Filter):
    """Keep the k likeliest."""

    @staticmethod
    def wanted(params: SamplingParams) -> bool:
        return params.top_k > 0

    @staticmethod
    def narrow(rows: Candidates, params: Sequence[SamplingParams]) -> None:
        width = rows.weights.shape[1]
        kept = _column([p.top_k or math.inf for p in params])
        rows.drop(torch.arange(width) >= kept)
        kept_mass = rows.weights.cumsum(1, dtype=torch.float64)[:, -1:]
        rows.mass = torch.where(kept <= width, kept_mass, rows.mass)


class TopP(Filter):
    """Keep the fewest likeliest tokens whose mass reaches top_p (Holtzman et al. 2020)."""

    @staticmethod
    def wanted(params: SamplingParams) -> bool:
        return params.top_p < 1.0

    @staticmethod
    def narrow(rows: Candidates, params: Sequence[SamplingParams]) -> None:
        wanted = _column([p.top_p if p.top_p < 1.0 else math.inf for p in params])
        rows.drop(rows.mass_before() >= wanted * rows.mass)


class MinP(Filter):
    """Keep what is at least min_p times as likely as the likeliest (Nguyen et al. 2024)."""

    @staticmethod
    def wanted(params: SamplingParams) -> bool:
        return params.min_p > 0.0

    @staticmethod
    def narrow(rows: Candidates, params: Sequence[SamplingParams]) -> None:
        rows.drop(rows.weights < _column([p.min_p for p in params]) * rows.weights[:, :1])


class Typical(Filter):
    """Keep the tokens whose surprise is nearest the entropy, up to mass typical_p (Meister et al. 2023)."""

    @staticmethod
    def wanted(params: SamplingParams) -> bool:
        return params.typical_p < 1.0

    @staticmethod
    def narrow(rows: Candidates, params: Sequence[SamplingParams]) -> None:
        gone = rows.weights == 0.0
        scores = rows.scores.masked_fill(gone, -math.inf)
        share, log_share = scores.softmax(1), scores.log_softmax(1)
        surprise = -log_share.double()
        entropy = torch.where(gone, 0.0, share * surprise).cumsum(1)[:, -1:]
        order = torch.where(gone, math.inf, (surprise - entropy).abs()).sort(dim=1, stable=True).indices
        before = share.gather(1, order).cumsum(1, dtype=torch.float64).roll(1, dims=1)
        before[:, 0] = 0.0
        wanted = _column([p.typical_p if p.typical_p < 1.0 else math.inf for p in params])
        rows.drop(torch.zeros_like(gone).scatter_(1, order, before >= wanted))


FILTERS: tuple[type[Filter], ...] = (TopK, TopP, MinP, Typical)
"""All filters, in the order in which they are carried out."""


def is_filtered(params: SamplingParams) -> bool:
    return any(f.wanted(params) for f in FILTERS)


def draw(probabilities: Tensor, uniforms: Tensor) -> Tensor:
    """Draw by inverting the cumulative distribution, columns in the order they come.

    Args:
        probabilities: [S, H] float32, >= 0, not all zero in a row; need not add up to 1.
        uniforms: [S, 1] float64 in [0, 1).

    Returns:
        [S] int64 column numbers; one of weight zero is never drawn.
    """
    cumulative = probabilities.cumsum(1, dtype=torch.float64)
    return torch.searchsorted(cumulative, uniforms * cumulative[:, -1:], right=True)[:, 0]


def draw_filtered(scores: Tensor, probabilities: Tensor, params: Sequence[SamplingParams], uniforms: Tensor) -> Tensor:
    """Filter each row as its parameters say, and draw from what is left.

    Args:
        scores: [S, V] float32, logits over temperature; probabilities: [S, V], their softmax.
        uniforms: [S, 1] float64 in [0, 1).

    Returns:
        [S] int64 token ids.
    """
    num_rows, vocab_size = scores.shape
    token_ids = torch.empty(num_rows, dtype=torch.int64)
    left = list(range(num_rows))
    for width in (*(w for w in WIDTHS if w < vocab_size), vocab_size):
        tried = [i for i in left if width == vocab_size or _may_settle(params[i], width)]
        if not tried:
            continue
        rows = narrow(scores[tried], probabilities[tried], [params[i] for i in tried], width)
        columns = draw(rows.weights, uniforms[tried])
        token_ids[tried] = rows.token_ids.gather(1, columns[:, None])[:, 0]
        open_end: list[bool] = (rows.weights[:, -1] > 0.0).tolist()
        settled = {i for i, is_open in zip(tried, open_end, strict=True) if not is_open}
        left = [i for i in left if i not in settled]
    return token_ids


def _may_settle(params: SamplingParams, width: int) -> bool:
    """Typical sampling asks for the entropy of all tokens, top-k for the mass of its k."""
    return params.top_k < width and not Typical.wanted(params)


def narrow(scores: Tensor, probabilities: Tensor, params: Sequence[SamplingParams], width: int) -> Candidates:
    """The ``width`` likeliest tokens of each row, filtered. Arguments as for ``draw_filtered``."""
    token_ids = likeliest(scores, width)
    mass = torch.ones(len(params), 1, dtype=torch.float64)
    rows = Candidates(token_ids, scores.gather(1, token_ids), probabilities.gather(1, token_ids), mass)
    for stage in FILTERS:
        if any(stage.wanted(wish) for wish in params):
            stage.narrow(rows, params)
    return rows


def likeliest(scores: Tensor, count: int) -> Tensor:
    """The ``count`` tokens of highest score in each row, descending, equal ones by token id.

    Args:
        scores: [S, V] without NaN.

    Returns:
        [S, min(count, V)] int64.
    """
    vocab_size = scores.shape[1]
    if count >= vocab_size:
        return scores.sort(dim=1, descending=True, stable=True).indices
    values, token_ids = scores.topk(count + 1, dim=1)
    token_ids = token_ids[:, :count].sort(dim=1).values
    order = scores.gather(1, token_ids).sort(dim=1, descending=True, stable=True).indices
    token_ids = token_ids.gather(1, order)
    tied = values[:, count - 1] == values[:, count]  # which of the equal ones topk takes is not defined
    if bool(tied.any()):
        token_ids[tied] = scores[tied].sort(dim=1, descending=True, stable=True).indices[:, :count]
    return token_ids


def _column(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None]
