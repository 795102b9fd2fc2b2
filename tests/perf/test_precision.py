"""What is left open is resolved, what cannot be is refused by name, and the ledger foresees either to the byte."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.perf.test_memory import SMALL, model, plan
from tokenmill.core.engine_config import CacheConfig, EngineConfig, ModelSource, SchedulerConfig
from tokenmill.core.errors import ConfigError, DoesNotFit
from tokenmill.core.precision import Precision, resolve_precision
from tokenmill.perf.memory import kv_position_bytes, packed_bytes, plan_memory


def resolved(
    missing: str | None = None, config: Any = SMALL, block_size: int = 16, kv: str = "auto", **source: Any
) -> Precision:
    return resolve_precision(config, ModelSource(**source), CacheConfig(block_size=block_size, kv=kv), missing)  # type: ignore[arg-type]


def test_left_open_it_is_the_fastest_within_the_bound() -> None:
    assert resolved() == Precision("fast", "int8", "int8", "bf16")
    assert resolved(weights="bf16") == Precision("fast", "bf16", "bf16", "bf16")
    assert resolved(weights="int4") == Precision("fast", "int4", "int8", "bf16")
    assert resolved(weight_only=True) == Precision("fast", "int8", "int8", "bf16", weight_only=True)
    assert resolved(weights="int4", lm_head="int4", kv="int8") == Precision("fast", "int4", "int4", "int8")


def test_the_reference_is_chosen_by_name_or_by_its_precision() -> None:
    assert resolved(kernels="reference") == Precision("reference", "float32", "float32", "float32")
    assert resolved(dtype="bfloat16") == Precision("reference", "bfloat16", "bfloat16", "bfloat16")


@pytest.mark.parametrize(
    ("why", "given"),
    {
        "no compiler": {"missing": "no compiler"},
        "block_size 8": {"block_size": 8},
        "head_dim 24": {"config": replace(SMALL, head_dim=24)},
    }.items(),
)
def test_what_the_fast_kernels_cannot_do_falls_back_and_says_why(why: str, given: dict[str, Any]) -> None:
    found = resolved(**given)
    assert found.kernels == "reference" and why in found.note
    with pytest.raises(ConfigError, match=why):
        resolved(**given, kernels="fast")
    with pytest.raises(ConfigError, match=why):
        resolved(**given, weights="int8")


def test_widths_that_no_group_divides() -> None:
    odd = replace(SMALL, intermediate_size=520)
    assert resolved(config=odd).weights == "bf16"
    with pytest.raises(ConfigError, match=r"mlp\.down_proj has 520 inputs, which groups of 32 do not divide"):
        resolved(config=odd, weights="int4")
    with pytest.raises(ConfigError, match=r"self_attn\.q_proj has 256 inputs, which groups of 96"):
        resolved(weights="int8", group_size=96)


@pytest.mark.parametrize(
    ("field", "source", "kv"),
    [
        ("weights int8", {"weights": "int8", "kernels": "reference"}, "auto"),
        ("kv int8", {"dtype": "float32"}, "int8"),
        ("dtype float32", {"dtype": "float32", "kernels": "fast"}, "auto"),
        ("weight_only", {"weight_only": True, "kernels": "reference"}, "auto"),
        ("weight_only", {"weight_only": True, "weights": "bf16"}, "auto"),
    ],
)
def test_contradictions_are_refused(field: str, source: dict[str, Any], kv: str) -> None:
    with pytest.raises(ConfigError, match=field):
        resolved(kv=kv, **source)


@pytest.mark.parametrize("group", [0, 31, 48, -32, 288])
def test_group_sizes_are_multiples_of_32(group: int) -> None:
    with pytest.raises(ConfigError, match="group_size"):
        ModelSource(group_size=group)


def test_groups_are_the_largest_that_divide() -> None:
    precision = Precision("fast", "int8", "bf16", "bf16")
    assert [precision.group_of("int8", width) for width in (1024, 704, 96)] == [128, 64, 32]
    assert precision.group_of("bf16", 1024) == 0
    assert replace(precision, group_size=32).group_of("int8", 1024) == 32


def test_packed_sizes() -> None:
    """By hand: 70 outputs take two panels; int8 adds 2 bytes per output and group, int4 halves the rest."""
    assert packed_bytes(64, 256, "bf16", 0) == 64 * 256 * 2
    assert packed_bytes(70, 256, "int8", 128) == 128 * 256 + 128 * 2 * 2
    assert packed_bytes(70, 256, "int4", 32) == 128 * 128 + 128 * 8 * 2
    assert packed_bytes(2 * 33, 64, "bf16", 0, num_pieces=2) == 128 * 64 * 2


def test_kv_in_8_bits_takes_a_scale_per_head_and_position() -> None:
    assert kv_position_bytes(SMALL, "bf16") == 4 * 2 * 2 * 64 * 2
    assert kv_position_bytes(SMALL, "int8") == 4 * 2 * 2 * (64 + 4)


def test_lower_precision_is_offered_where_memory_is_short() -> None:
    source, cache = ModelSource(weights="bf16", max_context=512), CacheConfig(num_blocks=64)
    big = model(num_hidden_layers=8)
    needed = plan(big, available=1e12, missing=None, source=source, cache=cache)
    least = needed.total_bytes - 0.05 * 1e12 - 0.3 * needed.group_bytes("weights")  # without the spare share
    with pytest.raises(DoesNotFit, match=r"it fits with --weights int8"):
        plan(big, available=least, missing=None, source=source, cache=cache)
    plan(big, available=least, missing=None, source=replace(source, weights="int8"), cache=cache)


# ---- mixtures of experts ---------------------------------------------------------------------------------

EXPERTS = {
    "architectures": ["Qwen3MoeForCausalLM"], "hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4,
    "head_dim": 64, "num_key_value_heads": 2, "intermediate_size": 520, "vocab_size": 4096, "num_experts": 12,
    "num_experts_per_tok": 3, "moe_intermediate_size": 96, "max_position_embeddings": 1024,
}  # fmt: skip


def test_experts_are_packed_like_all_matrices() -> None:
    """Where every layer has experts, the width that other layers would have does not matter."""
    config = model(**EXPERTS)
    assert resolved(config=config).weights == "int8"
    assert resolved(config=model(**EXPERTS, mlp_only_layers=[0])).weights == "bf16"
    with pytest.raises(ConfigError, match=r"mlp\.experts\.down_proj has 96 inputs, which groups of 64 do not divide"):
        resolved(config=config, weights="int4", group_size=64)


def test_the_ledger_counts_experts_by_hand() -> None:
    """12 experts in each of 4 layers, gate and up 192 × 256 and down 256 × 96 in int8 with a scale per 128 and 32; the
    router in bf16, in a whole panel."""
    ledger = plan(model(**EXPERTS), missing=None)
    found = {item.name: item.num_bytes for item in ledger.items}
    one = 192 * 256 + 192 * 2 * 2 + 256 * 96 + 256 * 3 * 2
    assert found["experts"] == 4 * 12 * one
    assert found["router"] == 4 * 64 * 256 * 2
    assert "mlp" not in found
    assert "mlp" in {item.name for item in plan(model(**EXPERTS, mlp_only_layers=[0]), missing=None).items}
    reference = {item.name: item.num_bytes for item in plan(model(**EXPERTS)).items}
    assert reference["experts"] == 4 * 4 * 12 * 3 * 256 * 96
    assert reference["router"] == 4 * 4 * 12 * 256


# ---- on a GPU --------------------------------------------------------------------------------------------


def on_gpu(config: Any = SMALL, kv: str = "auto", **source: Any) -> Precision:
    return resolve_precision(config, ModelSource(**source), CacheConfig(kv=kv), device="cuda")  # type: ignore[arg-type]


def test_on_a_gpu_what_is_left_open_is_the_checkpoints_own() -> None:
    assert on_gpu() == Precision("fast", "bf16", "bf16", "bf16", device="cuda")
    assert on_gpu(weights="int4") == Precision("fast", "int4", "bf16", "bf16", weight_only=True, device="cuda")
    assert on_gpu(weights="fp8", kv="fp8") == Precision("fast", "fp8", "bf16", "fp8", device="cuda")
    assert str(on_gpu(weights="fp8", kv="fp8")) == "fp8 weights, output matrix bf16, fp8 KV on the GPU"


@pytest.mark.parametrize(
    ("why", "given"),
    {
        "kernels reference": {"kernels": "reference"},
        "dtype float32": {"dtype": "float32"},
        "kv int8": {"kv": "int8"},
        "head_dim 320": {"config": model(head_dim=320)},
        "32 query heads share": {"config": model(num_key_value_heads=1)},
        "lm_head int8": {"config": replace(SMALL, tie_embeddings=True), "weights": "int4", "lm_head": "int8"},
        "weight_only": {"weights": "fp8", "weight_only": True},
        "which groups of 96 do not divide": {"weights": "int4", "group_size": 96},
    }.items(),
)
def test_what_a_gpu_cannot_do_is_refused_by_name(why: str, given: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=why):
        on_gpu(**given)


@pytest.mark.parametrize("given", [{"weights": "fp8"}, {"lm_head": "fp8"}, {"kv": "fp8"}])
def test_fp8_is_for_gpus(given: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="fp8 is for GPUs"):
        resolved(**given)


def test_a_gpus_pool_takes_what_is_left() -> None:
    """As far as sequences can use it; no limit of its own, no share to be set."""
    big = model(vocab_size=128256)
    scheduler = SchedulerConfig(max_seqs=256, max_step_tokens=8192)
    ledger = plan_memory(big, ModelSource(), CacheConfig(), scheduler, 140_000_000_000, device="cuda")
    block_bytes = ledger.block_size * kv_position_bytes(big, "bf16")
    assert 0 <= ledger.spare_bytes < block_bytes
    assert ledger.group_bytes("kv") > 100e9
    small = plan_memory(SMALL, ModelSource(), CacheConfig(), scheduler, 140_000_000_000, device="cuda")
    assert small.num_blocks == 256 * SMALL.max_context // small.block_size


def test_a_model_too_big_for_the_gpu_is_refused_with_the_change_that_fits() -> None:
    big, scheduler = model(vocab_size=128256), SchedulerConfig(max_seqs=64, max_step_tokens=2048)
    for available, remedy in ((13e9, "--weights int8"), (8e9, "--weights int4")):
        with pytest.raises(DoesNotFit, match=f"it fits with {remedy}"):
            plan_memory(big, ModelSource(), CacheConfig(), scheduler, int(available), device="cuda")
    plan_memory(big, ModelSource(weights="int4"), CacheConfig(), scheduler, int(8e9), device="cuda")


def test_options_left_open_are_chosen_for_the_device() -> None:
    config = EngineConfig.from_options(max_seqs=32)
    assert config.for_device("cpu") == config
    chosen = config.for_device("cuda")
    assert (chosen.scheduler.max_seqs, chosen.scheduler.max_step_tokens, chosen.depth) == (32, 8192, 2)
    assert chosen.for_device("cuda") == chosen
    assert EngineConfig(scheduler=SchedulerConfig(max_seqs=8)).for_device("cuda").scheduler.max_step_tokens == 512
