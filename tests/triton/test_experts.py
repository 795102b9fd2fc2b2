"""The mixture of experts against the reference: choice, sorting, products, sums."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="needs triton: pip install 'tokenmill[gpu]'")

from tests.triton.test_linear import draw, make
from tokenmill.kernels.reference import experts as reference
from tokenmill.kernels.triton.experts import ExpertBuffers, Weight, experts, route

EXPERTS, ACTIVE, HIDDEN, INNER = 10, 3, 96, 64


def stack(form: str, width: int, in_size: int, device: torch.device, seed: int) -> tuple[Weight, Tensor, torch.dtype]:
    weight, plain, dtype = make(form, draw(EXPERTS * width, in_size, device=device, seed=seed) / 8, 32)
    if isinstance(weight, Tensor):
        weight = weight.view(EXPERTS, width, in_size)
    return weight, plain.view(EXPERTS, width, in_size), dtype


def choose(num_tokens: int, device: torch.device) -> tuple[Tensor, Tensor]:
    logits = draw(num_tokens, EXPERTS, device=device, seed=5)
    return reference.route(logits, ACTIVE, normalize=True)


def buffers(num_tokens: int, dtype: torch.dtype, device: torch.device, form: str) -> ExpertBuffers:
    return ExpertBuffers.allocate(num_tokens, ACTIVE, EXPERTS, HIDDEN, INNER, dtype, device, fp8=form == "fp8")


@pytest.mark.parametrize("normalize", [True, False])
def test_routing(normalize: bool, device: torch.device) -> None:
    logits = draw(6, EXPERTS, device=device)
    logits[1, 7] = logits[1, 2] = 5.0  # equals: the lowest id
    logits[2] = 0.0
    ids, weights = torch.empty(6, ACTIVE, dtype=torch.int32, device=device), torch.empty(6, ACTIVE, device=device)
    route(logits, ids, weights, normalize=normalize)
    expected_ids, expected = reference.route(logits, ACTIVE, normalize=normalize)
    assert torch.equal(ids, expected_ids)
    assert (weights - expected).abs().max() < 1e-6


def test_routing_of_what_is_not_finite_stays_among_the_experts(device: torch.device) -> None:
    logits = torch.full((3, EXPERTS), torch.nan, device=device)
    logits[1] = torch.inf
    logits[2, 4] = -torch.inf
    ids, weights = torch.empty(3, ACTIVE, dtype=torch.int32, device=device), torch.empty(3, ACTIVE, device=device)
    route(logits, ids, weights, normalize=True)
    assert ids.tolist() == [[0, 1, 2]] * 3


@pytest.mark.parametrize("form", ["float32", "bf16", "int8", "int4", "fp8"])
@pytest.mark.parametrize("num_tokens", [2, 40])
def test_sum_of_experts(form: str, num_tokens: int, device: torch.device) -> None:
    gate_up, plain_gate_up, dtype = stack(form, 2 * INNER, HIDDEN, device, 1)
    down, plain_down, _ = stack(form, HIDDEN, INNER, device, 2)
    ids, weights = choose(num_tokens, device)
    x = draw(num_tokens, HIDDEN, device=device, seed=3).to(dtype)
    expected = reference.experts(x.float(), ids, weights, plain_gate_up, plain_down)
    out = torch.ones(num_tokens, HIDDEN, device=device)
    space = buffers(num_tokens, dtype, device, form)
    experts(x, ids, weights, gate_up, down, out, buffers=space, accumulate=True)
    bound = {"float32": 1e-5, "fp8": 0.08}.get(form, 0.01)
    assert (out - 1 - expected).norm() < bound * expected.norm()


def test_many_tokens_fill_tall_tiles(device: torch.device) -> None:
    gate_up, plain_gate_up, _ = stack("float32", 2 * INNER, HIDDEN, device, 1)
    down, plain_down, _ = stack("float32", HIDDEN, INNER, device, 2)
    ids, weights = choose(150, device)
    ids[:, 1:] = torch.where(ids[:, 1:] == 4, 5, ids[:, 1:])  # an expert that few want
    x = draw(150, HIDDEN, device=device, seed=3)
    out = torch.empty(150, HIDDEN, device=device)
    experts(x, ids, weights, gate_up, down, out, buffers=buffers(150, x.dtype, device, "float32"))
    expected = reference.experts(x, ids, weights, plain_gate_up, plain_down)
    assert (out - expected).norm() < 1e-5 * expected.norm()


@pytest.mark.parametrize("form", ["bf16", "int4"])
def test_bits_of_a_token_do_not_depend_on_company(form: str, device: torch.device) -> None:
    gate_up, _, dtype = stack(form, 2 * INNER, HIDDEN, device, 1)
    down, _, _ = stack(form, HIDDEN, INNER, device, 2)
    ids, weights = choose(24, device)
    x = draw(24, HIDDEN, device=device, seed=3).to(dtype)
    space = buffers(24, dtype, device, form)
    together = torch.empty(24, HIDDEN, dtype=dtype, device=device)
    experts(x, ids, weights, gate_up, down, together, buffers=space)
    for first, count in ((0, 1), (15, 9)):
        part, out = slice(first, first + count), torch.empty(count, HIDDEN, dtype=dtype, device=device)
        experts(x[part], ids[part], weights[part], gate_up, down, out, buffers=space)
        assert torch.equal(out, together[part])


def test_rows_beyond_the_tokens_are_left_alone(device: torch.device) -> None:
    gate_up, _, _ = stack("float32", 2 * INNER, HIDDEN, device, 1)
    down, _, _ = stack("float32", HIDDEN, INNER, device, 2)
    ids, weights = choose(8, device)
    x = draw(8, HIDDEN, device=device, seed=3)
    space, expected = buffers(8, x.dtype, device, "float32"), torch.empty(8, HIDDEN, device=device)
    experts(x, ids, weights, gate_up, down, expected, buffers=space)
    ids[5:], x[5:] = 10**6, torch.nan  # what padding may hold
    out = torch.full((8, HIDDEN), 7.0, device=device)
    count = torch.tensor([5], dtype=torch.int32, device=device)
    experts(x, ids, weights, gate_up, down, out, buffers=space, num_tokens=count)
    assert torch.equal(out[:5], expected[:5])
    assert (out[5:] == 7).all()


def test_everyone_to_the_same_expert(device: torch.device) -> None:
    gate_up, plain_gate_up, _ = stack("float32", 2 * INNER, HIDDEN, device, 1)
    down, plain_down, _ = stack("float32", HIDDEN, INNER, device, 2)
    ids = torch.tensor([[9, 0, 3]], dtype=torch.int32, device=device).repeat(20, 1)
    weights, x = draw(20, ACTIVE, device=device, seed=4), draw(20, HIDDEN, device=device, seed=3)
    out = torch.empty(20, HIDDEN, device=device)
    experts(x, ids, weights, gate_up, down, out, buffers=buffers(32, x.dtype, device, "float32"))
    expected = reference.experts(x, ids, weights, plain_gate_up, plain_down)
    assert (out - expected).norm() < 1e-5 * expected.norm()
