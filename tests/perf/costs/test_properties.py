"""What must hold of costs whatever the model: shares add up to the whole, more work never costs less."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenmill.core.errors import CheckpointError, ConfigError, NotSupported
from tokenmill.core.step import StepPlan
from tokenmill.perf.costs import (
    Layout,
    Rows,
    Work,
    format_named,
    formats_named,
    kv_bytes_per_token,
    largest_batch_of,
    step_ops,
    weight_bytes,
)
from tokenmill.perf.costs.storage import kv_bytes_of
from tokenmill.perf.shape import (
    Experts,
    FeedForward,
    GroupedAttention,
    LatentAttention,
    Layers,
    ModelShape,
    RecurrentMixer,
    shape_from_config,
)

BF16 = formats_named("bf16")
DENSE = ModelShape("dense", 1024, 5000, (Layers(8, GroupedAttention(16, 8, 64, 64), FeedForward(4096)),))
EXPERTS = ModelShape(
    "experts", 1024, 5000, (Layers(8, GroupedAttention(16, 8, 64, 64), Experts(64, 8, 512, shared_size=512)),)
)
LATENT = ModelShape("latent", 1024, 5000, (Layers(4, LatentAttention(16, 256, 64, 32, 64, 384), FeedForward(2048)),))
HYBRID = ModelShape(
    "hybrid",
    1024,
    5000,
    (
        Layers(6, RecurrentMixer("delta", 8, 64, 16, 64), FeedForward(2048)),
        Layers(2, GroupedAttention(16, 8, 64, 64, window=128), FeedForward(2048)),
    ),
)
SHAPES = (DENSE, EXPERTS, LATENT, HYBRID)


@settings(deadline=None)
@given(tokens=st.integers(1, 300), start=st.integers(0, 300), window=st.none() | st.integers(1, 400))
def test_pairs_and_positions_are_what_counting_gives(tokens: int, start: int, window: int | None) -> None:
    seen = [range(max(0, p + 1 - window) if window else 0, p + 1) for p in range(start, start + tokens)]
    row = Rows(tokens, start)
    assert row.pairs(window) == sum(len(positions) for positions in seen)
    assert row.positions(window) == len(set().union(*seen))


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
@pytest.mark.parametrize("tp", [2, 4, 8])
def test_tensor_parallel_shares_add_up(shape: ModelShape, tp: int) -> None:
    """What all ranks compute and hold together is at least the whole, and no more than what must be copied beside."""
    work = Work.prefill(100) + Work.decode(7, 300)
    alone, shared = (step_ops(shape, BF16, Layout(tp=n), work) for n in (1, tp))

    def flops(ops: tuple, copied: bool) -> float:
        whole = ("latent down", "router")
        return sum(op.flops for op in ops if (op.name in whole) == copied)

    assert tp * flops(shared, False) == pytest.approx(flops(alone, False))
    assert flops(shared, True) == pytest.approx(flops(alone, True)), "what is not cut, every rank does"
    whole, each = weight_bytes(shape, BF16), weight_bytes(shape, BF16, Layout(tp=tp))
    assert whole / tp <= each < whole


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_a_prompt_in_chunks_attends_to_as_much_as_in_one(shape: ModelShape) -> None:
    def attended(*works: Work) -> float:
        return sum(
            op.flops for work in works for op in step_ops(shape, BF16, Layout(), work) if op.kind == "prefill attention"
        )

    assert attended(Work.prefill(200, 0), Work.prefill(300, 200)) == pytest.approx(attended(Work.prefill(500)))


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
@settings(deadline=None)
@given(batch=st.integers(1, 200), context=st.integers(1, 4000))
def test_more_work_costs_more(shape: ModelShape, batch: int, context: int) -> None:
    def totals(work: Work) -> tuple[float, float]:
        ops = step_ops(shape, BF16, Layout(), work)
        return sum(op.flops for op in ops), sum(op.num_bytes for op in ops)

    here = totals(Work.decode(batch, context))
    for more in (totals(Work.decode(batch + 1, context)), totals(Work.decode(batch, context + 1))):
        assert all(b >= a * (1 - 1e-12) for a, b in zip(here, more, strict=True))


def test_a_plan_costs_what_its_rows_cost() -> None:
    plan = StepPlan(0, (1, 2, 3, 4), (99, 99, 50, 0), (1, 1, 1, 64))
    work = Work.decode(2, 100) + Work.decode(1, 51) + Work.prefill(64)
    assert set(Work.of(plan).rows) == set(work.rows) and Work.of(plan).outputs == 4
    assert Work.of(plan).tokens == 67


def test_experts_touched() -> None:
    """One token meets k of E; very many meet all; in between as many as drawing at random brings."""
    experts = Experts(64, 8, 512)
    assert experts.distinct(1) == pytest.approx(8)
    assert experts.distinct(10_000) == pytest.approx(64)
    assert experts.distinct(4) == pytest.approx(64 * (1 - (7 / 8) ** 4))
    ops = {n: step_ops(EXPERTS, BF16, Layout(), Work.decode(n, 10)) for n in (1, 64)}
    read = {n: next(op for op in found if op.kind == "experts").weight_bytes for n, found in ops.items()}
    assert read[1] == 8 * 8 * 3 * 1024 * 512 * 2
    assert read[64] < 64 / 8 * read[1]


def test_expert_parallelism_exchanges_tokens_and_splits_experts() -> None:
    spread = Layout(dp=8, ep=8)
    ops = step_ops(EXPERTS, BF16, spread, Work.decode(64, 100))
    names = [op.name for op in ops]
    assert "expert dispatch" in names and "expert combine" in names
    alone = step_ops(EXPERTS, BF16, Layout(), Work.decode(64, 100))
    split, whole = (next(op for op in found if op.kind == "experts") for found in (ops, alone))
    assert 8 * split.flops == pytest.approx(whole.flops)
    assert 8 * split.weight_bytes == pytest.approx(whole.weight_bytes)


def test_a_window_bounds_what_is_kept_and_read() -> None:
    long, longer = (kv_bytes_of(HYBRID, BF16, context) for context in (10_000, 20_000))
    assert long == longer, "two windowed layers and recurrent ones: nothing grows"
    read = [
        sum(op.kv_bytes for op in step_ops(HYBRID, BF16, Layout(), Work.decode(1, n)) if op.kind == "decode attention")
        for n in (10_000, 20_000)
    ]
    assert read[0] == read[1]


def test_kv_heads_beyond_the_ranks_are_copied() -> None:
    eight, sixteen = (kv_bytes_per_token(DENSE, BF16, Layout(tp=n)) for n in (8, 16))
    assert eight == sixteen


def test_largest_batch() -> None:
    """80 GB, 14 GB of weights, 5 GB a sequence: 13."""
    each = kv_bytes_of(DENSE, BF16, 1000)
    room = weight_bytes(DENSE, BF16) + 13.2 * each
    assert largest_batch_of(DENSE, BF16, Layout(), 1000, room) == 13
    assert largest_batch_of(DENSE, BF16, Layout(), 1000, room, reserved_bytes=room) == 0


@pytest.mark.parametrize(
    ("layout", "words"),
    [
        (Layout(tp=3), "tp=3 does not divide the 16 query heads"),
        (Layout(pp=9), "pp=9 is more than the 8 layers"),
        (Layout(ep=8), "has no experts"),
    ],
)
def test_impossible_layouts_are_named(layout: Layout, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        layout.check(DENSE)


def test_kv_heads_over_a_degree_that_fits_neither_way() -> None:
    shape = ModelShape("x", 1536, 100, (Layers(1, GroupedAttention(24, 8, 64, 64), FeedForward(3072)),))
    with pytest.raises(ConfigError, match="8 KV heads"):
        Layout(tp=3).check(shape)
    with pytest.raises(ConfigError, match="tp must be an integer of at least 1"):
        Layout(tp=0)


def test_unknown_formats_are_refused() -> None:
    with pytest.raises(ConfigError, match="unknown number format 'int3'"):
        format_named("int3")
    with pytest.raises(ConfigError, match="unknown tensor class 'experst'"):
        BF16.with_(experst="fp8")


# ---- shapes ----------------------------------------------------------------------------------------------

CONFIGS = Path(__file__).resolve().parents[4] / "shared" / "data" / "configs"
PUBLISHED = {
    "DeepSeek-V3": (671.03, 37.55),
    "Qwen3-30B-A3B": (30.53, 3.35),
    "Qwen3-235B-A22B": (235.09, 22.19),
    "gpt-oss-120b": (116.83, 5.71),
    "gpt-oss-20b": (20.91, 4.19),
    "Mixtral-8x7B-v0.1": (46.70, 12.88),
    "Meta-Llama-3.1-405B": (405.85, 405.85),
    "mlc-gemma2_9b": (9.24, 9.24),
    "mlc-gpt2": (0.1244, 0.1244),
    "mlc-olmo2_7b": (7.30, 7.30),
}
"""Billions of parameters, all and active, as their authors give them."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_the_published_ones(name: str) -> None:
    path = CONFIGS / f"{name}.json"
    if not path.exists():
        pytest.skip("no model configurations here")
    shape = shape_from_config(json.loads(path.read_text()), name)
    found = (shape.num_parameters / 1e9, shape.active_parameters / 1e9)
    assert found == pytest.approx(PUBLISHED[name], rel=2e-3)


