"""FP8: rows quantised as PyTorch would, and products of the codes."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="needs triton: pip install 'tokenmill[gpu]'")

from tests.triton.test_linear import draw
from tokenmill.kernels.triton.linear_fp8 import linear_fp8, quantize_rows
from tokenmill.kernels.triton.quantize import Fp8Weight


def test_rows_are_quantised_by_their_own_largest_number(device: torch.device) -> None:
    x = (
        draw(4, 5000, device=device).bfloat16()
        * torch.tensor([[1.0], [1e-6], [300.0], [0.0]], device=device).bfloat16()
    )
    codes, scales = torch.empty(4, 5000, dtype=torch.uint8, device=device), torch.empty(4, device=device)
    quantize_rows(x, codes, scales)
    assert torch.allclose(scales, x.float().abs().amax(1) / 448, rtol=1e-6)
    back = codes.view(torch.float8_e4m3fn).float() * scales[:, None]
    assert back[3].abs().max() == 0
    largest = x.float().abs().amax(1, keepdim=True)
    # three bits of mantissa, and below 2^-6 of them all multiples of 2^-9
    bound = torch.maximum(x.float().abs() / 16, largest / 448 * 2.0**-10)
    assert ((back - x.float()).abs() <= bound * 1.001).all()


def test_a_number_that_is_not_finite_shows(device: torch.device) -> None:
    x = draw(2, 64, device=device)
    x[1, 3] = torch.inf
    weight = Fp8Weight.allocate(8, 64, device)
    weight.write_rows(0, draw(8, 64, device=device, seed=1))
    out = torch.empty(2, 8, device=device)
    linear_fp8(x, weight, out)
    assert out[0].isfinite().all()
    assert out[1].isnan().all()


@pytest.mark.parametrize("num_rows", [1, 65])
def test_product_of_the_codes(num_rows: int, device: torch.device) -> None:
    """Exact but for the sums: the tensor cores keep some 14 bits of a sum of 128 products."""
    x = draw(num_rows, 640, device=device)
    weight = Fp8Weight.allocate(70, 640, device)
    weight.write_rows(0, draw(70, 640, device=device, seed=1))
    codes, scales = torch.empty(num_rows, 640, dtype=torch.uint8, device=device), torch.empty(num_rows, device=device)
    quantize_rows(x, codes, scales)
    rounded = codes.view(torch.float8_e4m3fn).float() * scales[:, None]
    out = torch.empty(num_rows, 70, device=device)
    linear_fp8(x, weight, out)
    expected = rounded @ weight.dequantize().t()
    assert (out - expected).abs().max() < (1e-4 if device.type == "cpu" else 5e-2)
    assert (out - x @ weight.dequantize().t()).norm() < 0.04 * expected.norm()
