"""Packed weights kept beside the checkpoint, so that a second start reads them instead of quantising again.

One file per precision: a header with a key and the sizes of all tensors, then the tensors as they lie in memory. The
key covers whatever the content depends on: the weight files (names, sizes, times of change, headers), ``config.json``,
the precision, the version of the layout. A file whose key, sizes or checksums differ is not used and is written anew.

It is read, not mapped: mapped files come in pages of 4 KiB, memory of our own in huge ones, and weights read through
huge pages are a fifth faster at every step (``kernels/cpu/memory.py``). Reading from the page cache takes a few tenths
of a second per GB.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from tokenmill.core.precision import Precision
from tokenmill.models.weights.checkpoint import Checkpoint

LAYOUT_VERSION = 1
"""Raised when ``kernels/cpu/packing.py`` or the order of tensors changes."""
MAGIC = b"tokenmill packed\n"
MAX_HEADER_BYTES = 2**24
MIN_BYTES = 32_000_000
"""Smaller models are packed before anybody notices."""
FOLDER = ".tokenmill"


@dataclass(frozen=True, slots=True)
class PackedCache:
    """The file for one checkpoint and precision."""

    path: Path
    key: str

    @classmethod
    def of(cls, folder: Path, checkpoint: Checkpoint, precision: Precision) -> PackedCache:
        """``folder``/.tokenmill, or the user's cache folder where that cannot be written."""
        group = "" if precision.group_size is None else f"-g{precision.group_size}"
        name = f"{precision.weights}-{precision.lm_head}{group}.packed"
        key = _key(folder, checkpoint, name)
        home = folder / FOLDER
        if not os.access(home if home.exists() else folder, os.W_OK):
            base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
            home = (
                Path(base) / "tokenmill" / "weights" / hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
            )
        return cls(home / name, key)

    def restore(self, tensors: Sequence[Tensor]) -> bool:
        """Fill ``tensors`` from the file; False if there is none that matches (they may then hold anything)."""
        try:
            with self.path.open("rb") as file:
                header = _read_header(file)
                if header is None or header.get("key") != self.key:
                    return False
                if header.get("sizes") != [tensor.nbytes for tensor in tensors]:
                    return False
                return _read_all(file, tensors, header.get("checksums"))
        except OSError:
            return False

    def save(self, tensors: Sequence[Tensor]) -> bool:
        """Write the file, in place only when complete; False where it cannot be written (a full or read-only disk)."""
        views = [_bytes_of(tensor) for tensor in tensors]
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            checksums = list(pool.map(zlib.crc32, views))
        header = {"key": self.key, "sizes": [view.nbytes for view in views], "checksums": checksums}
        text = json.dumps(header).encode()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self.path.parent, delete=False) as file:
                try:
                    file.write(MAGIC + len(text).to_bytes(8, "little") + text)
                    for view in views:
                        file.write(view)
                    file.close()
                    Path(file.name).replace(self.path)
                except BaseException:
                    Path(file.name).unlink(missing_ok=True)
                    raise
        except OSError:
            return False
        return True


def _key(folder: Path, checkpoint: Checkpoint, name: str) -> str:
    digest = hashlib.sha256(f"{LAYOUT_VERSION}\0{name}\0".encode())
    digest.update((folder / "config.json").read_bytes())
    for file in checkpoint.files:
        status = file.path.stat()
        digest.update(f"{file.path.name}\0{status.st_size}\0{status.st_mtime_ns}\0".encode())
        digest.update(repr(sorted(file.entries.items())).encode())
    return digest.hexdigest()


def _read_header(file: BinaryIO) -> dict[str, object] | None:
    if file.read(len(MAGIC)) != MAGIC:
        return None
    size = int.from_bytes(file.read(8), "little")
    if size > MAX_HEADER_BYTES:
        return None
    try:
        header = json.loads(file.read(size))
    except (ValueError, RecursionError):
        return None
    return header if isinstance(header, dict) else None


def _read_all(file: BinaryIO, tensors: Sequence[Tensor], checksums: object) -> bool:
    """Read every tensor and check it, several at a time: reading and checking both let others run."""
    begins = np.cumsum([file.tell(), *(tensor.nbytes for tensor in tensors)]).tolist()

    def one(index: int) -> int:
        view = _bytes_of(tensors[index])
        done = 0
        while done < view.nbytes:
            count = os.preadv(file.fileno(), [view[done:]], begins[index] + done)
            if count == 0:
                break
            done += count
        return zlib.crc32(view)

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        found = list(pool.map(one, range(len(tensors))))
    return found == checksums


def _bytes_of(tensor: Tensor) -> memoryview:
    flat = tensor.contiguous().view(-1)
    if flat.data_ptr() != tensor.data_ptr():
        raise ValueError("weights must lie in one piece: a copy would be filled, and not they")
    array: Any = flat.view(torch.uint8).numpy()
    return memoryview(array)
