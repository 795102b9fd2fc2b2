"""What is left open is resolved, what cannot be is refused by name, and the ledger foresees either to the byte."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.perf.test_memory import SMALL, model, plan
from tokenmill.core.engine_config import CacheConfig, ModelSource
from tokenmill.core.errors import ConfigError, DoesNotFit
from tokenmill.core.precision import Precision, resolve_precision
from tokenmill.perf.memory import kv_position_bytes, packed_bytes


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