def test_every_configuration_is_read_or_refused_by_name() -> None:
    if not CONFIGS.exists():
        pytest.skip("no model configurations here")
    read, refusals = 0, []
    for path in CONFIGS.glob("*.json"):
        try:
            shape = shape_from_config(json.loads(path.read_text()), path.stem)
        except (NotSupported, CheckpointError) as error:
            refusals.append(error.message)
            continue
        read += 1
        ops = step_ops(shape, BF16, Layout(), Work.decode(3, 100) + Work.prefill(50))
        assert all(op.flops >= 0 and op.num_bytes >= 0 for op in ops)
    assert all("not modelled" in message or "config.json:" in message for message in refusals)
    assert read >= 0.9 * (read + len(refusals)), refusals


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({}, "hidden_size is missing|num_hidden_layers is missing"),
        ({"hidden_size": 64, "num_hidden_layers": 2}, "num_attention_heads is missing"),
        ({"hidden_size": -1, "num_hidden_layers": 2}, "hidden_size must be an integer between"),
        (
            {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 7},
            "not a multiple of num_attention_heads",
        ),
        ({"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": True}, "must be an integer"),
        ({"hidden_size": 10**12, "num_hidden_layers": 2}, "hidden_size must be an integer between"),
    ],
)
def test_a_configuration_that_lacks_something_names_it(config: dict[str, object], words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        shape_from_config(config)
