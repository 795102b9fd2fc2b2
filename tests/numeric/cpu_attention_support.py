"""A paged cache as the CPU kernels lay it out, filled and read from the test's side, and one call of attention."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tests.numeric.ops_support import Paged
from tokenmill.kernels.cpu.library import Pool
from tokenmill.kernels.cpu.program import Program, make_step
from tokenmill.kernels.cpu.records import AttentionArgs, KvCache, Step, WeightFormat

GROUP = 16
"""Positions whose keys are stored together."""


def to_bf16(x: Tensor) -> NDArray[np.uint16]:
    """The bits of a tensor rounded to bfloat16."""
    return x.to(torch.bfloat16).contiguous().view(torch.uint16).numpy()


def from_bf16(bits: NDArray[np.uint16]) -> Tensor:
    return torch.from_numpy(bits.copy()).view(torch.bfloat16).float()


def rounded(x: Tensor) -> Tensor:
    """float32 with the precision of bfloat16."""
    return x.to(torch.bfloat16).float()


def quantized(x: Tensor) -> tuple[Tensor, Tensor]:
    """Integers and scales by vector (the last dimension); of a vector that is not finite, zeros and NaN."""
    peak = x.abs().amax(-1, keepdim=True)
    scales = torch.where(peak.isfinite(), peak / 127, torch.nan)
    return (x * (127 / peak)).round().where(peak.isfinite(), 0), scales


@dataclass
class Cache:
    """Keys and values of one layer; starts full of NaN (bf16, or the scales of int8)."""

    num_blocks: int
    block_size: int
    num_heads: int
    head_dim: int
    format: WeightFormat
    keys: NDArray[np.generic] = field(init=False)
    values: NDArray[np.generic] = field(init=False)
    key_scales: NDArray[np.float32] = field(init=False)
    value_scales: NDArray[np.float32] = field(init=False)

    def __post_init__(self) -> None:
        lines = self.num_blocks, self.num_heads, self.block_size
        numbers = (*lines, self.head_dim)
        if self.format is WeightFormat.BF16:
            self.keys, self.values = np.full(numbers, 0x7FFF, np.uint16), np.full(numbers, 0x7FFF, np.uint16)
        else:
            self.keys, self.values = np.full(numbers, -1, np.int8), np.full(numbers, -1, np.int8)
        self.key_scales, self.value_scales = np.full(lines, np.nan, np.float32), np.full(lines, np.nan, np.float32)

    def record(self) -> KvCache:
        arrays = (self.keys, self.values, self.key_scales, self.value_scales)
        sizes = (self.block_size, self.num_heads, self.head_dim, self.format, 0)
        return KvCache(*(array.ctypes.data for array in arrays), *sizes)

    @property
    def key_words(self) -> NDArray[np.generic]:
        """The keys by position: ``[block, head, group, position of 16, words, numbers of a word]``, a view."""
        per_word = 4 // self.keys.itemsize
        shape = (self.num_blocks, self.num_heads, self.block_size // GROUP, self.head_dim // per_word, GROUP, per_word)
        return self.keys.reshape(shape).swapaxes(3, 4)

    def write(self, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        """``keys`` and ``values`` ``[n, heads, D]`` float32 to their slots."""
        block, offset = slots.numpy() // self.block_size, slots.numpy() % self.block_size
        at = (block, slice(None), offset)
        words_at = (block, slice(None), offset // GROUP, offset % GROUP)
        shape = (len(block), self.num_heads, *self.key_words.shape[-2:])
        if self.format is WeightFormat.BF16:
            self.key_words[words_at] = to_bf16(keys).reshape(shape)
            self.values[at] = to_bf16(values)
            return
        ints, scales = quantized(keys)
        self.key_words[words_at] = ints.numpy().astype(np.int8).reshape(shape)
        self.key_scales[at] = scales[..., 0]
        ints, scales = quantized(values)
        self.values[at] = ints.numpy().astype(np.int8)
        self.value_scales[at] = scales[..., 0]

    def read(self, slot: int) -> tuple[Tensor, Tensor]:
        """Keys and values ``[heads, D]`` of a slot: bfloat16 numbers, or integers without their scales."""
        block, offset = divmod(slot, self.block_size)
        group, position = divmod(offset, GROUP)
        key = self.key_words[block, :, group, position].reshape(self.num_heads, -1)
        value = self.values[block, :, offset]
        if self.format is WeightFormat.BF16:
            return from_bf16(key.astype(np.uint16)), from_bf16(value.astype(np.uint16))
        return torch.from_numpy(key.astype(np.float32)), torch.from_numpy(value.astype(np.float32))


def step_of(
    positions: list[int], row_begin: list[int], tables: NDArray[np.int32], slots: list[int] | None = None
) -> tuple[Step, tuple[NDArray[np.int32], ...]]:
    """A step without token ids or outputs, and the arrays that must live as long."""

    def ints(values: list[int]) -> NDArray[np.int32]:
        return np.array(values, np.int32)

    zeros = ints([0] * len(positions))
    arrays = (zeros, ints(positions), zeros if slots is None else ints(slots), ints(row_begin), tables, ints([]))
    return make_step(*arrays), arrays


def as_stored(paged: Paged, kv: WeightFormat) -> Paged:
    """The same with what the kernel is given: queries in bfloat16, keys and values as the cache holds them."""

    def store(x: Tensor) -> Tensor:
        if kv is WeightFormat.BF16:
            return rounded(x)
        ints, scales = quantized(x)
        return ints * scales

    return replace(
        paged, q=rounded(paged.q), keys=[store(k) for k in paged.keys], values=[store(v) for v in paged.values]
    )


def attend(
    pool: Pool,
    paged: Paged,
    *,
    block_size: int = 16,
    window: int | None = None,
    kv: WeightFormat = WeightFormat.BF16,
    only: list[int] | None = None,
    seed: int = 0,
) -> NDArray[np.uint16]:
    """The kernel for some rows of ``paged`` in the given order: ``[their tokens, heads, D]`` bf16 bits.

    Blocks are dealt in random order from a cache that is otherwise full of NaN; what tables say beyond a row's
    last block is the first one.
    """
    rows = list(range(len(paged.starts))) if only is None else only
    num_heads, num_kv_heads, head_dim = paged.q.shape[1], paged.keys[0].shape[1], paged.q.shape[2]
    needed = [-(-len(paged.keys[row]) // block_size) for row in rows]
    order = torch.randperm(sum(needed) + 2, generator=torch.Generator().manual_seed(seed)).to(torch.int32)
    cache = Cache(len(order), block_size, num_kv_heads, head_dim, kv)
    tables = np.zeros((len(rows), max(needed)), np.int32)
    for i, (row, blocks) in enumerate(zip(rows, _dealt(order, needed), strict=True)):
        tables[i, : len(blocks)] = blocks
        at = torch.arange(len(paged.keys[row]))
        cache.write(blocks[at // block_size] * block_size + at % block_size, paged.keys[row], paged.values[row])
    positions = [paged.starts[row] + i for row in rows for i in range(paged.counts[row])]
    begin = [0, *np.cumsum([paged.counts[row] for row in rows]).tolist()]
    step, _alive = step_of(positions, begin, tables)
    q = to_bf16(torch.cat([paged.tokens_of(row, paged.q) for row in rows]))
    out = np.zeros_like(q)
    program = Program(pool.library)
    args = AttentionArgs(q.ctypes.data, cache.record(), out.ctypes.data, num_heads, window or 0, head_dim**-0.5, 0)
    program.add("attention", args)
    program.run(pool, step)
    return out


def _dealt(order: Tensor, needed: list[int]) -> Iterator[Tensor]:
    for begin, count in zip(np.cumsum([0, *needed]), needed, strict=False):
        yield order[begin : begin + count]
