"""Writing to the KV cache: new tokens, and whole blocks copied (copy-on-write)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tokenmill.kernels.kv import KVTensors


def write_kv(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor) -> None:
    """Put token ``i``'s key and value, ``k[i]`` and ``v[i] [num_kv_heads, head_dim]``, into slot ``slots[i]``."""
    k_cache.index_copy_(0, slots, k.to(k_cache.dtype))
    v_cache.index_copy_(0, slots, v.to(v_cache.dtype))


def copy_blocks(kv: KVTensors, pairs: Sequence[tuple[int, int]]) -> None:
    """Copy blocks ``(source, destination)`` in every layer; all sources are read before anything is written."""
    if not pairs:
        return
    sources, destinations = torch.tensor(pairs, device=kv.keys[0].device).unbind(1)
    for tensor in (*kv.keys, *kv.values):
        blocks = tensor.view(kv.num_blocks, kv.block_size, *tensor.shape[1:])
        blocks.index_copy_(0, destinations, blocks.index_select(0, sources))
