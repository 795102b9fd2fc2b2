"""Norm, gated activation, embedding, and the way of queries, keys and values to attention: against the reference."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="needs triton: pip install 'tokenmill[gpu]'")

from tokenmill.kernels.reference import elementwise, rope
from tokenmill.kernels.reference import rms_norm as reference_norm
from tokenmill.kernels.triton.embedding import embedding
from tokenmill.kernels.triton.kv import KVForm, LayerKV
from tokenmill.kernels.triton.rms_norm import rms_norm
from tokenmill.kernels.triton.rope_kv import rope_kv
from tokenmill.kernels.triton.swiglu import silu_mul

DTYPES = (torch.float32, torch.bfloat16)
UNTOUCHED = 7.0


def random(*shape: int, dtype: torch.dtype, device: torch.device, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype).to(device)


def assert_near(found: Tensor, expected: Tensor) -> None:
    """Within a last place of bf16, or of rounding in float32."""
    precise = found.dtype == torch.float32
    torch.testing.assert_close(
        found.float().cpu(), expected.float().cpu(), rtol=2e-6 if precise else 2**-7, atol=1e-6 if precise else 2**-9
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [64, 200, 1024, 4096])
def test_rms_norm(dtype: torch.dtype, width: int, device: torch.device) -> None:
    x = random(5, width, dtype=dtype, device=device)
    weight = random(width, dtype=dtype, device=device, seed=1)
    out = torch.full_like(x, UNTOUCHED)
    rms_norm(x, weight, 1e-5, out)
    assert_near(out, reference_norm.rms_norm(x.float().cpu(), weight.float().cpu(), 1e-5))


@pytest.mark.parametrize("dtype", DTYPES)
def test_rms_norm_adds_the_residual_and_skips_padding(dtype: torch.dtype, device: torch.device) -> None:
    x, residual = (random(6, 256, dtype=dtype, device=device, seed=seed) for seed in (0, 1))
    weight = random(256, dtype=dtype, device=device, seed=2)
    expected = (x + residual).cpu()
    before = residual.clone()
    out = torch.full_like(x, UNTOUCHED)
    rms_norm(x, weight, 1e-6, out, residual=residual, num_tokens=torch.tensor([4], dtype=torch.int32, device=device))
    assert_near(residual[:4], expected[:4])  # the interpreter cuts where a GPU rounds to bf16
    assert torch.equal(residual[4:], before[4:])
    assert_near(out[:4], reference_norm.rms_norm(residual[:4].float().cpu(), weight.float().cpu(), 1e-6))
    assert bool((out[4:] == UNTOUCHED).all())


def test_a_row_of_rms_norm_does_not_depend_on_the_others(device: torch.device) -> None:
    x, weight = random(9, 96, dtype=torch.float32, device=device), random(96, dtype=torch.float32, device=device)
    whole, alone = torch.empty_like(x), torch.empty_like(x[:1])
    rms_norm(x, weight, 1e-6, whole)
    for row in range(9):
        rms_norm(x[row : row + 1], weight, 1e-6, alone)
        assert torch.equal(alone[0], whole[row])


@pytest.mark.parametrize("dtype", DTYPES)
def test_silu_mul(dtype: torch.dtype, device: torch.device) -> None:
    gate_up = random(3, 2 * 1100, dtype=dtype, device=device) * 4
    gate_up[0, 0], gate_up[0, 1] = -100.0, 100.0  # where exp overflows float32, and where it vanishes
    out = torch.full((3, 1100), UNTOUCHED, dtype=dtype, device=device)
    silu_mul(gate_up, out, num_tokens=torch.tensor([2], dtype=torch.int32, device=device))
    assert_near(out[:2], elementwise.silu_mul(gate_up[:2].float().cpu()))
    assert bool((out[2:] == UNTOUCHED).all())


def test_embedding(device: torch.device) -> None:
    table = random(11, 1030, dtype=torch.bfloat16, device=device)
    ids = torch.tensor([3, 10, -1, 11, 0, 3], dtype=torch.int32, device=device)
    out = torch.full((6, 1030), UNTOUCHED, dtype=torch.bfloat16, device=device)
    embedding(ids, table, out, torch.tensor([5], dtype=torch.int32, device=device))
    assert torch.equal(out[[0, 1, 4]], table[[3, 10, 0]])
    assert bool((out[2:4] == 0).all()), "a token that the table lacks"
    assert bool((out[5] == UNTOUCHED).all())


def layer_of(num_kv_heads: int, head_dim: int, form: KVForm, device: torch.device) -> LayerKV:
    from tests.triton.test_kv import pool

    return pool(
        form, device, num_layers=1, num_blocks=6, num_kv_heads=num_kv_heads, block_size=4, head_dim=head_dim
    ).layer(0)


@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize(("num_heads", "num_kv_heads", "head_dim"), [(4, 2, 64), (14, 2, 32), (3, 1, 80), (16, 16, 16)])
def test_rope_kv(num_heads: int, num_kv_heads: int, head_dim: int, normed: bool, device: torch.device) -> None:
    qkv = random(5, (num_heads + 2 * num_kv_heads) * head_dim, dtype=torch.float32, device=device)
    positions = torch.tensor([3, 0, 17, 4, 9], dtype=torch.int32, device=device)
    slots = torch.tensor([23, 0, -1, 9, 10], device=device)
    angles = random(20, head_dim // 2, dtype=torch.float32, device=device, seed=1)
    cos_sin = torch.cat((angles.cos(), angles.sin()), dim=1)
    weights = [random(head_dim, dtype=torch.float32, device=device, seed=seed) if normed else None for seed in (2, 3)]
    layer = layer_of(num_kv_heads, head_dim, "float32", device)
    before = layer.keys.clone()
    q_out = torch.empty(5, num_heads, head_dim, device=device)
    rope_kv(
        qkv,
        positions,
        slots,
        cos_sin,
        layer,
        q_out,
        num_heads=num_heads,
        q_weight=weights[0],
        k_weight=weights[1],
        eps=1e-5,
    )

    heads = qkv.view(5, -1, head_dim)
    q, k, v = heads.split([num_heads, num_kv_heads, num_kv_heads], dim=1)
    if weights[0] is not None and weights[1] is not None:
        q, k = reference_norm.rms_norm(q, weights[0], 1e-5), reference_norm.rms_norm(k, weights[1], 1e-5)
    cos, sin = angles[positions.long()].cos(), angles[positions.long()].sin()
    assert_near(q_out, rope.rope(q, cos, sin))
    written = slots >= 0
    keys, values = layer.read(slots[written])
    assert_near(keys, rope.rope(k, cos, sin)[written])
    assert torch.equal(values, v[written])
    changed = (layer.keys != before).any(dim=3).transpose(1, 2).reshape(24, -1).any(dim=1)
    assert changed.nonzero()[:, 0].tolist() == sorted(slots[written].tolist()), "no other slot may be touched"


@pytest.mark.parametrize("form", ["bf16", "fp8"])
def test_rope_kv_rounds_once(form: KVForm, device: torch.device) -> None:
    num_heads, num_kv_heads, head_dim = 4, 2, 32
    qkv = random(3, 8 * head_dim, dtype=torch.bfloat16, device=device)
    qkv[1, 4 * head_dim] = torch.inf  # head 0 of token 1's keys
    qkv[2, 6 * head_dim :] = 0.0  # all values of token 2
    positions, slots = torch.tensor([1, 0, 2], dtype=torch.int32, device=device), torch.tensor([5, 6, 7], device=device)
    angles = random(3, head_dim // 2, dtype=torch.float32, device=device, seed=1)
    layer = layer_of(num_kv_heads, head_dim, form, device)
    q_out = torch.empty(3, num_heads, head_dim, dtype=torch.bfloat16, device=device)
    rope_kv(qkv, positions, slots, torch.cat((angles.cos(), angles.sin()), 1), layer, q_out, num_heads=num_heads)

    q, k, v = qkv.float().view(3, -1, head_dim).split([num_heads, num_kv_heads, num_kv_heads], dim=1)
    cos, sin = angles[positions.long()].cos(), angles[positions.long()].sin()
    assert_near(q_out, rope.rope(q, cos, sin))
    k = rope.rope(k, cos, sin)
    keys, values = layer.read(slots)
    if form == "bf16":
        assert_near(keys[[0, 2]].bfloat16(), k[[0, 2]])
        assert torch.equal(values, v)
        return
    assert bool(keys[1, 0].isnan().all()), "what is not finite must not hide"
    assert torch.equal(values[2], torch.zeros_like(values[2]))
    for found, expected in ((keys[[0, 2]], k[[0, 2]]), (keys[1, 1], k[1, 1]), (values[:2], v[:2])):
        peak = expected.abs().amax(dim=-1, keepdim=True)
        assert bool(((found - expected).abs() <= expected.abs() * 2**-4 + peak / 448 * 2**-9).all())
        assert bool((found.abs().amax(dim=-1, keepdim=True) - peak).abs().le(peak * 1e-6).all()), "the largest is exact"
