"""The paged attention: right (float64, PyTorch's own), and the same bits whatever shares the call."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F

from tests.numeric.ops_support import make_paged

HEADS = [(4, 4, 16), (4, 2, 64), (8, 1, 32), (6, 2, 48), (7, 1, 64), (5, 1, 16), (32, 1, 32), (3, 3, 128)]
STARTS = [0, 0, 5, 63, 64, 130, 0, 300]
COUNTS = [1, 70, 1, 1, 3, 1, 20, 17]


@pytest.fixture(autouse=True, params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("window", [None, 1, 7, 64, 100])
@pytest.mark.parametrize(("num_heads", "num_kv_heads", "head_dim"), HEADS)
def test_equals_float64(num_heads: int, num_kv_heads: int, head_dim: int, window: int | None) -> None:
    paged = make_paged(STARTS, COUNTS, num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=head_dim)
    error = (paged.attend(block_size=16, window=window) - paged.naive(window)).abs().max()
    assert error < 1e-5


def test_equals_pytorch() -> None:
    paged = make_paged(STARTS, COUNTS, num_heads=4, num_kv_heads=2, head_dim=64)
    ours = paged.attend(block_size=16, window=33)
    for row in range(len(STARTS)):
        q, k, v = (t.transpose(0, 1) for t in (paged.tokens_of(row, paged.q), paged.keys[row], paged.values[row]))
        mask = paged.visible(row, 33)
        theirs = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True).transpose(0, 1)
        assert (paged.tokens_of(row, ours) - theirs).abs().max() < 1e-5


@pytest.mark.parametrize("window", [None, 50])
@pytest.mark.parametrize(("num_heads", "num_kv_heads", "head_dim"), HEADS)
def test_bits_independent(num_heads: int, num_kv_heads: int, head_dim: int, window: int | None) -> None:
    """Of company, order, block size and placement (mission row E12)."""
    paged = make_paged(STARTS, COUNTS, num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=head_dim)
    together = paged.attend(block_size=16, window=window)
    for row in range(len(STARTS)):
        expected = paged.tokens_of(row, together)
        for block_size in (8, 64):
            assert torch.equal(paged.attend(block_size=block_size, window=window, only=[row], seed=row), expected), row
        last = paged.attend(block_size=32, window=window, only=[7, 1, row])
        assert torch.equal(last[-len(expected) :], expected), row


@pytest.mark.parametrize(("num_heads", "num_kv_heads", "head_dim"), HEADS)
def test_bits_independent_of_chunks(num_heads: int, num_kv_heads: int, head_dim: int) -> None:
    """A prompt of 150 in one piece, and its tokens 1, 2, 5, 13 at a time."""
    sizes = {"num_heads": num_heads, "num_kv_heads": num_kv_heads, "head_dim": head_dim}
    whole = make_paged([0], [150], **sizes)
    expected = whole.attend(block_size=16, window=None)
    for step in (1, 2, 5, 13):
        starts = list(range(0, 150, step))
        counts = [min(step, 150 - start) for start in starts]
        pieces = make_paged(starts, counts, **sizes)
        same = type(pieces)(
            q=whole.q,
            keys=[whole.keys[0][: s + c] for s, c in zip(starts, counts, strict=True)],
            values=[whole.values[0][: s + c] for s, c in zip(starts, counts, strict=True)],
            starts=starts,
            counts=counts,
        )
        assert torch.equal(same.attend(block_size=16, window=None), expected), step


def test_many_companions() -> None:
    """One token beside 1 to 63 others, at every fifth place."""
    paged = make_paged([37 * i % 200 for i in range(64)], [1] * 64, num_heads=4, num_kv_heads=2, head_dim=64)
    alone = [paged.attend(block_size=16, window=None, only=[row]) for row in range(64)]
    for size in (2, 3, 8, 31, 64):
        rows = list(range(size))
        together = paged.attend(block_size=16, window=None, only=rows)
        assert all(torch.equal(together[row : row + 1], alone[row]) for row in rows), size
