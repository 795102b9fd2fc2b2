"""The kernels of a layer of experts against the reference, and their promise: a token's bits are its own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.numeric.cpu_support import QuantizedRows, each_isa, pool, run
from tokenmill.core.model_config import MAX_EXPERTS
from tokenmill.core.precision import Precision
from tokenmill.kernels import ops
from tokenmill.kernels.cpu.build import SOURCES
from tokenmill.kernels.cpu.isa import available_isas
from tokenmill.kernels.cpu.records import (
    CombineArgs,
    Epilogue,
    ExpertsArgs,
    LinearArgs,
    Quantized,
    RouteArgs,
    Routing,
    Rows,
)
from tokenmill.models.quantization.packed_experts import PackedExperts, PackedStack

HIDDEN, INNER, EXPERTS, ACTIVE = 136, 96, 10, 3
FORMS = {
    "bf16": Precision("fast", "bf16", "bf16", "bf16"),
    "int8": Precision("fast", "int8", "int8", "bf16", group_size=32),
    "int4": Precision("fast", "int4", "int4", "bf16", group_size=32),
    "w8a16": Precision("fast", "int8", "int8", "bf16", group_size=32, weight_only=True),
    "w4a16": Precision("fast", "int4", "int4", "bf16", group_size=32, weight_only=True),
}
BEST = available_isas()[0].name


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Routed:
    """What ``route`` makes of some logits and, as an input, ``x`` in bf16 or (with ``group``) quantised."""

    def __init__(
        self,
        isa: str,
        logits: Tensor,
        x: Tensor,
        *,
        group: int = 0,
        num_active: int = ACTIVE,
        normalize: bool = True,
        num_threads: int = 2,
    ) -> None:
        tokens, experts = logits.shape
        rows = tokens * num_active
        self.ids, self.places = (torch.full((tokens, num_active), -1, dtype=torch.int32) for _ in range(2))
        self.weights = torch.full((tokens, num_active), float("nan"))
        self.count = torch.full((1,), -1, dtype=torch.int32)
        self.experts, self.begins = (torch.full((experts + 1,), -1, dtype=torch.int32) for _ in range(2))
        arrays = (self.ids, self.weights, self.places, self.count, self.experts, self.begins)
        self.routing = Routing(*(array.data_ptr() for array in arrays), num_active)
        self.x = torch.zeros(rows, x.shape[1], dtype=torch.bfloat16)
        self.values = torch.zeros(rows, x.shape[1], dtype=torch.int8)
        groups = x.shape[1] // group if group else 0
        self.scales, self.sums = torch.zeros(rows, groups), torch.zeros(rows, groups, dtype=torch.int32)
        self.quantized = Quantized(self.values.data_ptr(), self.scales.data_ptr(), self.sums.data_ptr())
        given, inputs = QuantizedRows(x, group) if group else None, x.bfloat16().contiguous()
        args = RouteArgs(
            logits.data_ptr(), self.routing, inputs.data_ptr(), given.record() if given else Quantized(),
            self.x.data_ptr(), self.quantized, experts, x.shape[1], group, normalize,
        )  # fmt: skip
        run(pool(isa, num_threads), "route", args, token_ids=tokens)


@each_isa
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize(("num_experts", "num_active"), [(1, 1), (10, 3), (16, 16), (128, 8)])
def test_route(isa: str, num_experts: int, num_active: int, normalize: bool) -> None:
    logits, x = normal(37, num_experts) * 3, normal(37, 64, seed=1)
    found = Routed(isa, logits, x, num_active=num_active, normalize=normalize)
    ids, weights = ops.route(logits, num_active, normalize=normalize)
    assert torch.equal(found.ids, ids)
    torch.testing.assert_close(found.weights, weights, rtol=1e-5, atol=1e-7)
    active = found.count.item()
    assert found.experts[:active].tolist() == sorted(set(ids.flatten().tolist()))
    assert found.begins[active] == 37 * num_active
    for at in range(active):
        rows = range(found.begins[at], found.begins[at + 1])
        tokens = [token for token in range(37) if found.experts[at] in ids[token]]
        assert [(found.places == row).any(1).nonzero().item() for row in rows] == tokens, "in the tokens' order"
    assert torch.equal(found.x[found.places.long()], x.bfloat16()[:, None].expand(-1, num_active, -1))


@each_isa
def test_route_among_equals_and_not_finite(isa: str) -> None:
    logits = torch.tensor([[1.0, 2.0, 2.0, 2.0], [0.0, 0.0, 0.0, 0.0], [float("nan")] * 4, [1.0, 3.0, 2.0, 0.0]])
    found = Routed(isa, logits, normal(4, 64), num_active=2)
    assert found.ids[[0, 1, 3]].tolist() == [[1, 2], [0, 1], [1, 2]]
    assert found.weights[2].isnan().all() and found.weights[[0, 1, 3]].isfinite().all()


def test_route_copies_quantised_rows_whole() -> None:
    x = normal(11, 96, seed=1)
    found = Routed(BEST, normal(11, EXPERTS), x, group=32)
    given = QuantizedRows(x, 32)
    for rank in range(ACTIVE):
        places = found.places[:, rank].long()
        assert torch.equal(found.values[places], given.values) and torch.equal(found.scales[places], given.scales)
    sums = found.values.int().unflatten(1, (3, -1)).sum(2)
    assert torch.equal(found.sums, sums.int())


def test_the_kernels_take_as_many_experts_as_a_configuration_may_have() -> None:
    assert f"kMaxExperts = {MAX_EXPERTS};" in (SOURCES / "kernels.h").read_text()


# ---- products --------------------------------------------------------------------------------------------


def packed(form: str, hidden: int = 160, inner: int = INNER) -> PackedExperts:
    precision = FORMS[form]
    made = PackedExperts(precision.weights, precision)
    made.create(EXPERTS, hidden, inner, dtype=torch.float32, device=torch.device("cpu"))
    for expert in range(EXPERTS):
        for seed, piece in enumerate(("gate", "up", "down")):
            destination = made.destinations(expert, piece)["weight"]  # type: ignore[arg-type]
            destination.take(normal(*destination.shape, seed=100 * expert + seed) / 12)
    return made


def product(isa: str, made: PackedExperts, stack: PackedStack, routed: Routed, swiglu: bool, threads: int) -> Tensor:
    """All rows, in the order of places."""
    width = stack.out_size // 2 if swiglu else stack.out_size
    out = torch.full((len(routed.x), width), float("nan"), dtype=torch.bfloat16 if swiglu else torch.float32)
    epilogue = Epilogue.SWIGLU if swiglu else Epilogue.STORE
    linear = LinearArgs(
        stack.record(), None, routed.x.data_ptr(), routed.quantized, out.data_ptr(), epilogue, Rows.TOKENS
    )
    run(pool(isa, threads), made.kernel, ExpertsArgs(linear, routed.routing), token_ids=len(routed.ids))
    return out


def by_token(isa: str, made: PackedExperts, logits: Tensor, x: Tensor, swiglu: bool, threads: int = 2) -> Tensor:
    """``[T, k, width]``: what each of a token's experts gives."""
    stack = made.gate_up if swiglu else made.down
    routed = Routed(isa, logits, x, group=stack.input_group, num_threads=threads)
    return product(isa, made, stack, routed, swiglu, threads)[routed.places.long()]


