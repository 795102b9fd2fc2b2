"""Norm, gated activation, embedding, rotation with the KV write, copies of blocks: at the shapes of real models."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch

from tests.triton.test_kv import pool, round_trip
from tokenmill.kernels.triton.embedding import embedding
from tokenmill.kernels.triton.kv import KVForm
from tokenmill.kernels.triton.rms_norm import rms_norm
from tokenmill.kernels.triton.rope_kv import rope_kv
from tokenmill.kernels.triton.swiglu import silu_mul

MODELS = {
    "8b": (4096, 14336, 32, 8, 128, 128256),
    "0.6b": (1024, 3072, 16, 8, 128, 151936),
    "30b-a3b": (2048, 768, 32, 4, 128, 151936),
    "tiny": (60, 100, 3, 1, 20, 260),
}
"""Hidden and feed-forward size, heads, key heads, their dimension, vocabulary."""
NUM_TOKENS = 64
FORMS: tuple[KVForm, ...] = ("bf16", "fp8")


def bf16(*shape: int) -> torch.Tensor:
    return torch.empty(shape, dtype=torch.bfloat16)


def int32(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.int32)


def launches() -> Iterator[tuple[str, Callable[[], None]]]:
    count, slots = int32(1), torch.zeros(NUM_TOKENS, dtype=torch.int64)
    for name, (hidden, ffn, num_heads, num_kv_heads, head_dim, vocab_size) in MODELS.items():
        x = bf16(NUM_TOKENS, hidden)
        norm = partial(rms_norm, x, bf16(hidden), 1e-5, x)
        yield f"rms_norm {name}", partial(norm, num_tokens=count)
        yield f"rms_norm + residual {name}", partial(norm, residual=bf16(NUM_TOKENS, hidden))
        yield f"silu_mul {name}", partial(silu_mul, bf16(NUM_TOKENS, 2 * ffn), bf16(NUM_TOKENS, ffn), num_tokens=count)
        yield f"embedding {name}", partial(embedding, int32(NUM_TOKENS), bf16(vocab_size, hidden), x, count)
        weight = None if name == "8b" else bf16(head_dim)
        for form in FORMS:
            kv = pool(
                form, torch.device("cpu"), num_layers=1, num_blocks=4, num_kv_heads=num_kv_heads, block_size=16,
                head_dim=head_dim,
            )  # fmt: skip
            qkv = bf16(NUM_TOKENS, (num_heads + 2 * num_kv_heads) * head_dim)
            yield f"rope_kv {form} {name}", partial(
                rope_kv, qkv, int32(NUM_TOKENS), slots, torch.empty(64, head_dim), kv.layer(0),
                bf16(NUM_TOKENS, num_heads, head_dim), num_heads=num_heads, q_weight=weight, k_weight=weight, eps=1e-6,
            )  # fmt: skip
            for num_pairs in (1, 64, 4096):
                yield f"copy_blocks {num_pairs} {form} {name}", partial(kv.copy_blocks, int32(num_pairs, 2))
    x, codes = torch.empty(1024), torch.empty(1024, dtype=torch.uint8)
    for native in (False, True):
        yield f"e4m3, native: {native}", partial(round_trip[(1,)], x, codes, x, SIZE=1024, NATIVE=native)
