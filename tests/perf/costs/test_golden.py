"""Worked numbers of the field, and the wrong ones in circulation: ours must be right."""

from __future__ import annotations

import pytest

from tokenmill.perf.costs import Layout, Op, Rows, Work, formats_named, kv_bytes_per_token, step_ops, weight_bytes
from tokenmill.perf.costs.collectives import Message, num_steps, pipeline_idle_share, seconds, sent_bytes
from tokenmill.perf.costs.speculation import best_length, expected_tokens, speed_up
from tokenmill.perf.shape import FeedForward, GroupedAttention, Layers, ModelShape

BF16 = formats_named("bf16")


def decoder(layers: int, heads: int, kv_heads: int, *, head_dim: int = 128, inner: int = 28672) -> ModelShape:
    mixer = GroupedAttention(heads, kv_heads, head_dim, head_dim)
    return ModelShape("x", heads * head_dim, 32000, (Layers(layers, mixer, FeedForward(inner)),))


def product(rows: int, inputs: int, outputs: int) -> Op:
    """The op of one matrix product: the up projection of a layer that has nothing else of note."""
    shape = ModelShape("gemm", inputs, 10, (Layers(1, None, FeedForward(outputs, gated=False)),))
    return next(op for op in step_ops(shape, BF16, Layout(), Work.prefill(rows)) if op.name == "up")


@pytest.mark.parametrize(
    ("layers", "heads", "kv_heads", "tokens", "gigabytes"),
    [
        (80, 64, 8, 4096, 1.342),
        (80, 64, 64, 4096, 10.74),
        (80, 64, 8, 8192, 2.684),
        (80, 64, 8, 65536, 21.47),
        (80, 64, 8, 131072, 42.95),
        (80, 64, 1, 8192, 0.3355),
        (40, 40, 40, 32 * 2048, 53.7),
        (32, 32, 8, 4096, 0.537),
        (32, 32, 8, 131072, 17.18),
        (96, 96, 96, 4096, 19.3),
        (96, 96, 96, 131072, 618.5),  # in circulation: 590 GB
    ],
)
def test_kv_of_a_context(layers: int, heads: int, kv_heads: int, tokens: int, gigabytes: float) -> None:
    found = kv_bytes_per_token(decoder(layers, heads, kv_heads), BF16) * tokens
    assert found / 1e9 == pytest.approx(gigabytes, rel=2e-3)


def test_a_block_of_a_70b_model() -> None:
    assert kv_bytes_per_token(decoder(80, 64, 8), BF16) * 16 / 1e6 == pytest.approx(5.24, rel=2e-3)


def test_grouping_shrinks_the_cache_by_the_group() -> None:
    assert kv_bytes_per_token(decoder(32, 32, 32), BF16) / kv_bytes_per_token(decoder(32, 32, 4), BF16) == 8


@pytest.mark.parametrize(("name", "bytes_per_parameter"), [("bf16", 2.0), ("fp8", 1.0), ("int4", 0.5)])
def test_weights_of_70b_and_their_shards(name: str, bytes_per_parameter: float) -> None:
    """140, 70 and 35 GB ("70B in INT8 is 35 GB" is the 4-bit figure); scales take 3 % more in 4 bits."""
    shape = decoder(80, 64, 8)
    formats = formats_named(name).with_(lm_head=name, embedding=name)
    whole = weight_bytes(shape, formats)
    assert whole == pytest.approx(shape.num_parameters * bytes_per_parameter, rel=0.035)
    for tp in (2, 4, 8):
        assert weight_bytes(shape, formats, Layout(tp=tp)) == pytest.approx(whole / tp, rel=1e-3)


@pytest.mark.parametrize(
    ("rows", "size", "gigaflops", "of_weights", "of_all"),
    [(1, 8192, 0.1342, 1.0, 1.0), (256, 8192, 34.4, 256, 241), (512, 4096, 17.2, 512, 410)],
)
def test_intensity_of_a_product(rows: int, size: int, gigaflops: float, of_weights: float, of_all: float) -> None:
    op = product(rows, size, size)
    assert op.flops / 1e9 == pytest.approx(gigaflops, rel=2e-3)
    assert op.flops / op.weight_bytes == pytest.approx(of_weights, rel=2e-3)
    assert op.intensity == pytest.approx(of_all, rel=3e-3)