@each_isa
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("num_tokens", [1, 7, 120])
def test_products(isa: str, form: str, num_tokens: int) -> None:
    """120 tokens among 10 experts, of which one takes nearly all: several blocks of rows."""
    made, logits = packed(form), normal(num_tokens, EXPERTS, seed=5)
    logits[: num_tokens * 9 // 10, 6] += 5.0
    ids = ops.route(logits, ACTIVE, normalize=True)[0].long()
    for swiglu, stack in ((True, made.gate_up), (False, made.down)):
        x = normal(num_tokens, stack.in_size, seed=7)
        exact = QuantizedRows(x, stack.group).dequantized() if stack.input_group else x.bfloat16().double()
        weights = stack.dequantize()
        if stack.group and not stack.input_group:
            weights = weights.bfloat16()  # weight-only kernels compute what a bf16 layer with these weights would
        weights = weights.double()
        wanted = torch.stack([weights[ids[t]] @ exact[t] for t in range(num_tokens)])
        found = by_token(isa, made, logits, x, swiglu)
        if swiglu:
            gate, up = wanted.chunk(2, -1)
            wanted = torch.nn.functional.silu(gate) * up
        tolerance = 2**-8 if swiglu else 1e-5
        torch.testing.assert_close(found.double(), wanted, rtol=tolerance, atol=1e-5)


@each_isa
@pytest.mark.parametrize("form", FORMS)
def test_a_token_is_the_same_in_any_company_and_on_any_threads(isa: str, form: str) -> None:
    made, logits = packed(form), normal(150, EXPERTS, seed=5)
    logits[:, 2] += 2.0
    for swiglu, stack in ((True, made.gate_up), (False, made.down)):
        x = normal(150, stack.in_size, seed=7)
        together = by_token(isa, made, logits, x, swiglu, 1)
        for begin, count, threads in ((0, 150, 3), (0, 1, 1), (149, 1, 2), (3, 2, 2), (20, 7, 2), (11, 100, 2)):
            rows = slice(begin, begin + count)
            assert torch.equal(by_token(isa, made, logits[rows], x[rows], swiglu, threads), together[rows])


@each_isa
@pytest.mark.parametrize("size", [HIDDEN, 5, 64])
def test_combine_adds_in_the_order_of_ranks(isa: str, size: int) -> None:
    routed = Routed(isa, normal(30, EXPERTS), normal(30, 64))
    rows, before = normal(30 * ACTIVE, size, seed=1), normal(30, size, seed=2)
    after = before.clone()
    run(pool(isa), "combine", CombineArgs(rows.data_ptr(), routed.routing, after.data_ptr(), size), token_ids=30)
    weighted = rows[routed.places.long()].double() * routed.weights.double().unsqueeze(2)
    torch.testing.assert_close(after.double(), before.double() + weighted.sum(1), rtol=1e-5, atol=1e-5)
    assert torch.equal(rows, normal(30 * ACTIVE, size, seed=1))


def test_experts_that_nobody_was_sent_to_are_not_read() -> None:
    """Their weights may be anything: here, what is not a number."""
    made, logits, x = packed("bf16"), normal(3, EXPERTS, seed=5), normal(3, 160, seed=7)
    clean = by_token(BEST, made, logits, x, swiglu=True)
    chosen = set(ops.route(logits, ACTIVE, normalize=True)[0].flatten().tolist())
    for expert in set(range(EXPERTS)) - chosen:
        made.gate_up.matrices[expert].data[:] = 0xFF
    assert torch.equal(by_token(BEST, made, logits, x, swiglu=True), clean)
    made.gate_up.matrices[min(chosen)].data[:] = 0xFF
    assert by_token(BEST, made, logits, x, swiglu=True).isnan().any()
