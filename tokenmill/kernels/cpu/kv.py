"""``PagedKV``: the memory of the KV cache in the layout that the C++ kernels read.

Per layer one buffer of keys and one of values, block after block; within a block every key head has its positions
together, keys laid out for dot products (``src/kernels.h``, ``KvCache``). In 8 bits a position of a head takes
``head_dim`` bytes and a float32 scale, for key and value each. Whatever the layout, a block is one run of bytes, so
copying one is one ``memcpy``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from tokenmill.core.errors import NotSupported
from tokenmill.core.model_config import ModelConfig
from tokenmill.core.precision import KV_POSITIONS
from tokenmill.kernels.cpu.library import Library, Pool
from tokenmill.kernels.cpu.memory import Buffer
from tokenmill.kernels.cpu.program import Program
from tokenmill.kernels.cpu.records import CopyBlocksArgs, KvCache, Step, WeightFormat

NAN_BF16 = 0x7FC0


class PagedKV:
    """Keys and values of every layer for ``num_blocks`` blocks of ``block_size`` positions."""

    def __init__(self, config: ModelConfig, num_blocks: int, block_size: int, format: WeightFormat) -> None:
        """``format``: ``BF16`` or ``INT8``. Raises ``NotSupported`` for shapes that the kernels do not read."""
        if block_size % KV_POSITIONS:
            raise NotSupported(f"block_size {block_size}: the CPU kernels read blocks of multiples of {KV_POSITIONS}")
        if config.head_dim % KV_POSITIONS:
            raise NotSupported(f"head_dim {config.head_dim}: the CPU kernels read multiples of {KV_POSITIONS}")
        self.num_blocks, self.block_size, self.format = num_blocks, block_size, format
        self._heads, self._head_dim = config.num_kv_heads, config.head_dim
        positions = block_size * config.num_kv_heads
        self.block_bytes = positions * config.head_dim * (1 if format == WeightFormat.INT8 else 2)
        self.scale_bytes = positions * 4 if format == WeightFormat.INT8 else 0
        self._data = [self._pair(self.block_bytes) for _ in range(config.num_layers)]
        self._scales = [self._pair(self.scale_bytes) for _ in range(config.num_layers)] if self.scale_bytes else []

    def _pair(self, block_bytes: int) -> tuple[Buffer, Buffer]:
        return Buffer.allocate(self.num_blocks * block_bytes), Buffer.allocate(self.num_blocks * block_bytes)

    @property
    def num_bytes(self) -> int:
        return sum(buffer.num_bytes for pair in (*self._data, *self._scales) for buffer in pair)

    def record(self, layer: int) -> KvCache:
        """A layer's cache for the kernels."""
        keys, values = self._data[layer]
        key_scales, value_scales = self._scales[layer] if self._scales else (None, None)
        return KvCache(
            keys.address,
            values.address,
            key_scales.address if key_scales else None,
            value_scales.address if value_scales else None,
            self.block_size,
            self._heads,
            self._head_dim,
            self.format,
        )

    def copy_blocks(self, pairs: Sequence[tuple[int, int]], library: Library, pool: Pool) -> None:
        """Copy (source, destination) in every layer; no destination is a source."""
        table = np.array(pairs, np.int64)
        program = Program(library)
        for buffers, num_bytes in ((self._data, self.block_bytes), (self._scales, self.scale_bytes)):
            for buffer in (buffer for pair in buffers for buffer in pair):
                program.add("copy_blocks", CopyBlocksArgs(buffer.address, num_bytes, table.ctypes.data, len(table)))
        program.run(pool, Step())

    def poison(self, block_ids: Iterable[int]) -> None:
        """Fill blocks with NaN (in 8 bits, their scales); for tests."""
        index = list(block_ids)
        if self._scales:
            for buffer in (buffer for pair in self._scales for buffer in pair):
                buffer.array(np.float32, (self.num_blocks, self.scale_bytes // 4))[index] = np.nan
            return
        for buffer in (buffer for pair in self._data for buffer in pair):
            buffer.array(np.uint16, (self.num_blocks, self.block_bytes // 2))[index] = NAN_BF16
