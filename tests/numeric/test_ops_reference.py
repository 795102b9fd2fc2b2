"""Each operation against PyTorch or Hugging Face, and its promise: a row's bits depend on the row alone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F

from tests.numeric.ops_support import depends_on_company
from tokenmill.core.errors import NotSupported
from tokenmill.core.model_config import ModelConfig, RopeSpec
from tokenmill.kernels import ops
from tokenmill.kernels.kv import KVTensors
from tokenmill.kernels.reference.elementwise import exp
from tokenmill.kernels.reference.rope import inverse_frequencies, rotary_table

SIZES = (1, 2, 3, 4, 5, 6, 7, 8, 12, 13, 16, 17, 31, 33, 64)
SHAPES = [(64, 64), (128, 64), (96, 36), (64, 520), (256, 512), (704, 256), (256, 4096), (1024, 768), (100, 521)]


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- linear -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("in_size", "out_size"), SHAPES)
def test_linear(in_size: int, out_size: int) -> None:
    x, weight, bias = normal(19, in_size), normal(out_size, in_size, seed=1), normal(out_size, seed=2)
    exact = F.linear(x.double(), weight.double(), bias.double())
    assert (ops.linear(x, weight, bias) - exact).abs().max() < 1e-4
    assert ops.linear(x.bfloat16(), weight.bfloat16()).dtype == torch.bfloat16


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize(("in_size", "out_size"), SHAPES)
def test_linear_rows_stand_alone(in_size: int, out_size: int) -> None:
    weight = normal(out_size, in_size, seed=1)
    assert depends_on_company(lambda x: ops.linear(x, weight), normal(64, in_size), SIZES) == []


# --- elementwise ------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("threads")
def test_exp() -> None:
    x = normal(200_001) * 5
    whole = exp(x)
    assert ((whole.double() - x.double().exp()) / x.double().exp()).abs().max() < 3e-7
    for first, size in ((0, 1), (1, 1), (3, 63), (64, 64), (65, 1000), (17, 40_000), (1, 200_000)):
        assert torch.equal(exp(x[first : first + size]), whole[first : first + size]), (first, size)
    assert exp(torch.tensor([float("-inf"), 0.0])).tolist() == [0.0, 1.0]


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("size", [1, 36, 704, 3000])
def test_silu_mul(size: int) -> None:
    x = normal(64, 2 * size) * 5
    gate, up = x.chunk(2, dim=-1)
    assert torch.allclose(ops.silu_mul(x), F.silu(gate) * up, rtol=1e-6, atol=1e-30)
    assert depends_on_company(ops.silu_mul, x, SIZES) == []


def test_silu_mul_at_the_ends() -> None:
    """Gates whose exponential overflows give 0 and the gate itself, not NaN."""
    x = torch.tensor([[-200.0, 200.0, 1.0, 1.0]])
    assert ops.silu_mul(x).tolist() == [[0.0, 200.0]]


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("size", [16, 64, 576, 4096, 16384])
def test_rms_norm(size: int) -> None:
    x, weight = normal(64, size) * 3, normal(size, seed=1)
    theirs = F.rms_norm(x, (size,), weight, eps=1e-6)
    assert torch.allclose(ops.rms_norm(x, weight, 1e-6), theirs, rtol=1e-5, atol=1e-6)
    assert depends_on_company(lambda rows: ops.rms_norm(rows, weight, 1e-6), x, SIZES) == []


# --- rotary -----------------------------------------------------------------------------------------------

ROPES = {
    "default": RopeSpec(theta=500000.0),
    "linear": RopeSpec(theta=10000.0, kind="linear", factor=4.0),
    "llama3": RopeSpec(theta=500000.0, kind="llama3", factor=8.0, original_context=8192),
    "yarn": RopeSpec(theta=1e6, kind="yarn", factor=4.0, original_context=32768, attention_factor=1.1386294361119891),
}


@pytest.mark.parametrize("kind", ROPES)
def test_rotary_table_equals_huggingface(kind: str) -> None:
    transformers = pytest.importorskip("transformers")
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

    spec = ROPES[kind]
    parameters = {
        "rope_type": kind,
        "rope_theta": spec.theta,
        "factor": spec.factor,
        "low_freq_factor": spec.low_freq_factor,
        "high_freq_factor": spec.high_freq_factor,
        "original_max_position_embeddings": spec.original_context,
    }
    wanted = {"default": 2, "linear": 3, "llama3": 6}.get(kind)
    parameters = dict(list(parameters.items())[:wanted])
    if kind == "yarn":
        del parameters["low_freq_factor"], parameters["high_freq_factor"]
    config = transformers.LlamaConfig(
        head_dim=128, max_position_embeddings=131072, rope_parameters=parameters, num_attention_heads=32
    )
    theirs = LlamaRotaryEmbedding(config)
    assert torch.equal(inverse_frequencies(spec, 128), theirs.inv_freq)

    x = normal(1, 4, 3000, 128)
    cos, sin = theirs(x, torch.arange(3000).unsqueeze(0))
    rotated, _ = apply_rotary_pos_emb(x, x, cos, sin)
    ours = ops.rope(x[0].transpose(0, 1), *rotary_table(spec, 128, 3000))
    assert (ours.transpose(0, 1) - rotated[0]).abs().max() < 1e-5


@pytest.mark.usefixtures("threads")
def test_rope_rows_stand_alone() -> None:
    cos, sin = rotary_table(RopeSpec(), 48, 64)
    packed = torch.cat((normal(64, 3 * 48), cos, sin), dim=1)

    def rotate(rows: torch.Tensor) -> torch.Tensor:
        x, cos, sin = torch.split(rows, [144, 24, 24], dim=1)
        return ops.rope(x.reshape(-1, 3, 48), cos, sin)

    assert depends_on_company(rotate, packed, SIZES) == []


# --- cache ------------------------------------------------------------------------------------------------


def tiny_kv() -> KVTensors:
    config = ModelConfig.from_hf(
        {
            "architectures": ["LlamaForCausalLM"],
            "hidden_size": 8,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 8,
            "vocab_size": 8,
        }
    )
    return KVTensors.allocate(config, num_blocks=4, block_size=2)


def test_write_kv_touches_its_slots_alone() -> None:
    kv = tiny_kv()
    k, v = normal(3, 2, 4), normal(3, 2, 4, seed=1)
    slots = torch.tensor([5, 0, 3])
    ops.write_kv(k, v, kv.keys[0], kv.values[0], slots)
    assert torch.equal(kv.keys[0][slots], k)
    assert torch.equal(kv.values[0][slots], v)
    assert not kv.keys[0][[1, 2, 4, 6, 7]].any()
    assert not kv.keys[1].any()


def test_copy_blocks() -> None:
    kv = tiny_kv()
    for tensor in (*kv.keys, *kv.values):
        tensor.copy_(torch.arange(8.0).view(8, 1, 1).expand(8, 2, 4))
    ops.copy_blocks(kv, [(0, 3), (2, 0)])
    for tensor in (*kv.keys, *kv.values):
        assert tensor[:, 0, 0].tolist() == [4, 5, 2, 3, 4, 5, 0, 1]
    ops.copy_blocks(kv, [])


def test_kv_size() -> None:
    kv = tiny_kv()
    assert kv.num_blocks == 4
    assert kv.num_bytes == 2 * 2 * 8 * 2 * 4 * 4


# --- the table --------------------------------------------------------------------------------------------


def test_an_implementation_that_is_not_there_is_refused() -> None:
    with pytest.raises(NotSupported, match="no 'triton' implementation of silu_mul; there is: reference"):
        ops.silu_mul(normal(1, 4), implementation="triton")
    assert ops.implementations("attention") == ("reference",)
    assert torch.equal(ops.silu_mul(normal(1, 4), implementation="reference"), ops.silu_mul(normal(1, 4)))
