"""Attention's launches at real shapes (see ``dry.py``)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from tokenmill.kernels.triton.attention import AttentionBuffers, attention
from tokenmill.kernels.triton.kv import LayerKV

SHAPES = {
    "Llama-3.1-8B": (32, 8, 128),
    "Qwen3-0.6B": (16, 8, 128),
    "Qwen3-30B-A3B": (32, 4, 128),
    "heads of 64": (24, 8, 64),
    "heads of 256": (8, 4, 256),
}


def launches() -> Iterator[tuple[str, Callable[[], None]]]:
    for name, (num_heads, num_kv_heads, head_dim) in SHAPES.items():
        yield f"{name}, bf16", _launch(num_heads, num_kv_heads, head_dim)
    yield "Llama-3.1-8B, fp8", _launch(32, 8, 128, fp8=True)
    yield "Llama-3.1-8B, blocks of 256", _launch(32, 8, 128, block_size=256)
    yield "gpt-oss: window and sinks", _launch(64, 8, 64, window=128, sinks=True)
    yield "Gemma-2: window and soft-cap", _launch(8, 4, 256, window=4096, softcap=50.0)


def _launch(
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    *,
    block_size: int = 16,
    window: int | None = None,
    softcap: float | None = None,
    sinks: bool = False,
    fp8: bool = False,
) -> Callable[[], None]:
    buffers = AttentionBuffers(
        num_heads, num_kv_heads, head_dim, block_size, 8192, 256, 32768 // block_size, window, softcap, device="cpu"
    )
    cache = torch.zeros((4, num_kv_heads, block_size, head_dim), dtype=torch.float8_e4m3fn if fp8 else torch.bfloat16)
    scales = torch.zeros((4, num_kv_heads, block_size)) if fp8 else None
    tables = torch.zeros((256, 32768 // block_size), dtype=torch.int32)
    q = torch.zeros((8192, num_heads, head_dim), dtype=torch.bfloat16)
    plan = buffers.plan([5000, 0], [1, 8000], [0, 1])

    def launch() -> None:
        attention(
            q, LayerKV(cache, cache, scales, scales), tables, plan, head_dim**-0.5, torch.empty_like(q),
            sinks=torch.zeros(num_heads) if sinks else None,
        )  # fmt: skip

    return launch
