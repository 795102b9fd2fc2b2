"""Products with a layer's matrices, in every form, beside the vendor's library with the same matrix in bf16."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from tokenmill.bench.gpu.case import Case, blank, random, unit
from tokenmill.bench.gpu.place import Place
from tokenmill.bench.gpu.shapes import LLAMA_8B
from tokenmill.bench.gpu.timing import copies_for
from tokenmill.bench.gpu.unit import Context, Unit
from tokenmill.kernels.triton.linear import Weight, linear
from tokenmill.kernels.triton.quantize import Fp8Weight, PackedWeight

GROUP = 128
STD = 0.02
MATRICES = ("qkv", "out", "gate-up", "down")
FEW_ROWS = (1, 2, 4, 8, 16)
MORE_ROWS = (64, 256, 1024, 8192)
CHECKED_OUTPUTS = 256
LIBRARY = "bf16 of the library"

FORMS = {"int4": FEW_ROWS, "int8": (1, 8, 16), "fp8": (1, 16)}
"""Form → numbers of rows at which every matrix is measured."""
ARITHMETIC = {"bf16": "bf16", "int4": "bf16", "int8": "bf16", "fp8": "fp8"}


def units(place: Place) -> list[Unit]:
    """Every matrix of a layer with few rows, for the aim; the widest with more."""
    if place.toy:
        return [_unit(form, "out", rows) for form, rows in (("int4", 1), ("int8", 5), ("fp8", 3))] + [
            _unit("bf16", "out", 2, True)
        ]
    found = [_unit(form, name, rows) for form, counts in FORMS.items() for rows in counts for name in MATRICES]
    found += [_unit(form, "gate-up", rows) for form in FORMS for rows in MORE_ROWS]
    return found + [_unit("bf16", "gate-up", rows, True) for rows in (1, 16, 64, 256)]


def sizes(config: dict[str, int], name: str) -> tuple[int, int]:
    """(inputs, outputs) of a layer's matrix."""
    hidden, inner, head = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    q_size, kv_size = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    return {
        "qkv": (hidden, q_size + 2 * kv_size),
        "out": (q_size, hidden),
        "gate-up": (hidden, 2 * inner),
        "down": (inner, hidden),
    }[name]


def _unit(form: str, name: str, rows: int, invariant: bool = False) -> Unit:
    kernel = f"linear {form} {name}" + (" deterministic" if invariant else "")
    return unit(kernel, f"{rows} rows", partial(_case, form, name, rows, invariant))


def _case(form: str, name: str, rows: int, invariant: bool, context: Context) -> Case:
    in_size, out_size = sizes(context.shape(LLAMA_8B), name)
    mine = _kept(context, form, in_size, out_size)
    plain = _kept(context, "bf16", in_size, out_size)
    x, out, theirs = random(context, rows, in_size), blank(context, rows, out_size), blank(context, rows, out_size)
    num_bytes = weight_bytes(mine[0]) + x.nbytes + out.nbytes
    return Case(
        [partial(linear, x, weight, out, invariant=invariant) for weight in mine],
        num_bytes,
        2.0 * rows * in_size * out_size,
        ARITHMETIC[form],
        partial(_some_outputs, x, mine[0], out),
        {LIBRARY: [partial(torch.mm, x, weight.t(), out=theirs) for weight in plain]},  # type: ignore[union-attr]
        tolerance=5e-2 if form == "fp8" else 1e-2,  # activations are rounded to 8 bits too
    )


def _kept(context: Context, form: str, in_size: int, out_size: int) -> list[Weight]:
    """The same matrix in so many places that no cache holds them all; made once."""
    return context.keep(("matrix", form, in_size, out_size), lambda: _copies(context, form, in_size, out_size))  # type: ignore[no-any-return]


def _copies(context: Context, form: str, in_size: int, out_size: int) -> list[Weight]:
    values = random(context, out_size, in_size, std=STD)
    first = make_weight(form, values)
    others = copies_for(context.place, weight_bytes(first)) - 1
    return [first, *(make_weight(form, values) for _ in range(others))]


def make_weight(form: str, values: Tensor) -> Weight:
    """``values [N, K]`` in ``form``."""
    out_size, in_size = values.shape
    if form == "bf16":
        return values.clone()
    weight: PackedWeight | Fp8Weight
    if form == "fp8":
        weight = Fp8Weight.allocate(out_size, in_size, values.device)
    else:
        weight = PackedWeight.allocate(form, out_size, in_size, GROUP if in_size % GROUP == 0 else 32, values.device)
    weight.write_rows(0, values)
    return weight


def weight_bytes(weight: Weight) -> int:
    tensors = [weight] if isinstance(weight, Tensor) else weight.tensors()
    return sum(tensor.nbytes for tensor in tensors)


def _some_outputs(x: Tensor, weight: Weight, out: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs spread over the matrix, and the same from the matrix that is computed with."""
    whole: Callable[[], Tensor] = weight.float if isinstance(weight, Tensor) else weight.dequantize
    chosen = torch.linspace(0, out.shape[1] - 1, min(CHECKED_OUTPUTS, out.shape[1]), device=x.device).long()
    return out[:, chosen].float(), x.float() @ whole()[chosen].float().t()
