"""Rotation, norm per head and the write to the cache, against the reference; the cache read back number by number."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.numeric.cpu_attention_support import Cache, from_bf16, quantized, step_of
from tests.numeric.cpu_support import each_isa, pool
from tokenmill.core.model_config import RopeSpec
from tokenmill.kernels.cpu.library import Pool
from tokenmill.kernels.cpu.program import Program
from tokenmill.kernels.cpu.records import RopeKvArgs, WeightFormat
from tokenmill.kernels.reference.rope import rope, rotary_table

EPS = 1e-6
SLOTS = [70, 3, 31, 32, 64, 15, 16, 0, 95]
POSITIONS = [0, 1, 2, 3, 500, 17, 1023, 64, 9]


@dataclass(frozen=True)
class Layer:
    num_heads: int
    num_kv_heads: int
    head_dim: int
    qkv: Tensor  # [T, heads + 2 * kv_heads, D]
    norms: tuple[Tensor, Tensor] | None
    cos: Tensor
    sin: Tensor

    def run(self, pool: Pool, kv: WeightFormat, block_size: int, rows: slice = slice(None)) -> tuple[Tensor, Cache]:
        cache = Cache(96 // block_size, block_size, self.num_kv_heads, self.head_dim, kv)
        qkv, positions, slots = self.qkv[rows].contiguous(), POSITIONS[rows], SLOTS[rows]
        q = np.zeros((len(positions), self.num_heads, self.head_dim), np.uint16)
        norms = (0, 0) if self.norms is None else tuple(norm.data_ptr() for norm in self.norms)
        tables = (self.cos.data_ptr(), self.sin.data_ptr())
        args = RopeKvArgs(qkv.data_ptr(), *norms, *tables, q.ctypes.data, cache.record(), self.num_heads, EPS)
        step, _alive = step_of(positions, [0, len(positions)], np.zeros((1, 1), np.int32), slots)
        program = Program(pool.library)
        program.add("rope_kv", args)
        program.run(pool, step)
        return from_bf16(q), cache

    def expected(self) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys, values in float32."""
        end_of_q, end_of_k = self.num_heads, self.num_heads + self.num_kv_heads
        q, k, v = self.qkv[:, :end_of_q], self.qkv[:, end_of_q:end_of_k], self.qkv[:, end_of_k:]
        if self.norms is not None:
            q, k = (
                x * torch.rsqrt(x.double().square().mean(-1, keepdim=True) + EPS).float() * norm
                for x, norm in zip((q, k), self.norms, strict=True)
            )
        cos, sin = self.cos[POSITIONS], self.sin[POSITIONS]
        return rope(q, cos, sin), rope(k, cos, sin), v


def make_layer(num_heads: int, num_kv_heads: int, head_dim: int, *, norm: bool) -> Layer:
    generator = torch.Generator().manual_seed(head_dim)
    qkv = torch.randn(len(SLOTS), num_heads + 2 * num_kv_heads, head_dim, generator=generator)
    norms = (torch.rand(head_dim, generator=generator) + 0.5, torch.rand(head_dim, generator=generator) - 0.5)
    spec = RopeSpec(theta=10_000.0)
    return Layer(num_heads, num_kv_heads, head_dim, qkv, norms if norm else None, *rotary_table(spec, head_dim, 1024))


def rounds_to(ours: Tensor, exact: Tensor) -> bool:
    """Within half a unit of bfloat16's last place, and a little for the arithmetic before it."""
    return bool(((ours - exact).abs() <= exact.abs() * 2**-8 * 1.001 + 1e-6).all())


SHAPES = [(4, 2, 128), (4, 1, 64), (3, 3, 16), (2, 1, 48), (4, 2, 80), (2, 2, 96), (2, 1, 256), (2, 2, 32)]


@each_isa
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize(("num_heads", "num_kv_heads", "head_dim"), SHAPES)
def test_bf16(isa: str, norm: bool, num_heads: int, num_kv_heads: int, head_dim: int) -> None:
    layer = make_layer(num_heads, num_kv_heads, head_dim, norm=norm)
    queries, keys, values = layer.expected()
    for block_size in (16, 32, 48):
        q, cache = layer.run(pool(isa), WeightFormat.BF16, block_size)
        assert rounds_to(q, queries)
        for token, slot in enumerate(SLOTS):
            key, value = cache.read(slot)
            assert rounds_to(key, keys[token])
            assert torch.equal(value, values[token].to(torch.bfloat16).float())
        untouched = [slot for slot in range(96) if slot not in SLOTS]
        assert all(part.isnan().all() for slot in untouched for part in cache.read(slot))


@each_isa
@pytest.mark.parametrize(("num_heads", "num_kv_heads", "head_dim"), SHAPES)
def test_int8(isa: str, num_heads: int, num_kv_heads: int, head_dim: int) -> None:
    """Every line with its own scale, the largest magnitude / 127."""
    layer = make_layer(num_heads, num_kv_heads, head_dim, norm=True)
    _, keys, values = layer.expected()
    _, cache = layer.run(pool(isa), WeightFormat.INT8, 32)
    for token, slot in enumerate(SLOTS):
        block, offset = divmod(slot, 32)
        key, value = cache.read(slot)
        ints, scales = quantized(values[token])
        assert torch.equal(value, ints)
        assert np.array_equal(cache.value_scales[block, :, offset], scales[:, 0].numpy())
        ints, scales = quantized(keys[token])
        assert (key - ints).abs().max() <= 1  # the rotation's last bit may tip a number that lies half way
        assert (key != ints).sum() <= 1
        assert np.allclose(cache.key_scales[block, :, offset], scales[:, 0].numpy(), rtol=1e-6)


@each_isa
@pytest.mark.parametrize("kv", [WeightFormat.BF16, WeightFormat.INT8], ids=["bf16", "int8"])
def test_bits_independent(isa: str, kv: WeightFormat) -> None:
    """Of company, threads and block size."""
    layer = make_layer(4, 2, 80, norm=True)
    together, cache = layer.run(pool(isa), kv, 16)
    for token, slot in enumerate(SLOTS):
        q, own = layer.run(pool(isa, 1 + token % 3), kv, 32, slice(token, token + 1))
        assert torch.equal(q[0], together[token])
        for ours, others in zip(own.read(slot), cache.read(slot), strict=True):
            assert torch.equal(ours, others)


@each_isa
def test_not_finite_shows(isa: str) -> None:
    """A line in 8 bits that is not finite has a scale that says so; a line of zeros is zeros."""
    layer = make_layer(2, 2, 32, norm=False)
    layer.qkv[0, 2:, 5] = float("nan")
    layer.qkv[1, 2:, 5] = float("inf")
    layer.qkv[2, 2:] = 0.0
    _, cache = layer.run(pool(isa), WeightFormat.INT8, 16)
    for scales in (cache.key_scales, cache.value_scales):
        by_slot = scales.swapaxes(1, 2).reshape(96, 2)[SLOTS]
        assert np.isnan(by_slot[:2]).all()
        assert (by_slot[2] == 0).all() and np.isfinite(by_slot[3:]).all()
    assert all((part == 0).all() for part in cache.read(SLOTS[2]))
