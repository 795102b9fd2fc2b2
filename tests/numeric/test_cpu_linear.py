"""Linear kernels: right against float64, and a row's bits the same in any company and on any number of threads."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.numeric.cpu_support import QuantizedRows, each_isa, pool, run
from tokenmill.core.errors import ConfigError
from tokenmill.kernels.cpu.isa import available_isas
from tokenmill.kernels.cpu.packing import PackedMatrix
from tokenmill.kernels.cpu.records import PANEL, Epilogue, LinearArgs, WeightFormat

BF16, INT8, INT4 = WeightFormat
FORMATS = [(BF16, 0), (INT8, 32), (INT8, 128), (INT4, 32), (INT4, 96), (INT4, 128)]
each_format = pytest.mark.parametrize(("format", "group"), FORMATS, ids=lambda value: getattr(value, "name", value))
BEST = available_isas()[0].name


def width_of(group: int) -> int:
    """Inputs: over the length of a chunk, not a multiple of it, and whole groups."""
    return 6 * 96 if group == 96 else 640


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def packed(format: WeightFormat, group: int, out_size: int, *, gated: bool = False) -> PackedMatrix:
    matrix = PackedMatrix.allocate(format, out_size, width_of(group), group, gated=gated)
    matrix.write_rows(0, random(out_size, width_of(group)) / 16)
    return matrix


class Linear:
    """A layer with one input; ``kernel`` and ``exact`` compute it for some of its rows."""

    def __init__(
        self, matrix: PackedMatrix, x: Tensor, bias: Tensor | None = None, *, weight_only: bool = False
    ) -> None:
        self.matrix, self.x = matrix, x.bfloat16().contiguous()
        self.quantized = QuantizedRows(x, matrix.group) if matrix.group and not weight_only else None
        self.name = {INT8: "w8a16", INT4: "w4a16"}[matrix.format] if weight_only else matrix.format.name.lower()
        self.bias = None
        if bias is not None:
            self.bias = torch.zeros(matrix.padded_out_size)
            self.bias[matrix.places()] = bias
        self.plain_bias = torch.zeros(matrix.out_size) if bias is None else bias

    def kernel(
        self,
        isa: str,
        begin: int = 0,
        end: int | None = None,
        *,
        num_threads: int = 2,
        epilogue: Epilogue = Epilogue.STORE,
        out: Tensor | None = None,
    ) -> Tensor:
        """Rows ``begin ... end - 1`` by the kernel."""
        end = len(self.x) if end is None else end
        if out is None:
            out = torch.full((end - begin, self.matrix.out_size), float("nan"))
        args = LinearArgs(weight=self.matrix.record(), out=out.data_ptr(), epilogue=epilogue, rows=0)
        args.x = self.x[begin:end].data_ptr()
        if self.quantized is not None:
            args.quantized = self.quantized.record(begin)
        if self.bias is not None:
            args.bias = self.bias.data_ptr()
        run(pool(isa, num_threads), f"linear_{self.name}", args, token_ids=end - begin)
        return out

    def exact(self) -> Tensor:
        """All rows in float64, from the values that weights and inputs are stored as."""
        x = self.x.double() if self.quantized is None else self.quantized.dequantized()
        return x @ self.matrix.dequantize().double().T + self.plain_bias.double()


@each_isa
@each_format
@pytest.mark.parametrize(("out_size", "num_rows"), [(64, 1), (136, 5), (136, 16), (200, 97), (33, 200)])
def test_result(isa: str, format: WeightFormat, group: int, out_size: int, num_rows: int) -> None:
    layer = Linear(packed(format, group, out_size), random(num_rows, width_of(group), seed=1), random(out_size, seed=2))
    torch.testing.assert_close(layer.kernel(isa).double(), layer.exact(), rtol=1e-5, atol=1e-5)


@each_isa
@pytest.mark.parametrize(("format", "group"), FORMATS[1:])
def test_weight_only_is_the_bf16_layer_with_these_weights(isa: str, format: WeightFormat, group: int) -> None:
    """Bit for bit, in any company and on any threads."""
    matrix, x, bias = packed(format, group, 136), random(150, width_of(group), seed=1), random(136, seed=2)
    layer = Linear(matrix, x, bias, weight_only=True)
    unpacked = PackedMatrix.allocate(BF16, 136, width_of(group))
    unpacked.write_rows(0, matrix.dequantize())
    wanted = Linear(unpacked, x, bias).kernel(isa)
    torch.testing.assert_close(layer.kernel(isa), wanted, rtol=0, atol=0)
    for begin, count, num_threads in ((0, 1, 1), (7, 6, 2), (3, 7, 3), (20, 97, 2)):
        found = layer.kernel(isa, begin, begin + count, num_threads=num_threads)
        assert torch.equal(found, wanted[begin : begin + count])


@each_isa
@each_format
def test_adds_to_the_residual(isa: str, format: WeightFormat, group: int) -> None:
    layer = Linear(packed(format, group, 136), random(7, width_of(group), seed=1))
    before = random(7, 136, seed=3)
    after = layer.kernel(isa, epilogue=Epilogue.ADD, out=before.clone())
    torch.testing.assert_close(after.double(), before.double() + layer.exact(), rtol=1e-5, atol=1e-5)


@each_isa
@each_format
@pytest.mark.parametrize("width", [32, 40, 96])
def test_swiglu(isa: str, format: WeightFormat, group: int, width: int) -> None:
    bias = random(2 * width, seed=2)
    layer = Linear(packed(format, group, 2 * width, gated=True), random(9, width_of(group), seed=1), bias)
    out = torch.zeros(9, width, dtype=torch.bfloat16)
    layer.kernel(isa, epilogue=Epilogue.SWIGLU, out=out)
    gate, up = layer.exact().split(width, dim=1)
    torch.testing.assert_close(out.double(), torch.nn.functional.silu(gate) * up, rtol=2**-8, atol=1e-5)


@each_isa
@each_format
def test_a_row_is_the_same_in_any_company_and_on_any_threads(isa: str, format: WeightFormat, group: int) -> None:
    layer = Linear(packed(format, group, 136), random(200, width_of(group), seed=1))
    together = layer.kernel(isa, num_threads=1)
    for num_threads in (2, 3):
        assert torch.equal(layer.kernel(isa, num_threads=num_threads), together)
    for count in (*range(1, 41), 97):
        begin = 150 - count
        assert torch.equal(layer.kernel(isa, begin, begin + count), together[begin : begin + count]), count


@each_isa
@each_format
def test_what_is_not_finite_stays_in_its_row(isa: str, format: WeightFormat, group: int) -> None:
    x = random(20, width_of(group), seed=1)
    clean = Linear(packed(format, group, 136), x).kernel(isa)
    x[13, 7], x[4, 300] = float("nan"), float("inf")
    out = Linear(packed(format, group, 136), x).kernel(isa)
    spoilt = torch.tensor([4, 13])
    assert not out[spoilt].isfinite().any()
    healthy = torch.ones(20, dtype=torch.bool)
    healthy[spoilt] = False
    assert torch.equal(out[healthy], clean[healthy])


@each_format
def test_pieces_may_be_written_in_any_order_and_size(format: WeightFormat, group: int) -> None:
    rows = random(200, width_of(group))
    for gated in (False, True):
        whole = PackedMatrix.allocate(format, 200, width_of(group), group, gated=gated)
        whole.write_rows(0, rows)
        pieces = PackedMatrix.allocate(format, 200, width_of(group), group, gated=gated)
        for begin, end in ((90, 200), (0, 7), (7, 90)):
            pieces.write_rows(begin, rows[begin:end])
        assert (pieces.data == whole.data).all()
        assert (pieces.scales == whole.scales).all()
        assert sorted(whole.places().tolist())[-1] < whole.padded_out_size
        assert len(set(whole.places().tolist())) == 200


@each_format
def test_what_is_stored(format: WeightFormat, group: int) -> None:
    rows = random(70, width_of(group)).bfloat16()
    matrix = PackedMatrix.allocate(format, 70, width_of(group), group)
    matrix.write_rows(0, rows)
    stored = matrix.dequantize()
    if format is BF16:
        assert torch.equal(stored, rows.float())
        return
    # Half a step in 8 bits. In 4 bits a weight like the extreme, of the other sign, is clipped by up to 1.8.
    grouped = rows.float().unflatten(1, (-1, group))
    step = grouped.abs().amax(2, keepdim=True) / (127 if format is INT8 else 8)
    allowed = step * (0.51 if format is INT8 else 1.8)
    assert ((stored.unflatten(1, (-1, group)) - grouped).abs() <= allowed).all()


def test_tiny_weights_keep_their_precision_in_8_bits() -> None:
    """Their scales are subnormal in float16; rounded up, they clip nothing."""
    rows = random(64, 128) * 1e-4
    matrix = PackedMatrix.allocate(INT8, 64, 128, 128)
    matrix.write_rows(0, rows)
    top = rows.abs().amax(1, keepdim=True)
    assert ((matrix.dequantize() - rows).abs() <= top / 127).all()


def test_four_bits_fit_better_than_the_plain_scale() -> None:
    rows = random(64, 1280)
    matrix = PackedMatrix.allocate(INT4, 64, 1280, 128)
    matrix.write_rows(0, rows)
    grouped = rows.unflatten(1, (-1, 128))
    scale = grouped.abs().amax(2, keepdim=True) / 7
    plain = ((grouped / scale).round().clamp(-8, 7) * scale - grouped).square().mean()
    assert (matrix.dequantize() - rows).square().mean() < 0.85 * plain


def test_zeros_stay_zeros_and_padding_is_silent() -> None:
    for format, group in FORMATS:
        matrix = PackedMatrix.allocate(format, 3, width_of(group), group)
        matrix.write_rows(0, torch.zeros(3, width_of(group)))
        assert not matrix.dequantize().any()
        layer = Linear(matrix, random(2, width_of(group)))
        beyond = torch.full((2 * 3 + PANEL,), 7.0)
        layer.kernel(BEST, out=beyond)
        assert not beyond[:6].any()
        assert (beyond[6:] == 7.0).all()


def test_nothing_to_do() -> None:
    layer = Linear(packed(BF16, 0, 64), random(0, width_of(0)))
    assert layer.kernel(BEST).shape == (0, 64)


@pytest.mark.parametrize(
    ("format", "in_size", "group", "message"),
    [
        (BF16, 129, 0, "layers.3.mlp.down_proj: its width, 129, is odd"),
        (
            INT8,
            320,
            128,
            "layers.3.mlp.down_proj: its width, 320, is not a multiple of the group, 128: use a group of 64",
        ),
        (INT4, 100, 32, "layers.3.mlp.down_proj: its width, 100, is not a multiple of the group, 32: use bf16"),
        (INT4, 1024, 48, "the group must be a multiple of 32 up to 256, not 48"),
        (INT4, 1024, 512, "the group must be a multiple of 32 up to 256, not 512"),
    ],
)
def test_refusals(format: WeightFormat, in_size: int, group: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PackedMatrix.allocate(format, 64, in_size, group, name="layers.3.mlp.down_proj")
