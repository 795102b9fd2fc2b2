"""``sample``: from logits to tokens on the device: penalties, temperature, top-k, top-p, min-p and a seeded draw.

**Order.** Tokens are looked at from the likeliest down, equal ones by id. Score and id make one integer, the token's
**rank**: float32 bits made monotone in the upper half, the complement of the id in the lower. Ranks are distinct, so
"the likeliest" is a maximum, and what top-k and top-p keep is all tokens whose rank is at least some **cut**.

**The cut** is the rank at which a running total first reaches a goal: the count reaches k, or the mass reaches p times
the mass of what top-k left. It is found exactly, and without sorting: totals at 16 pivots confine it between two of
them; then 16 pivots in between, again and again until it is alone. Once at most 1,024 tokens are in between (at once,
for most rows) these are copied out, and the rest of the search looks at them alone. Weights exp(score) are integers of
2^-40, so that sums are exact in any order and all totals agree.

**The draw** is Gumbel's: the kept token with the largest score - log(E), E = -log(1 - u) exponential, is a draw from
the softmax of the kept scores. u comes from Philox (Salmon et al. 2011), the seed as key, (token id, position) as
counter. So a token depends on its row of logits, its parameters, seed and position alone, whatever shares the batch:
everything else is maxima and integer sums.

Nothing here waits for the host; grids depend on shapes alone. A row whose logits are not finite gets -1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from tokenmill.kernels.triton import sample_kernels as kernels

_CHUNK: int = kernels.CHUNK.value
_ROUNDS: int = kernels.ROUNDS.value
_PIVOTS: int = kernels.PIVOTS.value
_CANDIDATES: int = kernels.CANDIDATES.value


@dataclass(frozen=True, slots=True)
class Scratch:
    """What passes between the kernels of one ``sample``."""

    peaks: Tensor
    """``[rows, chunks]`` int64: the highest rank of each chunk, before temperature."""
    totals: Tensor
    """``[rows, rounds, 2, pivots]`` int64: counts and masses of the ranks that reach each pivot."""
    candidates: Tensor
    """``[rows, 1024]`` int64 ranks."""
    num_candidates: Tensor
    """``[rows, searches]`` int32."""
    cuts: Tensor
    """``[rows]`` int64."""
    bests: Tensor
    """``[rows, chunks]`` int64: the highest rank of each chunk after the draw."""

    @classmethod
    def allocate(cls, max_rows: int, vocab_size: int, device: torch.device | str) -> Scratch:
        num_chunks = triton.cdiv(vocab_size, _CHUNK)

        def make(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        return cls(
            peaks=make(max_rows, num_chunks),
            totals=make(max_rows, _ROUNDS, 2, _PIVOTS),
            candidates=make(max_rows, _CANDIDATES),
            num_candidates=make(max_rows, 2, dtype=torch.int32),
            cuts=make(max_rows),
            bests=make(max_rows, num_chunks),
        )


@dataclass(frozen=True, slots=True)
class DeviceDraws:
    """How the token of each output row is chosen; tensors keep their addresses from step to step."""

    integers: Tensor
    """``[max_rows, 5]`` int64: seed; position of the token to be chosen in its sequence; slot of ``last_tokens`` (-1:
    it is not written); row of ``counts`` (-1: no penalties); top-k (0: not filtered so)."""
    reals: Tensor
    """``[max_rows, 6]`` float64: temperature (0: the likeliest, lowest id among equals; below 0: no token is asked
    for), top-p (1: not filtered so), min-p, repetition, presence and frequency penalty."""
    last_tokens: Tensor
    """``[max_slots]`` int32: the token chosen last for each slot."""
    counts: Tensor | None
    """``[count_rows, V]`` int32: twice how often the token was generated, plus one if it is in the prompt; None: no row
    of this step has penalties."""
    scratch: Scratch
    drawn: bool
    """Whether any row has a temperature above 0."""
    filtered: bool
    """Whether any such row has top-k or top-p."""


def sample(logits: Tensor, draws: DeviceDraws, out_ids: Tensor) -> None:
    """Choose a token for each row of ``logits [S, V]`` (float32, bf16 or float16) into ``out_ids`` int32 ``[S]``.

    -1: none was asked for, or the logits (as they come, or under the row's penalties) have no finite maximum. What is
    chosen goes to ``last_tokens`` and ``counts`` too.
    """
    num_rows, vocab_size = logits.shape
    num_chunks = triton.cdiv(vocab_size, _CHUNK)
    grid = (num_chunks, num_rows)
    options = {"CHUNKS": triton.next_power_of_2(num_chunks), "num_warps": 8, "enable_fp_fusion": False}
    scratch = draws.scratch
    source = (logits, logits.stride(0), vocab_size, draws.integers, draws.reals, draws.counts)
    row = (source, scratch.peaks, num_chunks)
    kernels.find_peaks[grid](
        source, scratch.peaks, scratch.totals, scratch.num_candidates, num_warps=8, enable_fp_fusion=False
    )
    if draws.filtered:
        for number in range(_ROUNDS):
            kernels.add_totals[grid](*row, scratch.totals, ROUND=number, **options)
        found = (scratch.totals, scratch.candidates, scratch.num_candidates)
        kernels.collect[grid](*row, *found, **options)
        kernels.find_cuts[(num_rows,)](*row, *found, scratch.cuts, **options)
    if draws.drawn:
        kernels.draw[grid](*row, scratch.cuts, scratch.bests, **options)
    kernels.finish[(num_rows,)](*row, scratch.bests, draws.last_tokens, out_ids, **options)
