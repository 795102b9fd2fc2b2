"""Mixture of experts on the device: ``route`` and ``experts``, as ``kernels/reference/experts.py`` says.

A token's k choices are its *pairs*, numbered ``token * k + rank``. Pairs are sorted by expert, those of one expert in
ascending order, and an expert's pairs are cut into tiles of equal height: then gate and up (joined by the activation),
and down, are one product each, whose programs look up which rows they have and whose weights. Nothing of that is known
to the host: the list of tiles is as long as it can get, (P + E (rows - 1)) / rows for P pairs and E experts, and what
is beyond has no work. With few tokens every expert's weights are read once, by the one tile that needs them.

Sorting counts, for each block of pairs and each expert, how many there are; adds these counts up over the blocks; and
gives each pair its place: the same order whatever runs first, as no program's turn decides anything. A pair's results
do not depend on which others its tile holds (``tiles.py``), and a token's are added in the order of rank: so a token's
bits are the same in any company.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from tokenmill.kernels.triton.linear_fp8 import quantize_rows
from tokenmill.kernels.triton.linear_int import linear_int
from tokenmill.kernels.triton.linear_plain import linear_plain
from tokenmill.kernels.triton.quantize import Fp8Weight, PackedWeight
from tokenmill.kernels.triton.tiles import Groups

Weight = Tensor | PackedWeight | Fp8Weight
"""Of all experts: plain ``[E, N, K]``, or a packed matrix of ``E * N`` outputs."""

MAX_BLOCKS = 256
"""Blocks that pairs are counted in, at most."""
MAX_TILE_ROWS = 128
_COLUMNS = 1024  # of a program that adds outputs up


@dataclass(frozen=True, slots=True, eq=False)
class ExpertBuffers:
    """What ``experts`` writes on its way; allocated once, for the largest step, and shared by all layers."""

    counts: Tensor  # int32 [MAX_BLOCKS, E]: of a block's pairs by expert, then where the first of them goes
    ends: Tensor  # int32 [3, E]: an expert's last tile + 1; its first place; its pairs
    pairs: Tensor  # int32: pairs by place
    experts: Tensor  # int32: experts by tile
    inner: Tensor  # [P, I]: after the activation
    outputs: Tensor  # [P, H]: of each pair
    codes: Tensor | None  # uint8 [P * max(I, H)]: for weights in FP8
    scales: Tensor | None  # float32 [P]

    @classmethod
    def allocate(
        cls, max_tokens: int, num_active: int, num_experts: int, hidden_size: int, inner_size: int, dtype: torch.dtype,
        device: torch.device | str, *, fp8: bool = False,
    ) -> ExpertBuffers:  # fmt: skip
        """For steps of up to ``max_tokens``, of which each goes to ``num_active`` of ``num_experts``."""
        most = max_tokens * num_active

        def integers(*shape: int) -> Tensor:
            return torch.empty(shape, dtype=torch.int32, device=device)

        return cls(
            counts=integers(MAX_BLOCKS, num_experts),
            ends=integers(3, num_experts),
            pairs=integers(most + num_experts * MAX_TILE_ROWS),
            experts=integers(most),
            inner=torch.empty(most, inner_size, dtype=dtype, device=device),
            outputs=torch.empty(most, hidden_size, dtype=dtype, device=device),
            codes=torch.empty(most * max(inner_size, hidden_size), dtype=torch.uint8, device=device) if fp8 else None,
            scales=torch.empty(most, dtype=torch.float32, device=device) if fp8 else None,
        )

    @property
    def num_bytes(self) -> int:
        every = (self.counts, self.ends, self.pairs, self.experts, self.inner, self.outputs, self.codes, self.scales)
        return sum(each.nbytes for each in every if each is not None)


def route(logits: Tensor, ids: Tensor, weights: Tensor, *, normalize: bool) -> None:
    """Choose experts by the router's ``logits [T, E]``: ``ids`` int32 and ``weights`` float32, ``[T, k]``, best first.

    The lowest id among equals. Where logits are not finite ids still are of experts.
    """
    num_tokens, num_experts = logits.shape
    if num_tokens:
        _route[num_tokens,](
            logits, ids, weights, logits.stride(0), num_experts, K=ids.shape[1],
            EXPERTS=triton.next_power_of_2(num_experts), NORMALIZE=normalize, num_warps=1,
        )  # fmt: skip


def experts(
    x: Tensor,
    ids: Tensor,
    weights: Tensor,
    gate_up: Weight,
    down: Weight,
    out: Tensor,
    *,
    buffers: ExpertBuffers,
    num_tokens: Tensor | None = None,
    accumulate: bool = False,
) -> None:
    """``out [T, H]`` gets, or with ``accumulate`` is increased by, Σ_r weights[t, r] * (expert ids[t, r] of x[t]).

    Args:
        x: ``[T, H]``, rows contiguous, float32 or bf16.
        ids, weights: ``[T, k]`` contiguous, int32 and float32.
        gate_up: ``[E, 2 * I, H]``, the gate's rows first.
        down: ``[E, H, I]``.
        num_tokens: int32 ``[1]`` on the device: rows from this one on are left alone.
    """
    num_rows, num_active = ids.shape
    num_experts = buffers.counts.shape[1]
    num_pairs = num_rows * num_active
    if num_pairs == 0:
        return
    groups = _sort(ids, buffers, num_tokens, num_experts, gate_up)
    inner, outputs = buffers.inner[:num_pairs], buffers.outputs[:num_pairs]
    _product(x, gate_up, inner, buffers, groups, silu_mul=True)
    _product(inner, down, outputs, buffers, _each(groups), silu_mul=False)
    width = out.shape[1]
    _add[num_rows, triton.cdiv(width, _COLUMNS)](
        outputs, weights, out, num_tokens, width, out.stride(0), K=num_active, ACCUMULATE=accumulate, COLUMNS=_COLUMNS,
        num_warps=4,
    )  # fmt: skip


def _product(x: Tensor, weight: Weight, out: Tensor, buffers: ExpertBuffers, groups: Groups, *, silu_mul: bool) -> None:
    """All experts' products, with the rows of ``out`` that ``groups`` names."""
    if isinstance(weight, PackedWeight):
        linear_int(x, weight, out, silu_mul=silu_mul, groups=groups)
    elif isinstance(weight, Fp8Weight):
        assert buffers.codes is not None and buffers.scales is not None
        codes, scales = buffers.codes[: x.numel()].view(x.shape), buffers.scales[: len(x)]
        quantize_rows(x, codes, scales)
        linear_plain(codes, weight, out, x_scales=scales, silu_mul=silu_mul, groups=groups)
    else:
        linear_plain(x, weight, out, silu_mul=silu_mul, groups=groups)


