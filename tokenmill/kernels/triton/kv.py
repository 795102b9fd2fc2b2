"""``DeviceKV``: the memory of the KV cache on a GPU, and copying its blocks.

Per layer keys and values ``[num_blocks, num_kv_heads, block_size, head_dim]``: what attention reads of one head in one
block is one contiguous stretch. A slot holds one token position: ``slot = block_id * block_size + offset``. Keys and
values are bf16, or float8 e4m3 with one float32 scale per position and head (its largest magnitude / 448), or float32,
in which tests are exact.

The pool is one allocation, ``[num_layers, 2, num_blocks, …]``, so that one launch copies blocks in every layer. **All
sources are read before anything is written** (a destination may be another pair's source) without any memory beside: a
program owns one short stretch of every block in one plane; it reads the stretch of all sources, waits for its own
threads, and writes them all.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import triton
import triton.language as tl
from torch import Tensor

from tokenmill.core.model_config import ModelConfig

KVForm = Literal["bf16", "fp8", "float32"]
MAX_COPIES = 4096
"""Block copies of one call, at most."""
_WORDS_PER_PROGRAM = 16384  # 4-byte words that a program holds in registers
_MAX_STRETCH = 2048

_DTYPES = {"bf16": torch.bfloat16, "fp8": torch.float8_e4m3fn, "float32": torch.float32}


@dataclass(frozen=True, slots=True)
class LayerKV:
    """One layer's part of the pool."""

    keys: Tensor
    """``[num_blocks, num_kv_heads, block_size, head_dim]`` bf16, float8_e4m3fn or float32."""
    values: Tensor
    """As ``keys``."""
    k_scales: Tensor | None
    """``[num_blocks, num_kv_heads, block_size]`` float32: what a key is multiplied with when read; None: nothing."""
    v_scales: Tensor | None
    """As ``k_scales``, for values."""

    @property
    def block_size(self) -> int:
        return self.keys.shape[2]

    @property
    def num_kv_heads(self) -> int:
        return self.keys.shape[1]

    def for_kernels(self) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """Keys, values and scales as kernels take them: codes of float8 as bytes (``fp8.py`` converts them)."""
        if self.k_scales is None:
            return self.keys, self.values, None, None
        return self.keys.view(torch.uint8), self.values.view(torch.uint8), self.k_scales, self.v_scales

    def read(self, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values in slots ``[n]``, as float32 ``[n, num_kv_heads, head_dim]``."""
        blocks, offsets = slots // self.block_size, slots % self.block_size
        keys, values = (cache.transpose(1, 2)[blocks, offsets].float() for cache in (self.keys, self.values))
        if self.k_scales is None or self.v_scales is None:
            return keys, values
        k_scales, v_scales = (scales.transpose(1, 2)[blocks, offsets] for scales in (self.k_scales, self.v_scales))
        return keys * k_scales[..., None], values * v_scales[..., None]


@dataclass(frozen=True, slots=True)
class DeviceKV:
    """Keys and values of every layer."""

    pool: Tensor
    """``[num_layers, 2, num_blocks, num_kv_heads, block_size, head_dim]``: keys, then values."""
    scales: Tensor | None
    """``[num_layers, 2, num_blocks, num_kv_heads, block_size]`` float32, for float8 alone."""

    @classmethod
    def allocate(
        cls, config: ModelConfig, num_blocks: int, block_size: int, *, form: KVForm, device: torch.device | str
    ) -> DeviceKV:
        """Zeroed memory for ``num_blocks`` blocks of ``block_size`` token positions each."""
        if form not in get_args(KVForm):
            raise ValueError(f"form {form!r}: one of {', '.join(get_args(KVForm))}")
        lines = (config.num_layers, 2, num_blocks, config.num_kv_heads, block_size)
        bytes_per_line = config.head_dim * _DTYPES[form].itemsize
        if block_size * bytes_per_line % 4:
            raise ValueError(f"a block of {block_size} positions of {bytes_per_line} bytes is not made of whole words")
        pool = torch.zeros((*lines, config.head_dim), dtype=_DTYPES[form], device=device)
        return cls(pool, torch.zeros(lines, device=device) if form == "fp8" else None)

    @property
    def num_layers(self) -> int:
        return self.pool.shape[0]

    @property
    def num_blocks(self) -> int:
        return self.pool.shape[2]

    @property
    def block_size(self) -> int:
        return self.pool.shape[4]

    @property
    def num_bytes(self) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in self._parts())

    def layer(self, index: int) -> LayerKV:
        keys, values = self.pool[index].unbind(0)
        k_scales, v_scales = (None, None) if self.scales is None else self.scales[index].unbind(0)
        return LayerKV(keys, values, k_scales, v_scales)

    @property
    def layers(self) -> tuple[LayerKV, ...]:
        return tuple(self.layer(index) for index in range(self.num_layers))

    def copy_blocks(self, pairs: Tensor) -> None:
        """Copy blocks (source, destination) in every layer; all are read before any is written.

        ``pairs``: ``[n, 2]`` int32 on the pool's device, n at most ``MAX_COPIES``, destinations distinct; a pair of
        -1 copies nothing.
        """
        num_pairs = pairs.shape[0]
        if num_pairs > MAX_COPIES:
            raise ValueError(f"{num_pairs} block copies in one call; at most {MAX_COPIES}")
        if num_pairs == 0:
            return
        padded = triton.next_power_of_2(num_pairs)
        stretch = min(_MAX_STRETCH, _WORDS_PER_PROGRAM // padded)
        for part in self._parts():
            planes = part.view(torch.int32).view(self.num_layers * 2, self.num_blocks, -1)
            num_planes, num_blocks, num_words = planes.shape
            _copy_blocks[(triton.cdiv(num_words, stretch), num_planes)](
                planes, pairs, num_pairs, num_blocks, num_words, PAIRS=padded, STRETCH=stretch, num_warps=8
            )

    def poison(self, block_ids: Iterable[int]) -> None:
        """Fill blocks with NaN in every layer; for tests."""
        ids = torch.tensor(list(block_ids), dtype=torch.int64, device=self.pool.device)
        codes = self.pool.view(torch.uint8) if self.scales is not None else self.pool
        codes[:, :, ids] = 0x7F if self.scales is not None else float("nan")
        if self.scales is not None:
            self.scales[:, :, ids] = float("nan")

    def _parts(self) -> tuple[Tensor, ...]:
        return (self.pool,) if self.scales is None else (self.pool, self.scales)


@triton.jit
def _copy_blocks(planes, pairs, num_pairs, num_blocks, num_words, PAIRS: tl.constexpr, STRETCH: tl.constexpr):
    """Program (c, p): words ``c * STRETCH …`` of all pairs' blocks in plane p."""
    pair = tl.arange(0, PAIRS)
    there = pair < num_pairs
    source = tl.load(pairs + 2 * pair, there, -1)
    destination = tl.load(pairs + 2 * pair + 1, there, -1)
    word = tl.program_id(0) * STRETCH + tl.arange(0, STRETCH)
    mask = (source >= 0)[:, None] & (word < num_words)[None, :]
    plane = planes + tl.program_id(1).to(tl.int64) * num_blocks * num_words
    words = tl.load(plane + source.to(tl.int64)[:, None] * num_words + word[None, :], mask)
    tl.debug_barrier()  # every thread has its words before any thread writes
    tl.store(plane + destination.to(tl.int64)[:, None] * num_words + word[None, :], words, mask)
