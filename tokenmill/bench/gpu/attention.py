"""Paged attention: single tokens over long contexts (memory bounds it), prompts (arithmetic does), and both at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenmill.bench.gpu.case import Case, blank, random, unit
from tokenmill.bench.gpu.place import Place
from tokenmill.bench.gpu.shapes import LLAMA_8B
from tokenmill.bench.gpu.timing import copies_for
from tokenmill.bench.gpu.unit import Context, Unit
from tokenmill.core.model_config import ModelConfig
from tokenmill.kernels.triton.attention import AttentionBuffers, attention
from tokenmill.kernels.triton.kv import DeviceKV, KVForm, LayerKV

BLOCK_SIZE = 16
POOL_POSITIONS, TOY_POSITIONS = 256 * 32768, 1024
FILL_BLOCKS = 16384
"""At once."""
POOL_SHARE = 0.3
"""Of the device's memory, at most; a case that needs more positions goes over the pool more than once."""

DECODE = [(batch, context) for context in (1024, 4096, 8192, 32768) for batch in (1, 4, 16, 64, 256)]
DECODE_FP8 = [(1, 1024), (1, 32768), (16, 8192), (64, 8192), (256, 1024), (256, 32768)]
PREFILL = [(8192, 0), (16384, 0), (32768, 0), (2048, 6144), (512, 0)]
TOY_DECODE, TOY_PREFILL = [(1, 40), (3, 20)], [(24, 0), (8, 20)]


@dataclass(frozen=True, slots=True)
class Pool:
    """One layer's keys and values, full of random numbers."""

    layer: LayerKV
    order: Tensor
    """Of all blocks: none."""

    def tables(self, rows: int, blocks: int, number: int) -> Tensor:
        """``[rows, blocks]`` int32: blocks in no order; of another number others, as long as there are others."""
        begin = number * rows * blocks
        index = torch.arange(begin, begin + rows * blocks, device=self.order.device) % len(self.order)
        return self.order[index].view(rows, blocks)


def decode_units(place: Place) -> list[Unit]:
    sizes = TOY_DECODE if place.toy else DECODE
    found = [_decode_unit("bf16", batch, context) for batch, context in sizes]
    return found + [_decode_unit("fp8", *size) for size in (TOY_DECODE if place.toy else DECODE_FP8)]


def prefill_units(place: Place) -> list[Unit]:
    sizes = TOY_PREFILL if place.toy else PREFILL
    found = [_prefill_unit("bf16", count, past) for count, past in sizes]
    count, past = sizes[0]
    found.append(_prefill_unit("bf16", count, past, invariant=True))
    found.append(_prefill_unit("fp8", count, past))
    rows, context, chunk = (2, 40, 8) if place.toy else (64, 4096, 2048)
    starts, counts = [context - 1] * rows + [0], [1] * rows + [chunk]
    make = partial(_case, "bf16", starts, counts, False)
    return [*found, unit("attention mixed bf16", f"{rows} × 1 of {context} and {chunk}", make)]


def _decode_unit(form: KVForm, batch: int, context: int) -> Unit:
    make = partial(_case, form, [context - 1] * batch, [1] * batch, False)
    return unit(f"attention decode {form}", f"{batch} × 1 of {context}", make)


def _prefill_unit(form: KVForm, count: int, past: int, *, invariant: bool = False) -> Unit:
    kernel = f"attention prefill {form}" + (" deterministic" if invariant else "")
    return unit(kernel, f"{count} after {past}", partial(_case, form, [past], [count], invariant))


def _case(form: KVForm, starts: Sequence[int], counts: Sequence[int], invariant: bool, context: Context) -> Case:
    config = ModelConfig.from_hf(context.shape(LLAMA_8B))
    heads, kv_heads, head = config.num_heads, config.num_kv_heads, config.head_dim
    pool: Pool = context.keep(("pool", form), partial(_pool, context, config, form))
    ends = [start + count for start, count in zip(starts, counts, strict=True)]
    tokens, blocks = sum(counts), -(-max(ends) // BLOCK_SIZE)
    buffers = AttentionBuffers(
        heads, kv_heads, head, BLOCK_SIZE, max_tokens=tokens, max_rows=len(counts), max_blocks_per_row=blocks,
        device=context.place.device,
    )  # fmt: skip
    plan = buffers.plan(starts, counts, list(range(len(counts))), invariant=invariant)
    q, out = random(context, tokens, heads, head), blank(context, tokens, heads, head)
    position_bytes = 2 * kv_heads * (head * pool.layer.keys.element_size() + (4 if form == "fp8" else 0))
    num_bytes = sum(ends) * position_bytes + 2 * q.nbytes
    copies = copies_for(context.place, num_bytes)
    tables = [pool.tables(len(counts), blocks, number) for number in range(copies)]
    scale = head**-0.5
    calls = [partial(attention, q, pool.layer, table, plan, scale, out) for table in tables]
    seen = sum(count * (start + (count + 1) / 2) for start, count in zip(starts, counts, strict=True))
    against = {}
    if form == "bf16" and starts == [0] and not invariant:
        against["torch's attention"] = [_torch_attention(context, config, tokens, scale)]
    return Case(
        calls,
        num_bytes,
        4.0 * seen * heads * head,
        "bf16",
        partial(_last_token, q, pool.layer, tables[0][-1], ends[-1], scale, out),
        against,
    )


def _pool(context: Context, config: ModelConfig, form: KVForm) -> Pool:
    place = context.place
    positions = TOY_POSITIONS
    if place.is_gpu:
        position_bytes = 4 * config.num_kv_heads * config.head_dim
        most = torch.cuda.get_device_properties(place.device).total_memory * POOL_SHARE / position_bytes
        positions = min(POOL_POSITIONS, int(most))
    num_blocks = positions // BLOCK_SIZE
    one = ModelConfig.from_hf(context.shape(LLAMA_8B) | {"num_hidden_layers": 1})
    kv = DeviceKV.allocate(one, num_blocks, BLOCK_SIZE, form=form, device=place.device)
    layer = kv.layer(0)
    for cache in (layer.keys, layer.values):
        for begin in range(0, num_blocks, FILL_BLOCKS):
            part = cache[begin : begin + FILL_BLOCKS]
            part.copy_(torch.randn(part.shape, dtype=torch.bfloat16, device=place.device))
    for scales in (layer.k_scales, layer.v_scales):
        if scales is not None:
            scales.fill_(1.0)
    return Pool(layer, torch.randperm(num_blocks, device=place.device).int())


def _last_token(
    q: Tensor, layer: LayerKV, table: Tensor, length: int, scale: float, out: Tensor
) -> tuple[Tensor, Tensor]:
    """The last token's outcome, and the same by softmax over everything before it."""
    positions = torch.arange(length, device=table.device)
    slots = table[positions // BLOCK_SIZE].long() * BLOCK_SIZE + positions % BLOCK_SIZE
    keys, values = layer.read(slots)
    groups = q.shape[1] // keys.shape[1]
    keys, values = (each.repeat_interleave(groups, 1) for each in (keys, values))
    scores = torch.einsum("hd,nhd->hn", q[-1].float(), keys) * scale
    return out[-1].float(), torch.einsum("hn,nhd->hd", scores.softmax(1), values)


def _torch_attention(context: Context, config: ModelConfig, tokens: int, scale: float) -> partial[Tensor]:
    q = random(context, 1, config.num_heads, tokens, config.head_dim)
    k, v = (random(context, 1, config.num_kv_heads, tokens, config.head_dim) for _ in range(2))
    return partial(F.scaled_dot_product_attention, q, k, v, is_causal=True, scale=scale, enable_gqa=True)
