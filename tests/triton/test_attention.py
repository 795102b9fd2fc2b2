"""Paged attention on a GPU (or interpreted) against a plain softmax in float64 and the reference op.

All memory that a row may not see holds NaN, so every comparison also shows that nothing else is read.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="needs triton: pip install 'tokenmill[gpu]'")

from tokenmill.kernels.reference import attention as reference
from tokenmill.kernels.triton.attention import AttentionBuffers, attention
from tokenmill.kernels.triton.kv import LayerKV

NAN = float("nan")


@dataclass
class Case:
    """Random queries, keys and values of rows; row ``i`` computes ``counts[i]`` tokens from ``starts[i]`` on."""

    starts: list[int]
    counts: list[int]
    num_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 16
    block_size: int = 16
    window: int | None = None
    softcap: float | None = None
    sinks: bool = False
    fp8: bool = False
    device: torch.device | str = "cpu"

    def __post_init__(self) -> None:
        torch.manual_seed(len(self.starts) + sum(self.starts))
        ends = [start + count for start, count in zip(self.starts, self.counts, strict=True)]
        self.keys = [torch.randn(end, self.num_kv_heads, self.head_dim) for end in ends]
        self.values = [torch.randn(end, self.num_kv_heads, self.head_dim) for end in ends]
        self.queries = [torch.randn(count, self.num_heads, self.head_dim) for count in self.counts]
        self.sink_scores = torch.randn(self.num_heads) if self.sinks else None
        self.scale = self.head_dim**-0.5
        self.max_blocks = -(-max(ends) // self.block_size) + 1
        self._fill()

    def _fill(self) -> None:
        """Blocks in random order; NaN wherever no token of the row sees."""
        num_rows, size = len(self.starts), self.block_size
        shape = (num_rows * self.max_blocks, self.num_kv_heads, size, self.head_dim)
        caches = [torch.full(shape, NAN), torch.full(shape, NAN)]
        scales = [torch.full(shape[:3], NAN), torch.full(shape[:3], NAN)]
        self.tables = torch.randperm(shape[0]).view(num_rows, self.max_blocks).int()
        for row, start in enumerate(self.starts):
            first = 0 if self.window is None else max(0, start - self.window + 1)
            seen = torch.arange(first, start + self.counts[row])
            blocks = self.tables[row, seen // size].long()
            for cache, scale, numbers in zip(caches, scales, (self.keys[row], self.values[row]), strict=True):
                lines = numbers[seen]
                if self.fp8:
                    step = lines.abs().amax(-1) / 448
                    scale[blocks, :, seen % size] = step
                    lines = (lines / step[..., None]).to(torch.float8_e4m3fn).float()
                    numbers[seen] = lines * step[..., None]
                cache[blocks, :, seen % size] = lines
        dtype = torch.float8_e4m3fn if self.fp8 else torch.float32
        k, v = (cache.to(self.device, dtype) for cache in caches)
        self.layer = LayerKV(k, v, *((scale.to(self.device) for scale in scales) if self.fp8 else (None, None)))

    def run(
        self, order: list[int] | None = None, *, invariant: bool | list[bool] = False, **shape: int
    ) -> list[Tensor]:
        """Results by row, of the rows in ``order``; ``shape``: what the planner is told of the chip."""
        order = list(range(len(self.starts))) if order is None else order
        counts = [self.counts[row] for row in order]
        buffers = AttentionBuffers(
            self.num_heads, self.num_kv_heads, self.head_dim, self.block_size, sum(counts), len(order),
            self.max_blocks, self.window, self.softcap, device=self.device,
        )  # fmt: skip
        buffers.shape = replace(buffers.shape, **shape)
        plan = buffers.plan([self.starts[row] for row in order], counts, order, invariant=invariant)
        q = torch.cat([self.queries[row] for row in order]).to(self.device)
        out = torch.full_like(q, NAN)
        sinks = None if self.sink_scores is None else self.sink_scores.to(self.device)
        attention(q, self.layer, self.tables.to(self.device), plan, self.scale, out, sinks=sinks)
        return list(out.cpu().split(counts))

    def expected(self, row: int) -> Tensor:
        """A plain softmax in float64."""
        group = self.num_heads // self.num_kv_heads
        k, v = (x[row].double().repeat_interleave(group, 1) for x in (self.keys, self.values))
        scores = torch.einsum("thd,nhd->htn", self.queries[row].double(), k) * self.scale
        if self.softcap is not None:
            scores = self.softcap * torch.tanh(scores / self.softcap)
        token = torch.arange(self.starts[row], len(k))[:, None]
        key = torch.arange(len(k))[None, :]
        hidden = (key > token) | (key <= token - (self.window or len(k) + 1))
        scores = scores.masked_fill(hidden, -torch.inf)
        if self.sink_scores is not None:
            sinks = self.sink_scores.double()[:, None, None].expand(-1, len(token), 1)
            scores = torch.cat([scores, sinks], -1)
        return torch.einsum("htn,nhd->thd", scores.softmax(-1)[..., : len(k)], v)

    def check(self, **options: bool | int) -> None:
        for row, result in enumerate(self.run(**options)):  # type: ignore[arg-type]
            torch.testing.assert_close(result.double(), self.expected(row), rtol=1e-4, atol=2e-6)


def test_prefill_decode_and_mixed_rows_in_one_call(device: torch.device) -> None:
    Case([0, 300, 1030, 5, 255], [70, 1, 1, 3, 2], device=device).check()


@pytest.mark.parametrize(
    ("num_heads", "num_kv_heads", "head_dim", "block_size"),
    [(3, 3, 16, 16), (5, 1, 24, 32), (16, 1, 32, 64), (12, 2, 64, 48), (4, 2, 16, 256)],
)
def test_groups_head_dims_and_block_sizes(
    num_heads: int, num_kv_heads: int, head_dim: int, block_size: int, device: torch.device
) -> None:
    Case([0, 290, 19], [40, 1, 4], num_heads, num_kv_heads, head_dim, block_size, device=device).check()


@pytest.mark.parametrize("window", [1, 300])
def test_sliding_window_reads_nothing_below_it(window: int, device: torch.device) -> None:
    Case([0, 900, 310], [70, 3, 90], window=window, device=device).check()


def test_softcap_and_sinks(device: torch.device) -> None:
    Case([0, 300, 40], [40, 1, 60], softcap=2.0, sinks=True, window=150, device=device).check()
    Case([1100], [1], softcap=20.0, sinks=True, device=device).check()


def test_a_large_sink_leaves_nothing_and_no_nan(device: torch.device) -> None:
    case = Case([20], [1], sinks=True, device=device)
    case.sink_scores = torch.full((4,), 500.0)
    assert torch.equal(case.run()[0], torch.zeros(1, 4, 16))


def test_fp8_cache_with_a_scale_per_position_and_head(device: torch.device) -> None:
    Case([0, 300, 1030], [40, 1, 1], fp8=True, device=device).check()


def test_agrees_with_the_reference_op(device: torch.device) -> None:
    case = Case([0, 300], [33, 1], device=device)
    tables = case.tables.long()
    plan = reference.plan_attention(
        case.starts, case.counts, tables, block_size=16, window=None, num_heads=4, num_kv_heads=2
    )
    k, v = (x.cpu().transpose(1, 2).reshape(-1, 2, 16).contiguous() for x in (case.layer.keys, case.layer.values))
    expected = reference.attention(torch.cat(case.queries), k, v, plan, case.scale)
    torch.testing.assert_close(torch.cat(case.run()), expected, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("seed", range(3))
def test_random_mixes(seed: int, device: torch.device) -> None:
    draw = random.Random(seed)
    rows = draw.randint(1, 5)
    Case(
        [draw.choice([0, draw.randint(0, 40), draw.randint(200, 600)]) for _ in range(rows)],
        [draw.choice([1, 1, draw.randint(2, 12), draw.randint(30, 70)]) for _ in range(rows)],
        *draw.choice([(4, 2), (4, 1), (2, 2)]),
        block_size=draw.choice([16, 32, 128]),
        window=draw.choice([None, draw.randint(1, 400)]),
        softcap=draw.choice([None, 5.0]),
        sinks=draw.random() < 0.3,
        device=device,
    ).check(invariant=draw.random() < 0.3)


CUTS = {
    "leaves": {"decode_programs": 8, "num_multiprocessors": 10**6},
    "spans": {"decode_programs": 8, "num_multiprocessors": 1},
    "whole": {"decode_programs": 1, "num_multiprocessors": 1, "num_slots": 0},
    "few slots": {"decode_programs": 8, "num_multiprocessors": 10**6, "num_slots": 9},
}
"""What the planner is told of the chip so that it cuts rows in this way."""


@pytest.mark.parametrize("window", [None, 700])
def test_bits_of_a_decode_row_do_not_depend_on_company_order_or_cut(window: int | None, device: torch.device) -> None:
    case = Case([1290, 700, 3], [1, 1, 1], window=window, device=device)
    together = case.run()
    assert torch.equal(case.run([0], **CUTS["leaves"])[0], together[0])
    assert torch.equal(case.run([1])[0], together[1])
    for cut in ("spans", "whole", "few slots"):
        assert torch.equal(torch.cat(case.run([2, 1, 0], **CUTS[cut])), torch.cat(together[::-1])), cut


def test_decode_rows_keep_their_bits_beside_a_prompt(device: torch.device) -> None:
    case = Case([600, 0, 40], [1, 50, 3], device=device)
    together = case.run()
    assert torch.equal(case.run([0])[0], together[0])
    assert torch.equal(case.run([2])[0], together[2])


def test_invariant_tokens_do_not_depend_on_how_the_prompt_was_cut(device: torch.device) -> None:
    case = Case([0], [290], num_heads=4, num_kv_heads=1, device=device)
    whole = case.run(invariant=True)[0]
    for start, count in ((0, 101), (251, 39), (255, 1), (289, 1)):
        case.starts, case.counts = [start], [count]
        queries, case.queries = case.queries, [case.queries[0][start : start + count]]
        assert torch.equal(case.run(invariant=True)[0], whole[start : start + count]), (start, count)
        case.queries = queries


def test_invariance_is_asked_for_by_row(device: torch.device) -> None:
    case = Case([0, 30], [60, 50], device=device)
    alone = case.run([1], invariant=True)[0]
    assert torch.equal(case.run(invariant=[False, True])[1], alone)
    case.check(invariant=[True, False])


def test_launches_and_addresses_stay_for_replays(device: torch.device) -> None:
    """What is captured with one plan is right after another: launches read all that changes from the lists."""
    case = Case([700, 40, 3], [1, 1, 1], device=device)
    buffers = AttentionBuffers(4, 2, 16, 16, 8, 8, case.max_blocks, device=device)
    captured = buffers.plan([5], [1], [2])
    addresses = [x.data_ptr() for x in (buffers.lists, buffers.parts, buffers.stats)]
    expected = torch.cat(case.run())
    buffers.plan(case.starts, case.counts, [0, 1, 2])
    q = torch.cat(case.queries).to(device)
    out = torch.full_like(q, NAN)
    attention(q, case.layer, case.tables.to(device), captured, case.scale, out)
    assert torch.equal(out.cpu(), expected)
    assert addresses == [x.data_ptr() for x in (buffers.lists, buffers.parts, buffers.stats)]


def test_rows_without_tokens_and_lines_without_rows_are_left_alone(device: torch.device) -> None:
    case = Case([20, 30], [1, 1], device=device)
    buffers = AttentionBuffers(4, 2, 16, 16, 8, 8, case.max_blocks, device=device)
    plan = buffers.plan([20, 0, 30], [1, 0, 1], [0, 0, 1])
    q = torch.cat([*case.queries, torch.full((2, 4, 16), NAN)]).to(device)
    out = torch.full_like(q, 7.0)
    attention(q, case.layer, case.tables.to(device), plan, case.scale, out)
    assert torch.equal(out[:2].cpu(), torch.cat(case.run()))
    assert (out[2:] == 7).all()


def test_nan_in_a_query_stays_in_its_row(device: torch.device) -> None:
    case = Case([300, 310], [1, 1], device=device)
    clean = case.run()
    case.queries[0][0, 1] = NAN
    dirty = case.run()
    assert dirty[0][0, 1].isnan().all()
    assert torch.equal(dirty[0][0, [0, 2, 3]], clean[0][0, [0, 2, 3]])
    assert torch.equal(dirty[1], clean[1])
