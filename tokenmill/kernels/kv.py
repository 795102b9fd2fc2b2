"""``KVTensors``: the memory of the KV cache, as the kernels see it.

Per layer one tensor of keys and one of values, ``[num_slots, num_kv_heads, head_dim]``. A slot holds one
token position: ``slot = block_id * block_size + offset``. Which block belongs to whom is decided elsewhere
(``engine/kvcache``); nothing here knows sequences.
"""

from __future__ import annotations

import math
import mmap
from dataclasses import dataclass

import torch
from torch import Tensor

from tokenmill.core.model_config import ModelConfig


@dataclass(frozen=True, slots=True)
class KVTensors:
    """Keys and values of every layer; ``keys[i]`` and ``values[i]``: ``[num_slots, num_kv_heads, head_dim]``."""

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    block_size: int

    @classmethod
    def allocate(
        cls,
        config: ModelConfig,
        num_blocks: int,
        block_size: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> KVTensors:
        """Zeroed tensors for ``num_blocks`` blocks of ``block_size`` token positions each."""
        shape = (num_blocks * block_size, config.num_kv_heads, config.head_dim)
        zeros = _lazy_zeros if torch.device(device).type == "cpu" else torch.zeros
        keys, values = (
            tuple(zeros(shape, dtype=dtype, device=device) for _ in range(config.num_layers)) for _ in range(2)
        )
        return cls(keys=keys, values=values, block_size=block_size)

    @property
    def num_blocks(self) -> int:
        return self.keys[0].shape[0] // self.block_size

    @property
    def num_bytes(self) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in (*self.keys, *self.values))


def _lazy_zeros(shape: tuple[int, ...], *, dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """Anonymous memory, which the system hands out zeroed page by page: a pool of gigabytes is there at once."""
    num_bytes = math.prod(shape) * dtype.itemsize
    return torch.frombuffer(mmap.mmap(-1, num_bytes), dtype=dtype).view(shape).to(device)
