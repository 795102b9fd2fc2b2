"""Norms, rotation with the cache's write, the gate, token vectors: all memory, and in small steps all launch."""

from __future__ import annotations

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
from tokenmill.kernels.triton.embedding import embedding
from tokenmill.kernels.triton.kv import DeviceKV, KVForm
from tokenmill.kernels.triton.rms_norm import rms_norm
from tokenmill.kernels.triton.rope_kv import rope_kv
from tokenmill.kernels.triton.swiglu import silu_mul

ROWS, TOY_ROWS = (1, 64, 256, 8192), (3,)
BLOCK_SIZE = 16
EPS = 1e-5


def units(place: Place) -> list[Unit]:
    found = []
    for rows in TOY_ROWS if place.toy else ROWS:
        size = f"{rows} rows"
        found += [
            unit("rms_norm with residual", size, partial(_rms_norm, rows)),
            unit("silu_mul", size, partial(_silu_mul, rows)),
            unit("embedding", size, partial(_embedding, rows)),
            unit("rope_kv bf16", size, partial(_rope_kv, rows, "bf16")),
            unit("rope_kv fp8", size, partial(_rope_kv, rows, "fp8")),
        ]
    return found


def _rms_norm(rows: int, context: Context) -> Case:
    hidden = context.shape(LLAMA_8B)["hidden_size"]
    weight = random(context, hidden)
    num_bytes = 2 * rows * hidden * (2 + 4)  # the residual stream is float32
    sets = [_norm_set(context, rows, hidden) for _ in range(copies_for(context.place, num_bytes))]
    calls = [partial(rms_norm, x, weight, EPS, out, residual=residual) for x, residual, out in sets]
    x, residual, out = sets[0]
    sum_before = x.float() + residual  # which is changed in place

    def check() -> tuple[Tensor, Tensor]:
        return out.float(), F.rms_norm(sum_before, (hidden,), weight.float(), EPS)

    return Case(calls, num_bytes, 4.0 * rows * hidden, "bf16", check)


def _norm_set(context: Context, rows: int, hidden: int) -> tuple[Tensor, Tensor, Tensor]:
    residual = random(context, rows, hidden, dtype=torch.float32)
    return random(context, rows, hidden), residual, blank(context, rows, hidden)


def _silu_mul(rows: int, context: Context) -> Case:
    inner = context.shape(LLAMA_8B)["intermediate_size"]
    num_bytes = 3 * rows * inner * 2
    count = copies_for(context.place, num_bytes)
    sets = [(random(context, rows, 2 * inner), blank(context, rows, inner)) for _ in range(count)]
    calls = [partial(silu_mul, gate_up, out) for gate_up, out in sets]

    def check() -> tuple[Tensor, Tensor]:
        gate, up = sets[0][0].float().chunk(2, 1)
        return sets[0][1].float(), F.silu(gate) * up

    return Case(calls, num_bytes, 8.0 * rows * inner, "bf16", check)


def _embedding(rows: int, context: Context) -> Case:
    config = context.shape(LLAMA_8B)
    vocab, hidden = config["vocab_size"], config["hidden_size"]
    table: Tensor = context.keep("table", lambda: random(context, vocab, hidden))
    ids = torch.randint(0, vocab, (rows,), dtype=torch.int32, device=context.place.device)
    out = blank(context, rows, hidden, dtype=torch.float32)

    def check() -> tuple[Tensor, Tensor]:
        return out, table[ids.long()].float()

    return Case([partial(embedding, ids, table, out)] * 2, rows * hidden * (2 + 4), 0.0, "bf16", check)


def _rope_kv(rows: int, form: KVForm, context: Context) -> Case:
    """Every row is a sequence's next token; half of the pool's blocks stay between two rows."""
    config = ModelConfig.from_hf(context.shape(LLAMA_8B) | {"num_hidden_layers": 1})
    heads, kv_heads, head = config.num_heads, config.num_kv_heads, config.head_dim
    place = context.place
    layer = DeviceKV.allocate(config, 2 * rows, BLOCK_SIZE, form=form, device=place.device).layer(0)
    qkv, q_out = random(context, rows, (heads + 2 * kv_heads) * head), blank(context, rows, heads, head)
    positions = torch.randint(0, 500, (rows,), dtype=torch.int32, device=place.device)
    slots = (2 * torch.randperm(rows, device=place.device) * BLOCK_SIZE + positions % BLOCK_SIZE).long()
    angles = torch.arange(512.0)[:, None] * 500000.0 ** (-torch.arange(0, head, 2) / head)
    cos_sin = torch.cat([angles.cos(), angles.sin()], 1).to(place.device)
    call = partial(rope_kv, qkv, positions, slots, cos_sin, layer, q_out, num_heads=heads)
    written = 2 * rows * kv_heads * (head * layer.keys.element_size() + (4 if form == "fp8" else 0))

    def check() -> tuple[Tensor, Tensor]:
        x = qkv.float().view(rows, heads + 2 * kv_heads, head)
        cos, sin = cos_sin[positions.long()].chunk(2, 1)
        wanted = torch.cat([_rotated(x[:, : heads + kv_heads], cos, sin), x[:, heads + kv_heads :]], 1)
        keys, values = layer.read(slots)
        return torch.cat([q_out.float(), keys, values], 1), wanted

    tolerance = 5e-2 if form == "fp8" else 1e-2
    return Case([call] * 2, qkv.nbytes + q_out.nbytes + written, 10.0 * qkv.numel(), "bf16", check, tolerance=tolerance)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    low, high = x.chunk(2, 2)
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat([low * cos - high * sin, high * cos + low * sin], 2)
