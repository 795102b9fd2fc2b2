"""Weights from a checkpoint's layout ``[N, K]`` to the panels that kernels read, quantised on the way.

The layout is told in ``src/kernels.h``: panels of 64 outputs; in a panel a step of 4 bytes per output after another,
holding 2 (bf16), 4 (int8) or 8 (int4) inputs. One packing serves any number of rows.

Quantisation is symmetric, per output and group of inputs, with a float16 scale:

    int8  scale = max |w| / 127
    int4  values -8 ... 7; the extreme weight, whichever its sign, is laid on -8 (so a scale may be negative), or a
          little beyond: of a few such scales the one with the least squared error

A matrix is allocated for all its outputs and then written piece by piece, as a checkpoint is read: the pieces of a
merged projection one after the other. Where gate and up feed a SwiGLU, each panel holds 32 outputs of the gate and the
same 32 of up, so that the kernel's epilogue has both at hand; rows keep their numbers as if the two were stacked.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokenmill.core.errors import ConfigError
from tokenmill.kernels.cpu.memory import Buffer
from tokenmill.kernels.cpu.records import PANEL, Weight, WeightFormat

INPUTS_PER_STEP = {WeightFormat.BF16: 2, WeightFormat.INT8: 4, WeightFormat.INT4: 8}
GROUP_MULTIPLE, MAX_GROUP = 32, 256

BLOCK_ELEMENTS = 1 << 20
"""Weights that are quantised at once: few enough that their temporaries stay in the last-level cache."""

INT4_EXTREMES = (8.0, 8.8)
"""Where the extreme weight of a group is tried, in steps; beyond 8.5 it is clipped and the others get finer steps."""


@dataclass(frozen=True)
class PackedMatrix:
    """A matrix ``[out_size, in_size]`` in panels."""

    format: WeightFormat
    in_size: int
    out_size: int
    group: int
    """Inputs that share a scale; 0 for bf16."""
    gated: bool
    """The first half of the outputs (gate) and the second (up) alternate by 32."""
    data: NDArray[Any]  # uint8, flat
    scales: NDArray[Any]  # float16, flat: [panels, in_size / group, 64]; empty for bf16

    @classmethod
    def allocate(
        cls,
        format: WeightFormat,
        out_size: int,
        in_size: int,
        group: int = 0,
        *,
        gated: bool = False,
        name: str = "weight",
    ) -> PackedMatrix:
        """A matrix yet to be written, in huge pages.

        Raises:
            ConfigError: the format cannot hold this width; ``name`` says which layer.
        """
        check_layout(format, in_size, group, name)
        if gated and out_size % 2:
            raise ConfigError(f"{name}: gate and up together have an odd number of outputs, {out_size}")
        if format is WeightFormat.BF16:
            group = 0
        padded = -(-out_size // PANEL) * PANEL
        data = Buffer.allocate(padded * in_size * 4 // INPUTS_PER_STEP[format]).array(np.uint8)
        scales = Buffer.allocate(padded * (in_size // group) * 2 if group else 0).array(np.float16)
        return cls(format, in_size, out_size, group, gated, data, scales)

    @property
    def nbytes(self) -> int:
        return self.data.nbytes + self.scales.nbytes

    @property
    def num_panels(self) -> int:
        return -(-self.out_size // PANEL)

    @property
    def padded_out_size(self) -> int:
        return self.num_panels * PANEL

    def record(self) -> Weight:
        """What kernels are given; valid while this matrix lives."""
        scales = self.scales.ctypes.data if self.group else 0
        return Weight(self.data.ctypes.data, scales, self.in_size, self.out_size, self.group, self.format, 0)

    def write_rows(self, first: int, rows: Tensor) -> None:
        """Quantise and pack ``rows [n, in_size]`` (any float type) as outputs ``first ... first + n - 1``."""
        assert rows.ndim == 2 and rows.shape[1] == self.in_size and first + len(rows) <= self.out_size
        words, scales = self._views()
        block_rows = max(PANEL, BLOCK_ELEMENTS // self.in_size // PANEL * PANEL)
        for begin, end, panel, lane in self._runs(first, first + len(rows), block_rows):
            block = rows[begin - first : end - first]
            packed, block_scales = pack_block(block, self.format, self.group)
            whole, width = max(1, (end - begin) // self._run_width), min(end - begin, self._run_width)
            lanes = slice(lane, lane + width)
            target = words[panel : panel + whole, :, lanes]
            target.copy_(packed.view(whole, width, -1).transpose(1, 2))
            if block_scales is not None:
                scales[panel : panel + whole, :, lanes].copy_(block_scales.view(whole, width, -1).transpose(1, 2))

    def places(self) -> Tensor:
        """Where each output lies among the ``padded_out_size``: a bias goes to kernels in that order."""
        runs = self._runs(0, self.out_size, self._run_width)
        return torch.cat([panel * PANEL + lane + torch.arange(end - begin) for begin, end, panel, lane in runs])

    def tensors(self) -> list[Tensor]:
        """The memory that this matrix owns."""
        return [torch.from_numpy(self.data), torch.from_numpy(self.scales)]

    def dequantize(self) -> Tensor:
        """The matrix that kernels compute with, ``[out_size, in_size]`` float32, rows in the order of writing."""
        words, scales = self._views()
        parts = []
        for begin, end, panel, lane in self._runs(0, self.out_size, self._run_width):
            lanes = slice(lane, lane + end - begin)
            packed = words[panel, :, lanes].t().contiguous()  # [rows, steps]
            if self.format is WeightFormat.BF16:
                parts.append(packed.view(torch.bfloat16).float())
                continue
            values = packed.view(torch.uint8)
            if self.format is WeightFormat.INT4:
                quads = values.view(len(values), -1, 1, 4)
                values = torch.cat((quads & 15, quads >> 4), 2).view(len(values), -1)
            zero = 128 if self.format is WeightFormat.INT8 else 8
            grouped = (values.float() - zero).view(len(values), -1, self.group)
            parts.append((grouped * scales[panel, :, lanes].t().float()[:, :, None]).flatten(1))
        return torch.cat(parts)

    @property
    def _run_width(self) -> int:
        """Neighbouring outputs of a panel that come from neighbouring rows."""
        return PANEL // 2 if self.gated else PANEL

    def _views(self) -> tuple[Tensor, Tensor]:
        """Steps as int32 ``[panels, steps, 64]`` and scales ``[panels, groups, 64]``."""
        words = torch.from_numpy(self.data.view(np.int32)).view(self.num_panels, -1, PANEL)
        groups = self.in_size // self.group if self.group else 0
        return words, torch.from_numpy(self.scales).view(self.num_panels, groups, PANEL)

    def _runs(self, begin: int, end: int, limit: int) -> Iterator[tuple[int, int, int, int]]:
        """Cut rows ``begin ... end - 1`` into ``(begin, end, panel, lane)``: whole runs, or part of a single one."""
        width = self._run_width
        half = self.out_size // 2
        while begin < end:
            upper = self.gated and begin >= half
            base = half if upper else 0
            border = half if self.gated and not upper else self.out_size
            panel, at = divmod(begin - base, width)
            stop = min(end, border)
            if at or stop - begin < width:
                stop = min(stop, begin + width - at)
            else:
                stop = begin + min(limit, stop - begin) // width * width
            yield begin, stop, panel, at + (width if upper else 0)
            begin = stop


def check_layout(format: WeightFormat, in_size: int, group: int, name: str) -> None:
    """Whether a matrix ``in_size`` wide can be stored so.

    Raises:
        ConfigError: it cannot; the message names the layer and the remedy.
    """
    if format is WeightFormat.BF16:
        if in_size % 2:
            raise ConfigError(f"{name}: its width, {in_size}, is odd; packed bf16 weights need an even one")
        return
    if group % GROUP_MULTIPLE or not 0 < group <= MAX_GROUP:
        raise ConfigError(f"the group must be a multiple of {GROUP_MULTIPLE} up to {MAX_GROUP}, not {group}")
    if in_size % group:
        common = math.gcd(in_size, MAX_GROUP)
        remedy = f"use a group of {common} or bf16" if common >= GROUP_MULTIPLE else "use bf16"
        raise ConfigError(f"{name}: its width, {in_size}, is not a multiple of the group, {group}: {remedy}")


def pack_block(rows: Tensor, format: WeightFormat, group: int) -> tuple[Tensor, Tensor | None]:
    """``rows [n, K]`` to steps of 4 bytes, int32 ``[n, steps]``, and scales float16 ``[n, K / group]``."""
    if format is WeightFormat.BF16:
        return rows.to(torch.bfloat16).contiguous().view(torch.int32), None
    values, scales = quantize(rows, format, group)
    if format is WeightFormat.INT8:
        return values.add_(128).to(torch.uint8).view(torch.int32), scales
    quads = values.add_(8).to(torch.uint8).view(torch.int32).view(len(rows), -1, 2)
    return quads[:, :, 0] | quads[:, :, 1] << 4, scales


def quantize(rows: Tensor, format: WeightFormat, group: int) -> tuple[Tensor, Tensor]:
    """Integers as float32 ``[n, K]`` and scales float16 ``[n, K / group]`` for ``rows [n, K]``.

    A group with a weight that is not finite gets a scale that is not, so that the output shows it.
    """
    grouped = rows.to(torch.float32).view(len(rows), -1, group)
    values = torch.empty_like(grouped)
    low, high = grouped.amin(2, keepdim=True), grouped.amax(2, keepdim=True)
    if format is WeightFormat.INT8:
        exact = torch.maximum(high, -low) / 127
        scales = exact.to(torch.float16)
        scales.view(torch.int16).add_(scales < exact)  # up where it was rounded down: nothing is clipped
        _round(grouped, scales, -127, 127, values)
    else:
        extreme = torch.where(high > -low, high, low)
        scales = (extreme / -INT4_EXTREMES[0]).to(torch.float16)
        least = _squared_error(grouped, scales, values)
        for steps in INT4_EXTREMES[1:]:
            others = (extreme / -steps).to(torch.float16)
            error = _squared_error(grouped, others, values)
            scales = torch.where(error < least, others, scales)
            least = torch.minimum(error, least)
        _round(grouped, scales, -8, 7, values)
    return values.view(len(rows), -1), scales.squeeze(2)


def _squared_error(grouped: Tensor, scales: Tensor, scratch: Tensor) -> Tensor:
    """Each group's in 4 bits."""
    _round(grouped, scales, -8, 7, scratch)
    return scratch.mul_(scales.float()).sub_(grouped).square_().sum(2, keepdim=True)


def _round(grouped: Tensor, scales: Tensor, low: int, high: int, out: Tensor) -> None:
    """The nearest integers; 0 where the scale is 0, and anything where it is not finite."""
    inverse = scales.float().reciprocal().nan_to_num_(0.0, 0.0, 0.0)
    torch.mul(grouped, inverse, out=out).round_().clamp_(low, high)