def test_batch_one_reads_every_weight_once() -> None:
    """So 2.0 TB/s bound 7e9, 70e9 and 405e9 parameters in two bytes at 143, 14.3 and 2.47 tokens a second."""
    shape = decoder(80, 64, 8)
    ops = step_ops(shape, BF16, Layout(), Work.decode(1, 1))
    read = sum(op.weight_bytes for op in ops)
    table = shape.vocab_size * shape.hidden_size
    assert read == pytest.approx(2 * (shape.num_parameters - table), rel=1e-4), "all but the embedding, of which a row"


def test_attention_grows_with_the_square_of_the_length() -> None:
    """ "Exponentially", it is said."""

    def flops(tokens: int) -> float:
        ops = step_ops(decoder(32, 32, 8), BF16, Layout(), Work.prefill(tokens))
        return sum(op.flops for op in ops if op.kind == "prefill attention")

    assert flops(8192) / flops(4096) == pytest.approx(4, rel=1e-3)
    assert flops(4096) == pytest.approx(32 * 2 * 4096 * 4097 / 2 * 2 * 32 * 128, rel=1e-9)


def test_all_reduces_of_a_token() -> None:
    """160 of 16,384 bytes whatever the degree: what grows with it is the latency of each."""
    latencies = {}
    for tp in (2, 4, 8):
        ops = step_ops(decoder(80, 64, 8), BF16, Layout(tp=tp), Work.decode(1, 100))
        messages = [(op.count, op.message) for op in ops if op.message and op.message.collective == "all_reduce"]
        assert sum(count for count, _ in messages) == 160
        assert {message.num_bytes for _, message in messages} == {16384}
        latencies[tp] = sum(count * num_steps(message) for count, message in messages)
    assert sum(count * message.num_bytes for count, message in messages) / 1e6 == pytest.approx(2.62, rel=2e-3)
    assert latencies == {2: 320, 4: 960, 8: 2240}, "ring: 2 (n − 1) steps each"
    for latency_s, share in ((2e-6, 0.032), (8e-6, 0.128)):
        assert sum(count * latency_s for count, _ in messages) / 10e-3 == pytest.approx(share), "of a step of 10 ms"


def test_ring_all_reduce() -> None:
    message = Message("all_reduce", 4, 16384)
    assert sent_bytes(message) / 450e9 * 1e6 == pytest.approx(0.0546, rel=2e-3)
    assert seconds(message, 450e9, 1e-6) == pytest.approx(0.0546e-6 + 6e-6, rel=1e-3)
    assert num_steps(message, "tree") == 4 and num_steps(message, "one_shot") == 1


@pytest.mark.parametrize(("micro_batches", "share"), [(1, 3 / 4), (4, 3 / 7), (100, 3 / 103)])
def test_pipeline_idle_share(micro_batches: int, share: float) -> None:
    """With one micro-batch (p − 1)/p of the time, not 1/p."""
    assert pipeline_idle_share(4, micro_batches) == pytest.approx(share)


@pytest.mark.parametrize(("tokens", "kilobytes"), [(2048, 33554.432), (1, 16.384)])
def test_pipeline_hand_over(tokens: int, kilobytes: float) -> None:
    ops = step_ops(decoder(80, 64, 8), BF16, Layout(pp=2), Work.prefill(tokens))
    message = next(op.message for op in ops if op.name == "pipeline hand-over")
    assert message is not None and message.num_bytes / 1e3 == pytest.approx(kilobytes)


def test_speculation() -> None:
    assert expected_tokens(0.8, 5) == pytest.approx(3.69, abs=0.005)
    assert speed_up(4.5, 5, 0.07) == pytest.approx(3.33, abs=0.005)
    length, gain = best_length(0.8, 0.05)
    assert (length, round(gain, 2)) == (8, 3.09), "not 5 to 7"
    assert round(speed_up(expected_tokens(0.8, 7), 7, 0.05), 2) == 3.08
    assert round(speed_up(expected_tokens(0.8, 5), 5, 0.05), 2) == 2.95
    assert best_length(0.1, 0.5) == (0, 1.0), "where every draft loses there is none"
    assert expected_tokens(1.0, 5) == 6, "all accepted, and one more; five of eight accepted bring six as well"


def test_a_score_matrix_that_is_written_down() -> None:
    """8.39 MB at 2,048 tokens, 34.4 GB at 131,072: the causal half of it, twice."""
    for tokens, num_bytes in ((2048, 8.39e6), (131072, 34.4e9)):
        assert 2 * 2 * Rows(tokens, 0).pairs() == pytest.approx(num_bytes, rel=2e-3)


def test_a_product_crosses_the_balance_of_an_h100() -> None:
    """989.5 TFLOPS over 3.35 TB/s: 295 operations a byte."""
    assert product(1, 8192, 8192).intensity < 295 < product(512, 4096, 4096).intensity
