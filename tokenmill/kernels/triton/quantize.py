"""Matrices in the forms that the GPU's kernels read, quantised on the device they are kept on.

``PackedWeight`` holds int8 or int4 with a float16 scale per output and group of inputs, by the CPU's quantiser
(``kernels/cpu/packing.py``), so what is known of the quality of the one holds for the other. ``Fp8Weight`` holds e4m3
with a float32 scale per output, the largest weight on 448.

**The layout of integers** is what the tensor cores' operand wants (``linear_int.py`` says why). A 32-bit word holds
pairs of neighbouring inputs, one of a pair in each half, of 32 inputs that lie side by side, a *plane*:

    int4   bits 4 p … of the halves of word j: inputs 32 p + 2 j and 32 p + 2 j + 1    p = 0 … 3, 128 inputs in 16 words
    int8   bits 8 p … of the halves of word j: the same                                p = 0, 1,   64 inputs in 16 words

int4 is kept as value + 8, int8 as two's complement. Words lie ``[K / 256, N, words of 256 inputs]``, scales
``[K / (2 group), N, 2]``: what a program loads is contiguous. Widths are padded to 256 with zeros.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokenmill.core.errors import ConfigError
from tokenmill.kernels.cpu.packing import quantize
from tokenmill.kernels.cpu.records import WeightFormat
from tokenmill.kernels.triton.fp8 import E4M3_MAX

SLAB = 256
"""Inputs that lie together; widths are padded to it."""
PLANE = 32
BLOCK_WORDS = 16
BITS = {"int4": 4, "int8": 8}
GROUPS = (32, 64, 128)


@dataclass(frozen=True, slots=True, eq=False)
class PackedWeight:
    """A matrix ``[out_size, in_size]`` of integers."""

    form: str
    """``int8`` or ``int4``."""
    out_size: int
    in_size: int
    group: int
    """Inputs that share a scale."""
    words: Tensor  # int32 [slabs, out_size, 32 (int4) or 64 (int8)]
    scales: Tensor  # float16 [slabs * 256 / (2 * group), out_size, 2]

    @classmethod
    def allocate(cls, form: str, out_size: int, in_size: int, group: int, device: torch.device | str) -> PackedWeight:
        """A matrix yet to be written.

        Raises:
            ConfigError: the group is none that the kernels know, or does not divide the width.
        """
        if group not in GROUPS or in_size % group:
            known = ", ".join(str(each) for each in GROUPS)
            raise ConfigError(f"group_size {group}: on a GPU one of {known} that divides the width, {in_size}")
        num_slabs = -(-in_size // SLAB)
        words = torch.zeros(num_slabs, out_size, SLAB * BITS[form] // 32, dtype=torch.int32, device=device)
        scales = torch.zeros(num_slabs * SLAB // (2 * group), out_size, 2, dtype=torch.float16, device=device)
        return cls(form, out_size, in_size, group, words, scales)

    def write_rows(self, first: int, rows: Tensor) -> None:
        """Quantise ``rows [n, in_size]`` (any float type, on the device) as outputs ``first … first + n - 1``."""
        values, scales = quantize(rows, WeightFormat[self.form.upper()], self.group)
        place = slice(first, first + len(rows))
        self.words[:, place] = _to_words(values, self.form, len(self.words)).transpose(0, 1)
        pairs = scales.new_zeros(len(rows), len(self.scales), 2)
        pairs.view(len(rows), -1)[:, : scales.shape[1]] = scales
        self.scales[:, place] = pairs.transpose(0, 1)

    def tensors(self) -> list[Tensor]:
        """The memory that it owns."""
        return [self.words, self.scales]

    def rows(self, indices: Tensor, dtype: torch.dtype) -> Tensor:
        """Rows ``indices`` of the matrix that is computed with, ``[len(indices), in_size]``."""
        words, scales = self.words[:, indices], self.scales[:, indices]  # gathered: no more is unpacked
        values = _from_words(words.transpose(0, 1), self.form)
        wide = scales.transpose(0, 1).reshape(len(values), -1, 1).float()
        return (values.view(len(values), -1, self.group) * wide).flatten(1)[:, : self.in_size].to(dtype)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The matrix that is computed with, ``[out_size, in_size]``."""
        return self.rows(torch.arange(self.out_size, device=self.words.device), dtype)


