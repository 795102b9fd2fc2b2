"""``rope_kv``: from a layer's queries, keys and values to what attention reads, in one pass.

RMS norm per head of queries and keys (Qwen3), rotation of the pairs ``(x[i], x[i + D/2])`` by the position's angles
(RoPE, arXiv 2104.09864), keys and values to their slots of the cache. All is done in float32 and rounded once: to bf16,
or to e4m3 with a scale for each position and head, its largest magnitude / 448. A line that is not finite gets a scale
of NaN, so that nothing hides.

A program has a few heads of one token, all queries, all keys or all values.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl
from torch import Tensor

from tokenmill.kernels.triton.device import has_native_e4m3
from tokenmill.kernels.triton.fp8 import encode_e4m3
from tokenmill.kernels.triton.kv import LayerKV

_MAX_HEADS = 8  # of a program


def rope_kv(
    qkv: Tensor,
    positions: Tensor,
    slots: Tensor,
    cos_sin: Tensor,
    layer: LayerKV,
    q_out: Tensor,
    *,
    num_heads: int,
    q_weight: Tensor | None = None,
    k_weight: Tensor | None = None,
    eps: float = 0.0,
) -> None:
    """Rotated queries to ``q_out``, rotated keys and values to the cache.

    Args:
        qkv: ``[T, (num_heads + 2 * num_kv_heads) * D]``: queries, keys, values.
        positions: int32 ``[T]``.
        slots: int64 ``[T]``, ``block * block_size + offset``; -1: padding, of which nothing is written to the cache.
        cos_sin: ``[P, D]`` float32: cosines of the D/2 angles, then sines.
        q_out: ``[T, num_heads, D]``.
        q_weight, k_weight: ``[D]`` both or neither: norm of each head, with ``eps``.
    """
    num_tokens, num_kv_heads, head_dim = qkv.shape[0], layer.num_kv_heads, layer.keys.shape[3]
    heads = min(_MAX_HEADS, math.gcd(num_heads, num_kv_heads) & -math.gcd(num_heads, num_kv_heads))
    pairs = triton.next_power_of_2(head_dim // 2)
    _rope_kv[((num_heads + 2 * num_kv_heads) // heads, num_tokens)](
        qkv, positions, slots, cos_sin, q_out, *layer.for_kernels(), q_weight, k_weight, eps, qkv.stride(0), num_heads,
        num_kv_heads, BLOCK_SIZE=layer.block_size, HEAD_DIM=head_dim, HEADS=heads, PAIRS=pairs,
        NATIVE=has_native_e4m3(), num_warps=max(1, min(4, heads * pairs // 256)),
    )  # fmt: skip


@triton.jit
def _rope_kv(
    qkv, positions, slots, cos_sin, q_out, keys, values, k_scales, v_scales, q_weight, k_weight, eps, qkv_stride,
    num_heads, num_kv_heads, BLOCK_SIZE: tl.constexpr, HEAD_DIM: tl.constexpr, HEADS: tl.constexpr,
    PAIRS: tl.constexpr, NATIVE: tl.constexpr,
):  # fmt: skip
    HALF: tl.constexpr = HEAD_DIM // 2
    token = tl.program_id(1).to(tl.int64)
    first = tl.program_id(0) * HEADS
    head = first + tl.arange(0, HEADS)[:, None]
    pair = tl.arange(0, PAIRS)[None, :]
    there = pair < HALF
    low_at = head * HEAD_DIM + pair
    low = tl.load(qkv + token * qkv_stride + low_at, there, 0.0).to(tl.float32)
    high = tl.load(qkv + token * qkv_stride + low_at + HALF, there, 0.0).to(tl.float32)
    is_query = first < num_heads
    if first < num_heads + num_kv_heads:
        if q_weight is not None:
            scale = 1.0 / tl.sqrt_rn(tl.sum(low * low + high * high, 1) / HEAD_DIM + eps)[:, None]
            of_queries, of_keys = there & is_query, there & ~is_query
            low_weight = tl.load(q_weight + pair, of_queries, 0.0) + tl.load(k_weight + pair, of_keys, 0.0)
            high_weight = tl.load(q_weight + HALF + pair, of_queries, 0.0) + tl.load(
                k_weight + HALF + pair, of_keys, 0.0
            )
            low *= scale * low_weight.to(tl.float32)
            high *= scale * high_weight.to(tl.float32)
        angles = cos_sin + tl.load(positions + token).to(tl.int64) * HEAD_DIM
        cos, sin = tl.load(angles + pair, there, 0.0), tl.load(angles + HALF + pair, there, 0.0)
        low, high = low * cos - high * sin, high * cos + low * sin
    if is_query:
        at = q_out + token * num_heads * HEAD_DIM + low_at
        tl.store(at, low.to(q_out.dtype.element_ty), there)
        tl.store(at + HALF, high.to(q_out.dtype.element_ty), there)
    else:
        slot = tl.load(slots + token)
        line = (slot // BLOCK_SIZE * num_kv_heads + (head - num_heads) % num_kv_heads) * BLOCK_SIZE + slot % BLOCK_SIZE
        if first < num_heads + num_kv_heads:
            _write(keys, k_scales, line, low, high, pair, there & (slot >= 0), HEAD_DIM, NATIVE)
        else:
            _write(values, v_scales, line, low, high, pair, there & (slot >= 0), HEAD_DIM, NATIVE)


@triton.jit
def _write(cache, scales, line, low, high, pair, mask, HEAD_DIM: tl.constexpr, NATIVE: tl.constexpr):
    """Lines ``[HEADS, 1]`` of the cache from their halves; those of ``mask``."""
    at = cache + line * HEAD_DIM + pair
    if scales is None:
        tl.store(at, low.to(cache.dtype.element_ty), mask)
        tl.store(at + HEAD_DIM // 2, high.to(cache.dtype.element_ty), mask)
    else:
        peak = tl.max(tl.maximum(tl.abs(low), tl.abs(high)), 1)[:, None]
        taint = tl.sum(low * 0.0 + high * 0.0, 1)[:, None]  # NaN where the line is not finite, else 0
        inverse = tl.where(peak > 0.0, 448.0 / peak, 0.0)
        tl.store(scales + line, peak / 448.0 + taint, tl.max(mask.to(tl.int32), 1)[:, None] > 0)
        tl.store(at, encode_e4m3(low * inverse, NATIVE), mask)
        tl.store(at + HEAD_DIM // 2, encode_e4m3(high * inverse, NATIVE), mask)
