"""How fast a file is read that is not in memory.

The page cache cannot be emptied without privileges. ``O_DIRECT`` goes around it where the file system knows it;
elsewhere the file is written out and the kernel is asked to forget it (``POSIX_FADV_DONTNEED``), which it may decline.
What a disk, a hypervisor or a network store keeps in memory of its own is read from there: the figure is what a model's
weights will see, not what the platters do.
"""

from __future__ import annotations

import mmap
import os
import tempfile
import time
from pathlib import Path

from tokenmill.bench.probe.samples import Samples

CHUNK_BYTES = 8 * 1024 * 1024


def read_rate(folder: Path, num_chunks: int, repeat: int) -> Samples:
    """Bytes per second of reading a new file of ``num_chunks`` chunks in ``folder``, which is deleted afterwards.

    Raises:
        OSError: the folder cannot be written to, or is full.
    """
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".probe-") as file:
        for _ in range(num_chunks):
            file.write(os.urandom(CHUNK_BYTES))  # nothing below can compress it
        file.flush()
        os.fsync(file.fileno())
        descriptor, how = _open(file.name)
        try:
            found = [_read(descriptor, how) for _ in range(repeat)]
        finally:
            os.close(descriptor)
    return Samples(tuple(num_bytes / seconds for num_bytes, seconds in found), f"reading a file, {how}")


def _open(name: str) -> tuple[int, str]:
    try:
        return os.open(name, os.O_RDONLY | os.O_DIRECT), "O_DIRECT"
    except (OSError, AttributeError):  # AttributeError: a system that has no such flag
        return os.open(name, os.O_RDONLY), "POSIX_FADV_DONTNEED before"


def _read(descriptor: int, how: str) -> tuple[int, float]:
    """(bytes, seconds) of reading the file once, into memory that begins at a page as ``O_DIRECT`` wants."""
    if how != "O_DIRECT":
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    with mmap.mmap(-1, CHUNK_BYTES) as buffer:
        total, began = 0, time.perf_counter()
        while count := os.preadv(descriptor, [buffer], total):
            total += count
        return total, time.perf_counter() - began