@dataclass(frozen=True, slots=True, eq=False)
class Fp8Weight:
    """A matrix ``[out_size, in_size]`` in e4m3, a scale per output."""

    codes: Tensor  # uint8 [out_size, in_size]
    scales: Tensor  # float32 [out_size]

    @classmethod
    def allocate(cls, out_size: int, in_size: int, device: torch.device | str) -> Fp8Weight:
        """A matrix yet to be written."""
        codes = torch.empty(out_size, in_size, dtype=torch.uint8, device=device)
        return cls(codes, torch.empty(out_size, dtype=torch.float32, device=device))

    @property
    def out_size(self) -> int:
        return self.codes.shape[0]

    @property
    def in_size(self) -> int:
        return self.codes.shape[1]

    def write_rows(self, first: int, rows: Tensor) -> None:
        """Quantise ``rows [n, in_size]`` (any float type, on the device) as outputs ``first … first + n - 1``."""
        wide = rows.float()
        scales = wide.abs().amax(1) / E4M3_MAX
        inverse = scales.reciprocal().nan_to_num_(0.0, 0.0, 0.0)  # a row of zeros stays one
        codes = (wide * inverse[:, None]).clamp_(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)
        place = slice(first, first + len(rows))
        self.codes[place] = codes.view(torch.uint8)
        self.scales[place] = scales

    def tensors(self) -> list[Tensor]:
        """The memory that it owns."""
        return [self.codes, self.scales]

    def rows(self, indices: Tensor, dtype: torch.dtype) -> Tensor:
        """Rows ``indices`` of the matrix that is computed with, ``[len(indices), in_size]``."""
        values = self.codes[indices].view(torch.float8_e4m3fn).float()
        return (values * self.scales[indices][:, None]).to(dtype)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The matrix that is computed with, ``[out_size, in_size]``."""
        return (self.codes.view(torch.float8_e4m3fn).float() * self.scales[:, None]).to(dtype)


def _to_words(values: Tensor, form: str, num_slabs: int) -> Tensor:
    """Integers as float32 ``[n, K]`` to int32 ``[n, slabs, words]``."""
    bits = BITS[form]
    padded = torch.nn.functional.pad(values, (0, num_slabs * SLAB - values.shape[1]))
    codes = (padded + 8 if form == "int4" else padded).to(torch.int32) & ((1 << bits) - 1)
    planes = codes.view(len(values), -1, 16 // bits, BLOCK_WORDS, 2)  # [n, blocks, planes, words, halves]
    words = torch.zeros_like(planes[:, :, 0, :, 0])
    for plane in range(16 // bits):
        for half in range(2):
            words |= planes[:, :, plane, :, half] << (bits * plane + 16 * half)
    return words.reshape(len(values), num_slabs, -1)


def _from_words(words: Tensor, form: str) -> Tensor:
    """The other way: int32 ``[n, slabs, words]`` to integers as float32 ``[n, slabs * 256]``."""
    bits = BITS[form]
    blocks = words.reshape(len(words), -1, 1, BLOCK_WORDS, 1)
    planes = torch.arange(16 // bits, dtype=torch.int32, device=words.device).view(1, 1, -1, 1, 1)
    halves = torch.arange(2, dtype=torch.int32, device=words.device)
    codes = (blocks >> (bits * planes + 16 * halves)) & ((1 << bits) - 1)
    if form == "int4":
        return (codes - 8).float().reshape(len(words), -1)
    return (codes - ((codes & 128) << 1)).float().reshape(len(words), -1)
