"""``DeviceMatrix``: pieces of a checkpoint merged, in every form, on the device."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="needs triton: pip install 'tokenmill[gpu]'")

from tests.triton.test_linear import draw
from tokenmill.core.precision import Precision
from tokenmill.models.quantization import device as module
from tokenmill.models.quantization.device import DeviceMatrix


@pytest.mark.parametrize("form", ["bf16", "int8", "int4", "fp8"])
def test_pieces_are_merged(form: str, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WEIGHTS_AT_ONCE", 64 * 10)  # in several parts
    matrix = DeviceMatrix(form, Precision("fast", form, "bf16", "bf16"))
    matrix.create(64, [24, 8], bias=True, dtype=torch.bfloat16, device=device)
    host = torch.device("cpu")
    pieces = [draw(24, 64, device=host), draw(8, 64, device=host, seed=1)]
    for index, piece in enumerate(pieces):
        found = matrix.destinations(index)
        assert found["weight"].shape == piece.shape
        found["weight"].take(piece.bfloat16())
        found["bias"].take(torch.full((len(piece),), float(index)))
    plain = torch.cat(pieces).bfloat16().float().to(device)
    x = draw(5, 64, device=device, seed=2).bfloat16()
    expected = x.float() @ plain.t() + torch.tensor([0.0] * 24 + [1.0] * 8, device=device)
    error = {"bf16": 0.01, "int8": 0.02, "int4": 0.15, "fp8": 0.06}[form]
    assert (matrix.apply(x).float() - expected).norm() < error * expected.norm()
    rows = torch.tensor([31, 0], device=device)
    assert (matrix.rows(rows).float() - plain[rows]).norm() < error * plain[rows].norm()
    assert all(each.device.type == device.type for each in matrix.parameters())
