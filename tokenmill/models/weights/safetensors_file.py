"""One safetensors file: its header, read and checked here, and its tensors as views of the mapped file.

::

    8 bytes: n, little-endian | n bytes: JSON {name: {dtype, shape, data_offsets}} | data

The header is checked before any of it is believed: its length against the file's, every shape against its
byte range, and the ranges must tile the data exactly, without gap, overlap or rest. No name is used twice,
and none is ever used as a path. A pickle file under this name is called what it is and never unpickled.
"""

from __future__ import annotations

import math
import mmap
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tokenmill.core.errors import CheckpointError
from tokenmill.models.weights.json_file import parse_object

MAX_HEADER_BYTES = 2**23
MAX_TENSORS = 2**16
MAX_DIMENSIONS = 8

_DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}

_PICKLE_MAGIC = re.compile(rb"PK\x03\x04|\x80[\x00-\x05]")  # a zip archive (torch.save), or the opcode PROTO


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor of a file; ``begin`` and ``end`` are bytes from the start of the file."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


class SafetensorsFile:
    """An opened file: ``entries`` by name; ``tensor(name)`` maps the data on first use."""

    def __init__(self, path: Path) -> None:
        """Read and check the header. Raises ``CheckpointError`` naming the file and the tensor."""
        self.path = path
        self._map: mmap.mmap | None = None
        try:
            with path.open("rb") as file:
                self.size = os.fstat(file.fileno()).st_size
                prefix = file.read(8)
                length = self._header_length(prefix)
                header = file.read(length)
        except OSError as error:
            raise CheckpointError(f"{path.name}: cannot be read ({error.strerror})") from error
        if not header.startswith(b"{"):
            raise self._not_safetensors(prefix, "its header does not begin with '{'")
        self.entries = _read_entries(path.name, header, data_begin=8 + length, file_size=self.size)

    def _header_length(self, prefix: bytes) -> int:
        if len(prefix) < 8:
            raise CheckpointError(f"{self.path.name}: {self.size} bytes are too few for a safetensors file")
        length = int.from_bytes(prefix, "little")
        if length > MAX_HEADER_BYTES:
            raise self._not_safetensors(prefix, f"a header of {length} bytes is above the limit of {MAX_HEADER_BYTES}")
        if length > self.size - 8:
            raise self._not_safetensors(prefix, f"a header of {length} bytes is longer than the file")
        return length

    def _not_safetensors(self, prefix: bytes, reason: str) -> CheckpointError:
        if _PICKLE_MAGIC.match(prefix):
            reason = "it looks like a pickle file, which can run code when opened; convert it to safetensors"
        return CheckpointError(f"{self.path.name}: not a safetensors file: {reason}")

    def tensor(self, name: str) -> Tensor:
        """The tensor as a view of the mapped file; writing to it would change this process's copy alone."""
        entry = self.entries[name]
        if self._map is None:
            with self.path.open("rb") as file:
                if os.fstat(file.fileno()).st_size != self.size:
                    raise CheckpointError(f"{self.path.name}: the file changed while it was being loaded")
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        flat = torch.frombuffer(self._map, dtype=entry.dtype, count=math.prod(entry.shape), offset=entry.begin)
        return flat.view(entry.shape)


def _read_entries(source: str, header: bytes, *, data_begin: int, file_size: int) -> dict[str, TensorEntry]:
    if header.count(b'"data_offsets"') > MAX_TENSORS:
        raise CheckpointError(f"{source}: more than {MAX_TENSORS} tensors")
    entries = {}
    for name, fields in parse_object(header, source).items():
        if name != "__metadata__":
            entries[name] = _read_entry(source, name, fields, data_begin, file_size)
    if len(entries) > MAX_TENSORS:
        raise CheckpointError(f"{source}: more than {MAX_TENSORS} tensors")
    position = data_begin
    for entry in sorted(entries.values(), key=lambda entry: entry.begin):
        if entry.begin != position:
            kind = "overlaps another" if entry.begin < position else "leaves a gap before it"
            raise CheckpointError(f"{source}: tensor {_brief(entry.name)} {kind} in the data")
        position = entry.end
    if position != file_size:
        raise CheckpointError(f"{source}: the tensors end at byte {position}, the file at byte {file_size}")
    return entries


def _read_entry(source: str, name: str, fields: Any, data_begin: int, file_size: int) -> TensorEntry:
    where = f"{source}: tensor {_brief(name)}"
    if not isinstance(fields, dict) or fields.keys() != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(f"{where}: must have dtype, shape and data_offsets, and nothing else")
    dtype = _DTYPES.get(fields["dtype"]) if isinstance(fields["dtype"], str) else None
    if dtype is None:
        raise CheckpointError(f"{where}: unknown dtype {_brief(fields['dtype'])}")
    shape, offsets = fields["shape"], fields["data_offsets"]
    if not _are_sizes(shape, MAX_DIMENSIONS) or not _are_sizes(offsets, 2) or len(offsets) != 2:
        raise CheckpointError(f"{where}: shape and data_offsets must be short lists of integers of at least 0")
    begin, end = offsets
    if not begin < end <= file_size - data_begin:
        raise CheckpointError(f"{where}: bytes {begin} to {end} are empty, reversed or beyond the end of the file")
    if math.prod(shape) * dtype.itemsize != end - begin:
        raise CheckpointError(f"{where}: {fields['dtype']} {shape} does not take the {end - begin} bytes it is given")
    return TensorEntry(name, dtype, tuple(shape), data_begin + begin, data_begin + end)


def _are_sizes(value: object, max_length: int) -> bool:
    return (
        isinstance(value, list)
        and len(value) <= max_length
        and all(type(item) is int and 0 <= item < 2**62 for item in value)
    )


def _brief(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 120 else text[:117] + "..."
