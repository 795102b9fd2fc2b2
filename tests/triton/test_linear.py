"""Matrix products in every form against plain PyTorch, and a row's bits in changing company."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="needs triton: pip install 'tokenmill[gpu]'")

from tokenmill.kernels.triton.linear import Weight, linear, linear_silu_mul
from tokenmill.kernels.triton.linear_int import PLAIN_ROWS
from tokenmill.kernels.triton.quantize import Fp8Weight, PackedWeight
from tokenmill.kernels.triton.tiles import PROGRAMS, chunks, workspace

FORMS = ("float32", "bf16", "int8", "int4", "fp8")


def draw(*shape: int, device: torch.device, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device)


def make(form: str, plain: Tensor, group: int = 64) -> tuple[Weight, Tensor, torch.dtype]:
    """A matrix in a form, what it stands for in float32, and the type of its inputs."""
    if form in ("float32", "bf16"):
        dtype = torch.float32 if form == "float32" else torch.bfloat16
        return plain.to(dtype), plain.to(dtype).float(), dtype
    weight: PackedWeight | Fp8Weight
    if form == "fp8":
        weight = Fp8Weight.allocate(*plain.shape, plain.device)
    else:
        weight = PackedWeight.allocate(form, *plain.shape, group, plain.device)
    half = len(plain) // 2
    weight.write_rows(0, plain[:half])
    weight.write_rows(half, plain[half:])
    return weight, weight.dequantize(), torch.bfloat16


def tolerance(form: str) -> float:
    """Of outputs whose size is about 20: FP8 rounds the inputs too (3 bits of mantissa)."""
    return 4.0 if form == "fp8" else 2e-3


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("num_rows", [1, 20, 70])
def test_product_with_bias_added_to_what_was_there(form: str, num_rows: int, device: torch.device) -> None:
    weight, plain, dtype = make(form, draw(75, 320, device=device))
    x = draw(num_rows, 320, device=device, seed=1).to(dtype)
    bias, before = draw(75, device=device, seed=2), draw(num_rows, 75, device=device, seed=3)
    expected = x.float() @ plain.t()
    out = torch.full((num_rows, 75), torch.nan, device=device)
    linear(x, weight, out, bias=bias, invariant=True)
    assert (out - (expected + bias)).abs().max() < tolerance(form)
    out.copy_(before)
    linear(x, weight, out, accumulate=True, invariant=True)
    assert (out - (expected + before)).abs().max() < tolerance(form)


@pytest.mark.parametrize("form", FORMS)
def test_bits_of_a_row_do_not_depend_on_the_number_of_rows(form: str, device: torch.device) -> None:
    weight, _, dtype = make(form, draw(72, 512, device=device))
    x = draw(300, 512, device=device, seed=1).to(dtype)
    together = torch.empty(300, 72, dtype=dtype, device=device)
    linear(x, weight, together, invariant=True)
    for first, count in ((0, 1), (299, 1), (7, 2), (150, 7), (200, 64), (40, 65)):
        out = torch.empty(count, 72, dtype=dtype, device=device)
        linear(x[first : first + count], weight, out, invariant=True)
        assert torch.equal(out, together[first : first + count]), f"{count} rows from {first}"


@pytest.mark.parametrize("form", FORMS)
def test_gate_and_up_joined_by_the_activation(form: str, device: torch.device) -> None:
    weight, plain, dtype = make(form, draw(2 * 70, 256, device=device) / 16)
    for num_rows in (3, 66):
        x = draw(num_rows, 256, device=device, seed=1).to(dtype)
        bias = draw(2 * 70, device=device, seed=2)
        gate, up = (x.float() @ plain.t() + bias).chunk(2, dim=1)
        out = torch.empty(num_rows, 70, device=device)
        linear_silu_mul(x, weight, out, gate_up=torch.empty(num_rows, 140, device=device), bias=bias, invariant=True)
        assert (out - torch.nn.functional.silu(gate) * up).abs().max() < (0.5 if form == "fp8" else 1e-4)


@pytest.mark.parametrize("form", ["float32", "int4"])
def test_many_rows_go_to_the_library(form: str, device: torch.device) -> None:
    weight, plain, _ = make(form, draw(96, 64, device=device))
    x, bias = draw(PLAIN_ROWS, 64, device=device, seed=1), draw(96, device=device, seed=2)
    out = draw(PLAIN_ROWS, 96, device=device, seed=3)
    expected = out + x @ plain.t() + bias
    linear(x, weight, out, bias=bias, accumulate=True)
    assert (out - expected).abs().max() < 1e-3
    gate, up = (x @ plain.t()).chunk(2, dim=1)
    joined, gate_up = torch.empty(PLAIN_ROWS, 48, device=device), torch.empty(PLAIN_ROWS, 96, device=device)
    linear_silu_mul(x, weight, joined, gate_up=gate_up)
    assert (joined - torch.nn.functional.silu(gate) * up).abs().max() < 1e-3


@pytest.mark.parametrize("form", ["bf16", "int8"])
def test_logits_in_float32_of_bf16(form: str, device: torch.device) -> None:
    weight, plain, _ = make(form, draw(80, 64, device=device))
    x = draw(5, 64, device=device, seed=1).bfloat16()
    out = torch.empty(5, 80, device=device)
    linear(x, weight, out)
    assert (out - x.float() @ plain.t()).abs().max() < 1e-4


def test_written_out_in_parts(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    weight, plain, _ = make("int8", draw(96, 64, device=device))
    x, out = draw(PLAIN_ROWS, 64, device=device, seed=1), torch.empty(PLAIN_ROWS, 96, device=device)
    space = workspace(x.device)
    monkeypatch.setattr(space, "plain", space.plain[: 40 * 64 * 4])  # 40 rows of float32
    linear(x, weight, out)
    assert (out - x @ plain.t()).abs().max() < 1e-3


def test_no_rows_are_no_work(device: torch.device) -> None:
    for form in FORMS:
        weight, _, dtype = make(form, draw(32, 64, device=device))
        linear(
            torch.empty(0, 64, dtype=dtype, device=device), weight, torch.empty(0, 32, device=device), invariant=True
        )


def test_a_tile_s_tickets_are_returned(device: torch.device) -> None:
    weight, _, dtype = make("int4", draw(64, 512, device=device))
    assert chunks(2, 1) == 2
    linear(draw(2, 512, device=device).to(dtype), weight, torch.empty(2, 64, device=device))
    assert not workspace(torch.empty(0, device=device).device).tickets.any()


def test_chunks_are_equal_and_their_programs_few() -> None:
    for num_slabs in (1, 2, 3, 16, 38, 56, 57):
        for num_tiles in (1, 8, 32, 224, 1002):
            found = chunks(num_slabs, num_tiles)
            assert num_slabs % found == 0
            assert found == 1 or found * num_tiles <= PROGRAMS
    assert chunks(16, 32) == 8  # 4096 x 4096: 256 programs
