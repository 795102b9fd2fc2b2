"""The KV pool of a GPU: copies of blocks, poison, and float8 codes."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="needs triton: pip install 'tokenmill[gpu]'")

import triton
import triton.language as tl

from tokenmill.core.model_config import ModelConfig, RopeSpec
from tokenmill.kernels.triton.device import has_native_e4m3
from tokenmill.kernels.triton.fp8 import decode_e4m3, encode_e4m3
from tokenmill.kernels.triton.kv import MAX_COPIES, DeviceKV, KVForm

FORMS: tuple[KVForm, ...] = ("bf16", "fp8", "float32")


def pool(
    form: KVForm,
    device: torch.device,
    *,
    num_layers: int,
    num_blocks: int,
    num_kv_heads: int,
    block_size: int,
    head_dim: int,
) -> DeviceKV:
    """A pool of random finite numbers."""
    config = ModelConfig(
        architecture="LlamaForCausalLM",
        model_type="llama",
        vocab_size=32,
        hidden_size=num_kv_heads * head_dim,
        num_layers=num_layers,
        num_heads=num_kv_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        intermediate_size=32,
        max_context=64,
        rope=RopeSpec(),
        windows=(None,) * num_layers,
    )
    kv = DeviceKV.allocate(config, num_blocks, block_size, form=form, device=device)
    generator = torch.Generator().manual_seed(1)
    kv.pool.copy_(torch.randn(kv.pool.shape, generator=generator))
    if kv.scales is not None:
        kv.scales.copy_(torch.rand(kv.scales.shape, generator=generator))
    return kv


@pytest.mark.parametrize("form", FORMS)
def test_copies_read_every_source_before_any_block_is_written(form: KVForm, device: torch.device) -> None:
    kv = pool(form, device, num_layers=2, num_blocks=9, num_kv_heads=3, block_size=4, head_dim=20)
    pairs = [(1, 2), (2, 3), (3, 1), (-1, -1), (7, 0), (7, 8)]
    sources, destinations = zip(*(pair for pair in pairs if pair[0] >= 0), strict=True)
    parts = [kv.pool.view(torch.uint8)] + ([] if kv.scales is None else [kv.scales])
    expected = [part.clone() for part in parts]
    for copy, part in zip(expected, parts, strict=True):
        copy[:, :, list(destinations)] = part[:, :, list(sources)]
    kv.copy_blocks(torch.tensor(pairs, dtype=torch.int32, device=device))
    for copy, part in zip(expected, parts, strict=True):
        assert torch.equal(part, copy)


def test_many_copies(device: torch.device) -> None:
    kv = pool("bf16", device, num_layers=1, num_blocks=700, num_kv_heads=1, block_size=2, head_dim=16)
    order = torch.randperm(700, generator=torch.Generator().manual_seed(0)).to(device)
    expected = kv.pool[:, :, order]
    kv.copy_blocks(torch.stack((order, torch.arange(700, device=device)), dim=1).int())
    assert torch.equal(kv.pool, expected)
    kv.copy_blocks(torch.empty(0, 2, dtype=torch.int32, device=device))
    assert torch.equal(kv.pool, expected)
    with pytest.raises(ValueError, match=f"at most {MAX_COPIES}"):
        kv.copy_blocks(torch.zeros(MAX_COPIES + 1, 2, dtype=torch.int32, device=device))


@pytest.mark.parametrize("form", FORMS)
def test_poison_fills_blocks_with_nan(form: KVForm, device: torch.device) -> None:
    kv = pool(form, device, num_layers=2, num_blocks=4, num_kv_heads=2, block_size=2, head_dim=16)
    kv.poison([1, 3])
    for layer in kv.layers:
        for part in layer.read(torch.arange(8, device=device)):
            nan = part.isnan()
            assert bool(nan[[2, 3, 6, 7]].all())
            assert not bool(nan[[0, 1, 4, 5]].any())


def test_the_pool_counts_its_bytes(device: torch.device) -> None:
    shape = {"num_layers": 3, "num_blocks": 5, "num_kv_heads": 2, "block_size": 4, "head_dim": 16}
    lines = 2 * 3 * 5 * 2 * 4
    for form, per_line in (("bf16", 32), ("fp8", 16 + 4), ("float32", 64)):
        kv = pool(form, device, **shape)
        assert (kv.num_bytes, kv.num_blocks, kv.block_size, len(kv.layers)) == (lines * per_line, 5, 4, 3)


def test_a_form_unknown_or_not_of_words_is_refused(device: torch.device) -> None:
    shape = {"num_layers": 1, "num_blocks": 1, "num_kv_heads": 1, "block_size": 1, "head_dim": 2}
    with pytest.raises(ValueError, match="form 'int3'"):
        pool("int3", device, **shape)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="whole words"):
        pool("fp8", device, **shape)


@triton.jit
def round_trip(x, codes, back, SIZE: tl.constexpr, NATIVE: tl.constexpr):
    at = tl.arange(0, SIZE)
    tl.store(codes + at, encode_e4m3(tl.load(x + at), NATIVE))
    tl.store(back + at, decode_e4m3(tl.load(codes + at), NATIVE))


@pytest.mark.parametrize("native", [False, pytest.param(True, marks=pytest.mark.skipif("not native_here()"))])
def test_e4m3_rounds_as_torch_does(native: bool, device: torch.device) -> None:
    size = 2**14
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(size, generator=generator) * torch.randn(size, generator=generator).mul(4).exp()
    every = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    between = (every[1:] + every[:-1]) / 2  # ties
    edges = torch.tensor([torch.inf, -torch.inf, torch.nan, 448.0, 464.0, 465.0, 2**-6, 2**-10, 1.5 * 2**-9, -0.0, 0.0])
    special = torch.cat((every, between, edges))
    x[: len(special)] = special
    codes, back = torch.empty(size, dtype=torch.uint8, device=device), torch.empty(size, device=device)
    round_trip[(1,)](x.to(device), codes, back, SIZE=size, NATIVE=native)
    expected = x.clamp(-448, 448).to(torch.float8_e4m3fn)
    numbers = ~x.isnan()
    assert torch.equal(codes.cpu()[numbers], expected.view(torch.uint8)[numbers])
    assert torch.equal(back.cpu().nan_to_num(nan=1e9), expected.float().nan_to_num(nan=1e9))


def native_here() -> bool:
    return has_native_e4m3()