def _sort(ids: Tensor, buffers: ExpertBuffers, num_tokens: Tensor | None, num_experts: int, weight: Weight) -> Groups:
    """Pairs by expert, in tiles."""
    num_pairs, num_active = ids.numel(), ids.shape[1]
    average = num_pairs // num_experts
    tile_rows = 16 if average <= 16 else 128 if average > 128 and isinstance(weight, Tensor) else 64
    num_tiles = min(num_pairs, (num_pairs + num_experts * (tile_rows - 1)) // tile_rows)
    block = max(64, triton.next_power_of_2(triton.cdiv(num_pairs, MAX_BLOCKS)))
    num_blocks = triton.cdiv(num_pairs, block)
    experts = triton.next_power_of_2(num_experts)
    _count[num_blocks,](
        ids, buffers.counts, num_tokens, num_pairs, num_experts, K=num_active, BLOCK=block, EXPERTS=experts, num_warps=4
    )
    _places[1,](
        buffers.counts, buffers.ends, num_blocks, num_experts, BLOCKS=triton.next_power_of_2(num_blocks),
        EXPERTS=experts, WIDTH=min(experts, 16), ROWS=tile_rows, num_warps=8,
    )  # fmt: skip
    _scatter[num_blocks + triton.cdiv(num_tiles, 16),](
        ids, buffers.counts, buffers.ends, buffers.pairs, buffers.experts, num_tokens, num_pairs, num_experts,
        num_blocks, num_tiles, K=num_active, BLOCK=block, EXPERTS=experts, ROWS=tile_rows,
        num_warps=_warps(block * experts),
    )  # fmt: skip
    return Groups(buffers.experts, buffers.pairs, num_tiles, tile_rows, num_pairs, num_experts, share=num_active)


def _warps(numbers: int) -> int:
    """For so many numbers in registers: 64 a thread, if that many warps can be."""
    return min(16, max(4, 1 << (numbers // 2048 - 1).bit_length()))


def _each(groups: Groups) -> Groups:
    """The same for rows of x that are pairs themselves."""
    return Groups(
        groups.experts, groups.pairs, groups.num_tiles, groups.tile_rows, groups.num_rows, groups.num_experts, share=1
    )


@triton.jit
def _route(
    logits_ptr, ids_ptr, weights_ptr, stride, num_experts, K: tl.constexpr, EXPERTS: tl.constexpr,
    NORMALIZE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    expert = tl.arange(0, EXPERTS)
    logits = tl.load(logits_ptr + row * stride + expert, expert < num_experts, 0.0).to(tl.float32)
    logits = tl.where(logits == logits, tl.clamp(logits, -1e30, 1e30), -1e30)
    logits = tl.where(expert < num_experts, logits, float("-inf"))
    shares = tl.exp(logits - tl.max(logits, 0))
    total = tl.sum(shares, 0)
    shares = tl.where(expert < num_experts, shares, -1.0)
    left = shares
    if NORMALIZE:
        total = 0.0
        for _ in tl.static_range(K):
            best = tl.max(left, 0)
            left = tl.where(expert == tl.min(tl.where(left == best, expert, EXPERTS), 0), -1.0, left)
            total += best
    for rank in tl.static_range(K):
        best = tl.max(shares, 0)
        chosen = tl.min(tl.where(shares == best, expert, EXPERTS), 0)
        shares = tl.where(expert == chosen, -1.0, shares)
        tl.store(ids_ptr + row * K + rank, chosen)
        tl.store(weights_ptr + row * K + rank, best / total)


@triton.jit
def _chosen(ids_ptr, num_tokens_ptr, block, num_pairs, K: tl.constexpr, BLOCK: tl.constexpr):
    """A block's pairs and their experts; -1: there is no such pair."""
    pair = block * BLOCK + tl.arange(0, BLOCK)
    mask = pair < num_pairs
    if num_tokens_ptr is not None:
        mask &= pair < tl.load(num_tokens_ptr) * K
    return pair, tl.load(ids_ptr + pair, mask, -1)


@triton.jit
def _count(
    ids_ptr, counts_ptr, num_tokens_ptr, num_pairs, num_experts, K: tl.constexpr, BLOCK: tl.constexpr,
    EXPERTS: tl.constexpr,
):  # fmt: skip
    block = tl.program_id(0)
    expert = tl.arange(0, EXPERTS)
    _, chosen = _chosen(ids_ptr, num_tokens_ptr, block, num_pairs, K, BLOCK)
    counts = tl.sum((chosen[:, None] == expert[None, :]).to(tl.int32), 0)
    tl.store(counts_ptr + block * num_experts + expert, counts, expert < num_experts)


@triton.jit
def _places(
    counts_ptr, ends_ptr, num_blocks, num_experts, BLOCKS: tl.constexpr, EXPERTS: tl.constexpr, WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
):  # fmt: skip
    """Counts become the places of each block's first pair, by expert; some experts at a time."""
    block = tl.arange(0, BLOCKS)
    tiles_before = 0
    for first_expert in range(0, EXPERTS, WIDTH):
        expert = first_expert + tl.arange(0, WIDTH)
        mask = (block < num_blocks)[:, None] & (expert < num_experts)[None, :]
        place = counts_ptr + block[:, None] * num_experts + expert[None, :]
        counts = tl.load(place, mask, 0)
        tl.debug_barrier()  # all is read before any is overwritten
        num_pairs = tl.sum(counts, 0)
        num_tiles = (num_pairs + ROWS - 1) // ROWS
        last_tile = tiles_before + tl.cumsum(num_tiles, 0)
        first = (last_tile - num_tiles) * ROWS
        tl.store(place, tl.cumsum(counts, 0) - counts + first[None, :], mask)
        tl.store(ends_ptr + expert, last_tile, expert < num_experts)
        tl.store(ends_ptr + num_experts + expert, first, expert < num_experts)
        tl.store(ends_ptr + 2 * num_experts + expert, num_pairs, expert < num_experts)
        tiles_before += tl.sum(num_tiles, 0)


@triton.jit
def _scatter(
    ids_ptr, starts_ptr, ends_ptr, pairs_ptr, experts_ptr, num_tokens_ptr, num_pairs, num_experts, num_blocks,
    num_tiles, K: tl.constexpr, BLOCK: tl.constexpr, EXPERTS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """The first programs put a block's pairs in their places; the others say whose tiles are, and what they lack."""
    program = tl.program_id(0)
    expert = tl.arange(0, EXPERTS)
    if program < num_blocks:
        pair, chosen = _chosen(ids_ptr, num_tokens_ptr, program, num_pairs, K, BLOCK)
        same = (chosen[:, None] == expert[None, :]).to(tl.int32)
        before = tl.sum((tl.cumsum(same, 0) - same) * same, 1)  # of the same expert, in this block
        start = tl.load(starts_ptr + program * num_experts + chosen, chosen >= 0, 0)
        tl.store(pairs_ptr + start + before, pair, chosen >= 0)
    else:
        tile = (program - num_blocks) * 16 + tl.arange(0, 16)
        ends = tl.load(ends_ptr + expert, expert < num_experts, 2147483647)
        owner = tl.sum((ends[None, :] <= tile[:, None]).to(tl.int32), 1)  # experts that end before
        there = owner < num_experts
        tl.store(experts_ptr + tile, tl.where(there, owner, -1), tile < num_tiles)
        first = tl.load(ends_ptr + num_experts + owner, there, 0)
        count = tl.load(ends_ptr + 2 * num_experts + owner, there, 0)
        place = tile[:, None] * ROWS + tl.arange(0, ROWS)[None, :]
        lacking = there[:, None] & (place - first[:, None] >= count[:, None])
        tl.store(pairs_ptr + place, tl.zeros_like(place) + num_pairs, lacking & (tile < num_tiles)[:, None])


@triton.jit
def _add(
    outputs_ptr, weights_ptr, out_ptr, num_tokens_ptr, width, out_stride, K: tl.constexpr, ACCUMULATE: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    mask = column < width
    if num_tokens_ptr is not None:
        mask &= row < tl.load(num_tokens_ptr)
    total = tl.zeros((COLUMNS,), tl.float32)
    for rank in tl.static_range(K):
        value = tl.load(outputs_ptr + (row * K + rank) * width + column, mask, 0.0).to(tl.float32)
        total += value * tl.load(weights_ptr + row * K + rank)
    place = out_ptr + row * out_stride + column
    if ACCUMULATE:
        total += tl.load(place, mask, 0.0).to(tl.float32)
    tl.store(place, total.to(out_ptr.dtype.element_ty), mask)
