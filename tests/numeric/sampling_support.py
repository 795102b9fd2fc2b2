"""Shared by the sampling tests: making sequences, and float64 references written as plainly as can be."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tokenmill.core.params import SamplingParams
from tokenmill.runtime.sampling import SampledSequence

F64 = npt.NDArray[np.float64]


def sequence(
    params: SamplingParams,
    vocab_size: int,
    *,
    seed: int = 0,
    prompt: Sequence[int] = (1, 2, 3),
    output: Sequence[int] = (),
    stop_token_ids: Sequence[int] = (),
) -> SampledSequence:
    tokens = [*prompt, *output]
    return SampledSequence(tokens, len(prompt), params, seed, frozenset(stop_token_ids), vocab_size)


def random_logits(rows: int, vocab_size: int, *, seed: int = 0, spread: float = 3.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, vocab_size, generator=generator) * spread


def softmax64(logits: F64) -> F64:
    powers = np.exp(logits - logits.max())
    shares: F64 = powers / powers.sum()
    return shares


def reference_distribution(logits: F64, params: SamplingParams) -> F64:
    """Temperature, top-k, top-p, min-p, typical, one after the other, renormalising each time."""
    p = softmax64(logits / params.temperature)
    order = sorted(range(len(p)), key=lambda t: (-logits[t], t))
    if params.top_k:
        p = _keep(p, order[: params.top_k])
    if params.top_p < 1:
        p = _keep(p, _until_mass(p, order, params.top_p))
    if params.min_p > 0:
        p = _keep(p, [t for t in order if p[t] >= params.min_p * p.max()])
    if params.typical_p < 1:
        kept = [t for t in order if p[t] > 0]
        entropy = -sum(p[t] * np.log(p[t]) for t in kept)
        by_surprise = sorted(kept, key=lambda t: abs(-np.log(p[t]) - entropy))
        p = _keep(p, _until_mass(p, by_surprise, params.typical_p))
    return p


def _until_mass(p: F64, order: Sequence[int], mass: float) -> list[int]:
    kept: list[int] = []
    total = 0.0
    for token in order:
        if total >= mass:
            break
        kept.append(token)
        total += p[token]
    return kept


def _keep(p: F64, tokens: Sequence[int]) -> F64:
    kept = np.zeros_like(p)
    kept[list(tokens)] = p[list(tokens)]
    result: F64 = kept / kept.sum()
    return result


def chi_square_p(drawn: npt.NDArray[np.int64], expected: F64) -> float:
    """The chance of a deviation this large if ``drawn`` follows ``expected``; 0 if something impossible was drawn."""
    counts = np.bincount(drawn, minlength=len(expected)).astype(np.float64)
    if counts[expected == 0].any():
        return 0.0
    common = expected * len(drawn) >= 5
    observed = np.append(counts[common], counts[~common].sum())
    wanted = np.append(expected[common], expected[~common].sum()) * len(drawn)
    observed, wanted = observed[wanted > 0], wanted[wanted > 0]
    if len(wanted) == 1:
        return 1.0
    statistic = ((observed - wanted) ** 2 / wanted).sum()
    half_degrees, half = torch.tensor((len(wanted) - 1) / 2), torch.tensor(statistic / 2)
    return float(torch.special.gammaincc(half_degrees.double(), half.double()))
