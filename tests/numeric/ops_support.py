"""Inputs for the tests of single operations, and attention computed the naive way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tokenmill.kernels import ops


@dataclass(frozen=True)
class Paged:
    """Sequences laid into a paged cache, and the rows of one step over them."""

    q: Tensor  # [T, heads, d], the rows' tokens one after the other
    keys: list[Tensor]  # per row [length, kv_heads, d]
    values: list[Tensor]
    starts: list[int]
    counts: list[int]

    def attend(self, *, block_size: int, window: int | None, only: list[int] | None = None, seed: int = 0) -> Tensor:
        """The operation under test, for some rows in the given order: ``[their tokens, heads, d]``."""
        rows = list(range(len(self.starts))) if only is None else only
        num_heads, num_kv_heads, head_dim = self.q.shape[1], self.keys[0].shape[1], self.q.shape[2]
        needed = [-(-len(self.keys[row]) // block_size) for row in rows]
        order = torch.randperm(sum(needed) + 3, generator=torch.Generator().manual_seed(seed))
        k_cache = torch.full((len(order) * block_size, num_kv_heads, head_dim), float("nan"))
        v_cache = k_cache.clone()
        tables = torch.zeros(len(rows), max(needed), dtype=torch.int64)
        dealt = 0
        for i, row in enumerate(rows):
            blocks = order[dealt : dealt + needed[i]]
            dealt += needed[i]
            tables[i, : len(blocks)] = blocks
            positions = torch.arange(len(self.keys[row]))
            slots = blocks[positions // block_size] * block_size + positions % block_size
            ops.write_kv(self.keys[row], self.values[row], k_cache, v_cache, slots)
        plan = ops.plan_attention(
            [self.starts[row] for row in rows],
            [self.counts[row] for row in rows],
            tables,
            block_size=block_size,
            window=window,
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
        )
        q = torch.cat([self.tokens_of(row, self.q) for row in rows])
        return ops.attention(q, k_cache, v_cache, plan, head_dim**-0.5)

    def tokens_of(self, row: int, flat: Tensor) -> Tensor:
        begin = sum(self.counts[:row])
        return flat[begin : begin + self.counts[row]]

    def naive(self, window: int | None) -> Tensor:
        """Softmax attention written down in float64."""
        outs = []
        groups = self.q.shape[1] // self.keys[0].shape[1]
        for row in range(len(self.starts)):
            q = self.tokens_of(row, self.q).double()
            k = self.keys[row].double().repeat_interleave(groups, dim=1)
            v = self.values[row].double().repeat_interleave(groups, dim=1)
            scores = torch.einsum("qhd,khd->hqk", q, k) * q.shape[-1] ** -0.5
            scores.masked_fill_(~self.visible(row, window), float("-inf"))
            outs.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), v))
        return torch.cat(outs)

    def visible(self, row: int, window: int | None) -> Tensor:
        """``[count, length]``: which positions each token sees."""
        at = torch.arange(self.counts[row]).unsqueeze(1) + self.starts[row]
        key = torch.arange(len(self.keys[row]))
        seen = key <= at
        return seen if window is None else seen & (key > at - window)


def make_paged(
    starts: list[int], counts: list[int], *, num_heads: int, num_kv_heads: int, head_dim: int, seed: int = 0
) -> Paged:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    lengths = [start + count for start, count in zip(starts, counts, strict=True)]
    return Paged(
        q=normal(sum(counts), num_heads, head_dim) * 2,
        keys=[normal(length, num_kv_heads, head_dim) for length in lengths],
        values=[normal(length, num_kv_heads, head_dim) for length in lengths],
        starts=starts,
        counts=counts,
    )


def depends_on_company(op: Callable[[Tensor], Tensor], rows: Tensor, sizes: tuple[int, ...]) -> list[tuple[int, int]]:
    """(number of rows, first row) of every slice whose result differs in bits from its rows taken alone."""
    alone = torch.cat([op(rows[i : i + 1]) for i in range(len(rows))])
    return [
        (size, first)
        for size in sizes
        for first in (0, 1, 5, len(rows) - size)
        if 0 <= first <= len(rows) - size
        and not torch.equal(op(rows[first : first + size]), alone[first : first + size])
    ]
