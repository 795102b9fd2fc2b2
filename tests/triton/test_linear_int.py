"""Integers in groups: the CPU's values in the layout of the GPU, unpacked to the last bit."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="needs triton: pip install 'tokenmill[gpu]'")

from tests.triton.test_linear import draw
from tokenmill.core.errors import ConfigError
from tokenmill.kernels.cpu.packing import PackedMatrix
from tokenmill.kernels.cpu.records import WeightFormat
from tokenmill.kernels.triton.linear_int import linear_int, write_out
from tokenmill.kernels.triton.quantize import PackedWeight


@pytest.mark.parametrize("form", ["int8", "int4"])
@pytest.mark.parametrize(("in_size", "group"), [(384, 128), (192, 64), (96, 32)])
def test_values_are_those_of_the_cpu(form: str, in_size: int, group: int, device: torch.device) -> None:
    plain = draw(40, in_size, device=device)
    weight = PackedWeight.allocate(form, 40, in_size, group, device)
    weight.write_rows(0, plain[:24])
    weight.write_rows(24, plain[24:])
    expected = PackedMatrix.allocate(WeightFormat[form.upper()], 40, in_size, group)
    expected.write_rows(0, plain.cpu())
    assert torch.equal(weight.dequantize().cpu(), expected.dequantize())
    some = torch.tensor([39, 0, 7], device=device)
    assert torch.equal(weight.rows(some, torch.float32), weight.dequantize()[some])
    out = torch.empty(30, in_size, device=device)
    write_out(weight, 5, out)
    assert torch.equal(out, weight.dequantize()[5:35])


@pytest.mark.parametrize(("form", "low", "high"), [("int8", -127, 127), ("int4", -8, 7)])
def test_every_integer_is_unpacked_exactly(form: str, low: int, high: int, device: torch.device) -> None:
    """Times the unit matrix, in bf16 where there is one, the integers themselves must come out."""
    span = torch.arange(low, high + 1)
    plain = span.repeat(4 * 256 // len(span) + 1)[: 4 * 256].view(4, 256).float().to(device)
    extreme = -8.0 if form == "int4" else 127.0
    plain[:, ::32] = extreme  # makes every group's scale 1
    weight = PackedWeight.allocate(form, 4, 256, 32, device)
    weight.write_rows(0, plain)
    assert torch.equal(weight.dequantize(), plain)
    out = torch.empty(256, 4, device=device)
    linear_int(torch.eye(256, dtype=torch.bfloat16, device=device), weight, out)
    assert torch.equal(out, plain.t())


def test_weights_that_are_not_finite_show(device: torch.device) -> None:
    plain = draw(8, 64, device=device)
    plain[3, 5] = torch.nan
    weight = PackedWeight.allocate("int8", 8, 64, 32, device)
    weight.write_rows(0, plain)
    out = torch.empty(1, 8, device=device)
    linear_int(draw(1, 64, device=device, seed=1), weight, out)
    assert out[0].isnan().tolist() == [False] * 3 + [True] + [False] * 4


@pytest.mark.parametrize("group", [16, 96, 128, 256])
def test_a_group_that_cannot_be_is_refused(group: int) -> None:
    with pytest.raises(ConfigError, match=f"group_size {group}"):
        PackedWeight.allocate("int4", 8, 192, group, "cpu")
