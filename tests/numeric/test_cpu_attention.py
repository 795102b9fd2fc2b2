"""The CPU's paged attention: right, blind to what it must not see, and the same bits in any company."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.numeric.cpu_attention_support import as_stored, attend, from_bf16, to_bf16
from tests.numeric.cpu_support import each_isa, pool, run
from tests.numeric.ops_support import Paged, make_paged
from tokenmill.kernels.cpu.records import CopyBlocksArgs, WeightFormat

HEADS = [(3, 3, 16), (4, 4, 128), (4, 2, 64), (4, 2, 128), (8, 2, 64), (7, 1, 64), (8, 1, 32), (4, 1, 80), (2, 1, 96)]
HEADS += [(2, 1, 256), (6, 2, 48), (130, 1, 16)]
STARTS = [0, 0, 5, 63, 64, 130, 0, 300]
COUNTS = [1, 110, 1, 1, 3, 1, 20, 17]

each_format = pytest.mark.parametrize("kv", [WeightFormat.BF16, WeightFormat.INT8], ids=["bf16", "int8"])
each_shape = pytest.mark.parametrize(("num_heads", "num_kv_heads", "head_dim"), HEADS)


@pytest.fixture(autouse=True, scope="module")
def one_torch_thread() -> Iterator[None]:
    """The exact results are small; threads that wait for one another would cost more than they save."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def relative_error(ours: torch.Tensor, exact: torch.Tensor) -> float:
    return float((ours - exact).norm() / exact.norm())


@each_isa
@each_format
@each_shape
def test_right(isa: str, kv: WeightFormat, num_heads: int, num_kv_heads: int, head_dim: int) -> None:
    """Against float64 from the numbers that the cache holds: what is left are probabilities and output in bf16."""
    paged = make_paged(STARTS, COUNTS, num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=head_dim)
    for window in (None, 1, 7, 64, 100):
        ours = from_bf16(attend(pool(isa), paged, window=window, kv=kv))
        exact = as_stored(paged, kv).naive(window)
        assert relative_error(ours, exact) < 3e-3, window
        assert (ours - exact).abs().max() < 0.02 * exact.abs().max(), window


@each_shape
def test_int8_close_to_unrounded(num_heads: int, num_kv_heads: int, head_dim: int) -> None:
    """Keys and values of Gaussian data in 8 bits cost about a hundredth."""
    paged = make_paged(STARTS, COUNTS, num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=head_dim)
    ours = from_bf16(attend(pool("plain"), paged, kv=WeightFormat.INT8))
    assert relative_error(ours, paged.naive(None)) < 2e-2


@each_isa
@each_format
@pytest.mark.parametrize("window", [None, 50])
@pytest.mark.parametrize(("num_heads", "num_kv_heads", "head_dim"), [(4, 2, 128), (7, 1, 64), (6, 2, 48), (3, 3, 16)])
def test_bits_independent(
    isa: str, kv: WeightFormat, window: int | None, num_heads: int, num_kv_heads: int, head_dim: int
) -> None:
    """Of company, chunks (down to single tokens), threads, block size and placement."""
    paged = make_paged(STARTS, COUNTS, num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=head_dim)
    together = attend(pool(isa), paged, window=window, kv=kv)
    for row in range(len(STARTS)):
        expected = paged.tokens_of(row, torch.from_numpy(together)).numpy()
        for block_size, threads in ((32, 1), (64, 2), (48, 3)):
            alone = attend(pool(isa, threads), paged, window=window, kv=kv, block_size=block_size, only=[row], seed=row)
            assert np.array_equal(alone, expected), (row, block_size, threads)
        last = attend(pool(isa), paged, window=window, kv=kv, only=[7, 1, row], seed=9)
        assert np.array_equal(last[-len(expected) :], expected), row
        for size in (1, 2, 5, 13, 64):
            if size < COUNTS[row]:
                assert np.array_equal(attend(pool(isa), in_chunks(paged, row, size), window=window, kv=kv), expected)


def in_chunks(paged: Paged, row: int, size: int) -> Paged:
    """One row's tokens as rows of ``size`` tokens each, which see the tokens before them in their cache."""
    begin, end = paged.starts[row], paged.starts[row] + paged.counts[row]
    starts = list(range(begin, end, size))
    counts = [min(size, end - start) for start in starts]
    ends = [start + count for start, count in zip(starts, counts, strict=True)]
    keys, values = paged.keys[row], paged.values[row]
    return Paged(paged.tokens_of(row, paged.q), [keys[:e] for e in ends], [values[:e] for e in ends], starts, counts)


