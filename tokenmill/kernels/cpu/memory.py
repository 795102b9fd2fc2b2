"""Buffers for kernels: zeroed anonymous memory in huge pages, handed out page by page as it is touched.

Reading weights through 4 KiB pages costs a fifth of the bandwidth in address translation; pages of 2 MiB do not
(``docs/log.md`` has the figures). The kernel is asked, not forced: where it declines, everything works as before.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

HUGE_PAGE_BYTES = 2 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Buffer:
    """Memory with an address; lives as long as this object or an array made from it."""

    memory: mmap.mmap
    num_bytes: int
    address: int

    @classmethod
    def allocate(cls, num_bytes: int) -> Buffer:
        """``num_bytes`` zeros, from a huge page's boundary on if they fill one."""
        spare = HUGE_PAGE_BYTES if num_bytes >= HUGE_PAGE_BYTES else 0
        memory = mmap.mmap(-1, max(num_bytes, 1) + spare, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if spare:
            memory.madvise(mmap.MADV_HUGEPAGE)
        begin = np.frombuffer(memory, np.uint8).ctypes.data
        offset = -begin % HUGE_PAGE_BYTES if spare else 0
        return cls(memory, num_bytes, begin + offset)

    def array(self, dtype: DTypeLike, shape: tuple[int, ...] | None = None) -> NDArray[Any]:
        """The memory's beginning as an array; of all its elements where no shape is given."""
        dtype = np.dtype(dtype)
        shape = (self.num_bytes // dtype.itemsize,) if shape is None else shape
        begin = np.frombuffer(self.memory, np.uint8).ctypes.data
        return np.ndarray(shape, dtype, self.memory, offset=self.address - begin)