@each_isa
@pytest.mark.parametrize("cut", range(1, 100, 7))
def test_every_cut(isa: str, cut: int) -> None:
    """A prompt of 100 in two pieces."""
    whole = make_paged([0], [100], num_heads=4, num_kv_heads=2, head_dim=32)
    expected = attend(pool(isa), whole)
    keys, values = whole.keys[0], whole.values[0]
    pieces = Paged(whole.q, [keys[:cut], keys], [values[:cut], values], [0, cut], [cut, 100 - cut])
    assert np.array_equal(attend(pool(isa), pieces), expected)


@each_isa
@each_format
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_poison_stays_behind(isa: str, kv: WeightFormat, poison: float) -> None:
    """A position that is not finite reaches the tokens that see it and no other, in the same chunk even."""
    clean = make_paged([0, 0], [90, 3], num_heads=4, num_kv_heads=2, head_dim=32)
    before = attend(pool(isa), clean, kv=kv)
    keys, values = clean.keys[0].clone(), clean.values[0].clone()
    keys[37] = values[37] = poison
    for dirty in (
        replace(clean, keys=[keys, clean.keys[1]]),
        replace(clean, values=[values, clean.values[1]]),
    ):
        after = attend(pool(isa), dirty, kv=kv)
        sees = np.zeros(93, bool)
        sees[37:90] = True
        assert np.array_equal(after[~sees], before[~sees])
        assert not from_bf16(after[sees]).isfinite().any()


def test_poisoned_query_stays_alone() -> None:
    paged = make_paged([0, 0], [90, 3], num_heads=4, num_kv_heads=2, head_dim=32)
    dirty = paged.q.clone()
    dirty[37, 1] = float("nan")
    for kv in (WeightFormat.BF16, WeightFormat.INT8):
        after = from_bf16(attend(pool("plain"), replace(paged, q=dirty), kv=kv))
        expected = from_bf16(attend(pool("plain"), paged, kv=kv))
        expected[37, 1] = float("nan")
        assert torch.equal(after.isnan(), expected.isnan())
        assert torch.equal(after.nan_to_num(0), expected.nan_to_num(0))


@each_isa
def test_sign_of_zero(isa: str) -> None:
    """An output that underflows to -0 is one number alone and in company, where more zeros are added to it."""
    keys, q = torch.zeros(40, 1, 16), torch.zeros(40, 1, 16)
    keys[5, 0, 0], q[:, 0, 0] = 8.0, 4.0  # position 5 is the likeliest, the first one is not
    values = torch.ones(40, 1, 16)
    values[:16] = -0.0
    values[0] = -1.2e-38
    whole = Paged(q, [keys], [values], [0], [40])
    alone = Paged(q[15:16], [keys[:16]], [values[:16]], [15], [1])
    assert np.array_equal(attend(pool(isa), alone), attend(pool(isa), whole)[15:16])


@each_isa
@each_format
def test_scores_far_apart(isa: str, kv: WeightFormat) -> None:
    """Scores in the thousands: the likeliest position takes all."""
    paged = make_paged([0], [80], num_heads=2, num_kv_heads=1, head_dim=64)
    paged = replace(paged, q=paged.q * 1000)
    ours = from_bf16(attend(pool(isa), paged, kv=kv))
    assert relative_error(ours, as_stored(paged, kv).naive(None)) < 3e-3


@pytest.mark.parametrize("threads", [1, 3])
def test_copy_blocks(threads: int) -> None:
    data = np.random.default_rng(0).integers(0, 256, (7, 96), dtype=np.uint8)
    expected = data.copy()
    pairs = np.array([[1, 4], [1, 6], [3, 0]], np.int64)
    for source, destination in pairs:
        expected[destination] = data[source]
    run(pool("plain", threads), "copy_blocks", CopyBlocksArgs(data.ctypes.data, 96, pairs.ctypes.data, 3), token_ids=1)
    assert np.array_equal(data, expected)


def test_same_bits_twice() -> None:
    """No memory of the call before: a long call, then a short one, is the short one alone."""
    paged = make_paged(STARTS, COUNTS, num_heads=4, num_kv_heads=2, head_dim=64)
    first = attend(pool("plain"), paged, only=[0, 4])
    attend(pool("plain"), make_paged([0], [300], num_heads=8, num_kv_heads=2, head_dim=96))
    assert np.array_equal(attend(pool("plain"), paged, only=[0, 4]), first)
    assert not np.array_equal(first, to_bf16(torch.zeros(first.shape)))
