"""The three kernels of paged attention: decode tiles, prefill tiles, and the merging of parts.

What they have in common:

- **Softmax states.** What is known of a query after some of its keys is (m, total, acc): the largest score, the sum of
  exp2(score - m), and the values weighted so. Scores carry log2(e), so that exp2 serves. ``_fold`` joins two states;
  joining the empty state (-inf, 0, 0) changes no bit.
- **Work lists.** A launch has as many programs as the chip holds at once. Each walks the list of items that the plan
  put into device memory (``attention_plan.py``), so grids never depend on the step.
- **Rows of a tile** are tokens times the query heads that share a key head: row ``r`` is token ``r // GROUP``, head
  ``r % GROUP`` of the group.
- Positions that no token of the tile may see are not read: what others left there, were it NaN, cannot get in.

``lists`` begins with a header of 8 numbers (decode items, their offset, prefill items, their offset, merges, their
offset, 0, 0). An item: first token, tokens, row of the block tables, position of the first token, first key, end of
keys, slot of the partial result (-1: the result is final), 0. A merge: token, first slot, slots from part to part,
parts, number of the first part, parts per span, 0, 0.
"""

from __future__ import annotations

import triton
import triton.language as tl

from tokenmill.kernels.triton.fp8 import decode_e4m3

LOG2_E = tl.constexpr(1.4426950408889634)
VALUE_LIFT = tl.constexpr(256.0)
"""With FP8, products are made in float16; this keeps probabilities times scales of values within its range."""


@triton.jit
def _fold(m, total, acc, m_next, total_next, acc_next):
    """The state of all keys seen by either. Written with explicit fma: the same bits wherever it is compiled in."""
    top = tl.maximum(m, m_next)
    finite = tl.where(top == float("-inf"), 0.0, top)
    keep, take = tl.exp2(m - finite), tl.exp2(m_next - finite)
    total = tl.fma(total, keep, total_next * take)
    acc = tl.fma(acc, tl.broadcast_to(keep[:, None], acc.shape), acc_next * take[:, None])
    return top, total, acc


@triton.jit
def _pointers(cache, line, TILE: tl.constexpr, D: tl.constexpr, DIMS: tl.constexpr):
    """To numbers ``[TILE, DIMS]``; ``line``: of each key, or (scalar) of the first of keys that lie together."""
    dims = tl.arange(0, DIMS)[None, :]
    if line.numel == 1:
        return cache + line.to(tl.int64) * D + tl.arange(0, TILE)[:, None] * D + dims
    else:
        return cache + line.to(tl.int64)[:, None] * D + dims


@triton.jit
def _read(
    cache, scales, line, seen, TILE: tl.constexpr, D: tl.constexpr, DIMS: tl.constexpr,
    FP8: tl.constexpr, NATIVE: tl.constexpr, COMPUTE: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Keys or values ``[TILE, DIMS]`` of one head, and the scale of each (1 without FP8)."""
    pointers = _pointers(cache, line, TILE, D, DIMS)
    mask = _mask(seen, D, DIMS)
    x = tl.load(pointers, mask, 0) if MASKED or D != DIMS else tl.load(pointers)
    if FP8:
        x = x.to(tl.float8e4nv, bitcast=True) if NATIVE else decode_e4m3(x, False)
        lines = scales + line + (tl.arange(0, TILE) if line.numel == 1 else 0)
        scale = tl.load(lines, seen, 0.0) if MASKED else tl.load(lines)
    else:
        scale = 1.0
    return x.to(COMPUTE), scale


@triton.jit
def _mask(there, D: tl.constexpr, DIMS: tl.constexpr):
    """``[lines, DIMS]``: lines that are there, dimensions that heads have."""
    if D == DIMS:
        return there[:, None]
    else:
        return there[:, None] & (tl.arange(0, DIMS) < D)[None, :]


@triton.jit
def _blocks(table, start, end, TILE: tl.constexpr, B: tl.constexpr):
    """The block of each key from ``start`` on. Loops ask for them a turn ahead, so that keys need not wait for them."""
    if B % TILE == 0:
        return tl.load(table + start // B, start < end, 0)
    else:
        key = start + tl.arange(0, TILE)
        return tl.load(table + key // B, key < end, 0)


@triton.jit
def _attend(
    q, position, m, total, acc, start, block, lowest, end,
    keys, values, k_scales, v_scales, kv_head, scale, softcap,
    HKV: tl.constexpr, B: tl.constexpr, D: tl.constexpr, TILE: tl.constexpr,
    WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, FP8: tl.constexpr, NATIVE: tl.constexpr, COMPUTE: tl.constexpr,
    MASKED: tl.constexpr,
):  # fmt: skip
    """The state after keys ``start … start + TILE - 1``. Not ``MASKED``: every row sees all of them."""
    DIMS: tl.constexpr = acc.shape[1]
    place = tl.arange(0, TILE)
    key = start + place
    seen = (key >= lowest) & (key < end) if MASKED else key >= 0
    if B % TILE == 0:  # all in one block, or each block within the tile, or neither
        line = (block * HKV + kv_head) * B + start % B
    elif TILE % B == 0:
        line = (block * HKV + kv_head) * B + place % B
    else:
        line = (block * HKV + kv_head) * B + key % B
    k, k_scale = _read(keys, k_scales, line, seen, TILE, D, DIMS, FP8, NATIVE, COMPUTE, MASKED)
    s = tl.dot(q, tl.trans(k), input_precision="ieee")
    if FP8:
        s = s * k_scale[None, :]
    if SOFTCAP:  # softcap * tanh(s / softcap); scale holds 1 / softcap, and softcap log2(e)
        s = softcap - 2 * softcap / (1 + tl.exp2(s * (2 * LOG2_E * scale)))
        scale = 1.0
    if MASKED:
        visible = seen[None, :] & (key[None, :] <= position[:, None])
        if WINDOW:
            visible = visible & (key[None, :] > position[:, None] - WINDOW)
        s = tl.where(visible, s, float("-inf"))
    top = tl.maximum(m, tl.max(s, 1) * scale)
    finite = tl.where(top == float("-inf"), 0.0, top) if MASKED else top
    p = tl.exp2(s * scale - finite[:, None])
    keep = tl.exp2(m - finite)
    total = total * keep + tl.sum(p, 1)
    v, v_scale = _read(values, v_scales, line, seen, TILE, D, DIMS, FP8, NATIVE, COMPUTE, MASKED)
    if FP8:
        p = p * (v_scale * VALUE_LIFT)[None, :]
    acc = tl.dot(p.to(COMPUTE), v, acc * keep[:, None], input_precision="ieee")
    return top, total, acc


@triton.jit
def _finish(m, total, acc, head, there, sinks, SINKS: tl.constexpr):
    """Values over their sum; a sink is one more score, of a key without a value."""
    if SINKS:
        sink = tl.load(sinks + head, there, 0.0).to(tl.float32) * LOG2_E
        top = tl.maximum(m, sink)
        keep = tl.exp2(m - top)
        total = tl.fma(total, keep, tl.exp2(sink - top))
        acc = acc * keep[:, None]
    return acc / total[:, None]


@triton.jit
def _write(
    m, total, acc, token, head, there, step, slot, out, parts, stats, sinks,
    HQ: tl.constexpr, D: tl.constexpr, SINKS: tl.constexpr, FP8: tl.constexpr,
):  # fmt: skip
    """To ``out`` if ``slot`` is -1, else as a part: slot ``slot + step`` for the ``step``-th token of the tile."""
    if FP8:
        acc = acc * (1 / VALUE_LIFT)
    dims = tl.arange(0, acc.shape[1])
    mask = _mask(there, D, acc.shape[1])
    if slot < 0:
        result = _finish(m, total, acc, head, there, sinks, SINKS)
        line = token.to(tl.int64) * HQ + head
        tl.store(out + line[:, None] * D + dims[None, :], result.to(out.dtype.element_ty), mask)
    else:
        line = (slot + step).to(tl.int64) * HQ + head
        tl.store(parts + line[:, None] * D + dims[None, :], acc, mask)
        tl.store(stats + line * 2, m, there)
        tl.store(stats + line * 2 + 1, total, there)


@triton.jit
def decode_tiles(
    q, keys, values, k_scales, v_scales, tables, lists, out, parts, stats, sinks, scale, softcap,
    HQ: tl.constexpr, HKV: tl.constexpr, D: tl.constexpr, DIMS: tl.constexpr, B: tl.constexpr, MAX_BLOCKS: tl.constexpr,
    ROWS: tl.constexpr, TILE: tl.constexpr, LEAF: tl.constexpr, SPAN: tl.constexpr,
    WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, SINKS: tl.constexpr,
    FP8: tl.constexpr, NATIVE: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """Few rows against many keys. Each leaf of LEAF keys from scratch, leaves folded into spans, spans into the row."""
    GROUP: tl.constexpr = HQ // HKV
    row = tl.arange(0, ROWS)
    step = row // GROUP
    dims = tl.arange(0, DIMS)
    num_work, offset = tl.load(lists) * HKV, tl.load(lists + 1)
    for work in tl.range(tl.program_id(0), num_work, tl.num_programs(0)):
        item = lists + offset + work // HKV * 8
        kv_head = work % HKV
        first_token, num_tokens, table_row = tl.load(item), tl.load(item + 1), tl.load(item + 2)
        first_position, begin, end, slot = tl.load(item + 3), tl.load(item + 4), tl.load(item + 5), tl.load(item + 6)
        table = tables + table_row.to(tl.int64) * MAX_BLOCKS
        token, head = first_token + step, kv_head * GROUP + row % GROUP
        there = step < num_tokens
        position = first_position + step
        lowest = tl.maximum(begin, first_position - WINDOW + 1) if WINDOW else begin
        line = token.to(tl.int64) * HQ + head
        query = tl.load(q + line[:, None] * D + dims[None, :], _mask(there, D, DIMS), 0).to(COMPUTE)

        nothing = tl.full([ROWS], float("-inf"), tl.float32)
        zero, zeros = tl.zeros([ROWS], tl.float32), tl.zeros([ROWS, DIMS], tl.float32)
        m, total, acc = nothing, zero, zeros
        span_m, span_total, span_acc = nothing, zero, zeros
        row_m, row_total, row_acc = nothing, zero, zeros
        block = _blocks(table, begin, end, TILE, B)
        for start in tl.range(begin, end, TILE):
            block_next = _blocks(table, start + TILE, end, TILE, B)
            m, total, acc = _attend(
                query, position, m, total, acc, start, block, lowest, end,
                keys, values, k_scales, v_scales, kv_head, scale, softcap,
                HKV, B, D, TILE, WINDOW, SOFTCAP, FP8, NATIVE, COMPUTE, True,
            )  # fmt: skip
            block = block_next
            if (start + TILE) % LEAF == 0:
                span_m, span_total, span_acc = _fold(span_m, span_total, span_acc, m, total, acc)
                m, total, acc = nothing, zero, zeros
            if (start + TILE) % SPAN == 0:
                row_m, row_total, row_acc = _fold(row_m, row_total, row_acc, span_m, span_total, span_acc)
                span_m, span_total, span_acc = nothing, zero, zeros
        span_m, span_total, span_acc = _fold(span_m, span_total, span_acc, m, total, acc)
        row_m, row_total, row_acc = _fold(row_m, row_total, row_acc, span_m, span_total, span_acc)
        _write(row_m, row_total, row_acc, token, head, there, step, slot, out, parts, stats, sinks, HQ, D, SINKS, FP8)


@triton.jit
def prefill_tiles(
    q, keys, values, k_scales, v_scales, tables, lists, out, parts, stats, sinks, scale, softcap,
    HQ: tl.constexpr, HKV: tl.constexpr, D: tl.constexpr, DIMS: tl.constexpr, B: tl.constexpr, MAX_BLOCKS: tl.constexpr,
    ROWS: tl.constexpr, TILE: tl.constexpr,
    WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, SINKS: tl.constexpr,
    FP8: tl.constexpr, NATIVE: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """Many rows against their keys. Items lie longest first; programs take them to and fro, so that loads are even."""
    num_work, offset = tl.load(lists + 2) * HKV, tl.load(lists + 3)
    program, num_programs = tl.program_id(0), tl.num_programs(0)
    for turn in tl.range(0, num_work, num_programs):
        back = turn // num_programs % 2
        work = turn + program + back * (num_programs - 1 - 2 * program)
        if work < num_work:
            _prefill_tile(
                q, keys, values, k_scales, v_scales, tables, lists + offset + work // HKV * 8, work % HKV,
                out, parts, stats, sinks, scale, softcap,
                HQ, HKV, D, DIMS, B, MAX_BLOCKS, ROWS, TILE, WINDOW, SOFTCAP, SINKS, FP8, NATIVE, COMPUTE,
            )  # fmt: skip


@triton.jit
def _prefill_tile(
    q, keys, values, k_scales, v_scales, tables, item, kv_head, out, parts, stats, sinks, scale, softcap,
    HQ: tl.constexpr, HKV: tl.constexpr, D: tl.constexpr, DIMS: tl.constexpr, B: tl.constexpr, MAX_BLOCKS: tl.constexpr,
    ROWS: tl.constexpr, TILE: tl.constexpr,
    WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, SINKS: tl.constexpr,
    FP8: tl.constexpr, NATIVE: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """First the tiles of keys that every row sees, then those that need a mask: below the window, and the diagonal."""
    GROUP: tl.constexpr = HQ // HKV
    row = tl.arange(0, ROWS)
    step = row // GROUP
    first_token, num_tokens, table_row = tl.load(item), tl.load(item + 1), tl.load(item + 2)
    first_position, begin, end, slot = tl.load(item + 3), tl.load(item + 4), tl.load(item + 5), tl.load(item + 6)
    table = tables + table_row.to(tl.int64) * MAX_BLOCKS
    token, head = first_token + step, kv_head * GROUP + row % GROUP
    there = step < num_tokens
    position = first_position + tl.minimum(step, num_tokens - 1)
    line = token.to(tl.int64) * HQ + head
    query = tl.load(q + line[:, None] * D + tl.arange(0, DIMS)[None, :], _mask(there, D, DIMS), 0).to(COMPUTE)

    # Tiles seen by all rows: from the last token's window on, up to the first token's position.
    lowest, num_below = begin, 0
    if WINDOW:
        lowest = tl.maximum(begin, first_position - WINDOW + 1)
        below = tl.maximum(tl.minimum(first_position + num_tokens - WINDOW, end) - begin, 0)
        num_below = tl.cdiv(below, TILE)
    full_begin = begin + num_below * TILE
    full_end = tl.maximum(begin + tl.maximum(tl.minimum(first_position + 1, end) - begin, 0) // TILE * TILE, full_begin)
    num_masked = num_below + tl.cdiv(tl.maximum(end - full_end, 0), TILE)

    m, total = tl.full([ROWS], float("-inf"), tl.float32), tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, DIMS], tl.float32)
    block = _blocks(table, full_begin, full_end, TILE, B)
    for start in tl.range(full_begin, full_end, TILE):
        block_next = _blocks(table, start + TILE, full_end, TILE, B)
        m, total, acc = _attend(
            query, position, m, total, acc, start, block, lowest, end,
            keys, values, k_scales, v_scales, kv_head, scale, softcap,
            HKV, B, D, TILE, WINDOW, SOFTCAP, FP8, NATIVE, COMPUTE, False,
        )  # fmt: skip
        block = block_next
    for number in tl.range(0, num_masked):
        start = tl.where(number < num_below, begin, full_end - num_below * TILE) + number * TILE
        block = _blocks(table, start, end, TILE, B)
        m, total, acc = _attend(
            query, position, m, total, acc, start, block, lowest, end,
            keys, values, k_scales, v_scales, kv_head, scale, softcap,
            HKV, B, D, TILE, WINDOW, SOFTCAP, FP8, NATIVE, COMPUTE, True,
        )  # fmt: skip
    _write(m, total, acc, token, head, there, step, slot, out, parts, stats, sinks, HQ, D, SINKS, FP8)


@triton.jit
def _pick(x, number: tl.constexpr):
    """Entry ``number`` along the first axis."""
    line = tl.arange(0, x.shape[0])
    if len(x.shape) == 1:
        return tl.sum(tl.where(line == number, x, 0.0), 0)
    else:
        return tl.sum(tl.where((line == number)[:, None], x, 0.0), 0)


@triton.jit
def merge_parts(
    lists, out, parts, stats, sinks,
    HQ: tl.constexpr, D: tl.constexpr, DIMS: tl.constexpr, BATCH: tl.constexpr, SINKS: tl.constexpr,
):  # fmt: skip
    """One token and query head after the other: parts folded in the order of keys, span by span."""
    dims = tl.arange(0, DIMS)
    num_work, offset = tl.load(lists + 4) * HQ, tl.load(lists + 5)
    for work in tl.range(tl.program_id(0), num_work, tl.num_programs(0)):
        item = lists + offset + work // HQ * 8
        head = work % HQ
        token, slot, stride, num_parts = tl.load(item), tl.load(item + 1), tl.load(item + 2), tl.load(item + 3)
        first, per_span = tl.load(item + 4), tl.load(item + 5)
        one = tl.arange(0, 1)
        nothing = tl.full([1], float("-inf"), tl.float32)
        zero, zeros = tl.zeros([1], tl.float32), tl.zeros([1, DIMS], tl.float32)
        span_m, span_total, span_acc = nothing, zero, zeros
        row_m, row_total, row_acc = nothing, zero, zeros
        for base in tl.range(0, num_parts, BATCH):
            number = base + tl.arange(0, BATCH)
            line = (slot + number * stride).to(tl.int64) * HQ + head
            some = number < num_parts
            ms = tl.load(stats + line * 2, some, 0.0)
            ls = tl.load(stats + line * 2 + 1, some, 0.0)
            accs = tl.load(parts + line[:, None] * D + dims[None, :], some[:, None] & (dims < D)[None, :], 0.0)
            for j in tl.static_range(BATCH):
                if base + j < num_parts:
                    m, total, acc = _pick(ms, j) + zero, _pick(ls, j) + zero, _pick(accs, j)[None, :] + zeros
                    span_m, span_total, span_acc = _fold(span_m, span_total, span_acc, m, total, acc)
                    if (first + base + j + 1) % per_span == 0:
                        row_m, row_total, row_acc = _fold(row_m, row_total, row_acc, span_m, span_total, span_acc)
                        span_m, span_total, span_acc = nothing, zero, zeros
        row_m, row_total, row_acc = _fold(row_m, row_total, row_acc, span_m, span_total, span_acc)
        result = _finish(row_m, row_total, row_acc, head + one, one == 0, sinks, SINKS)
        line = token.to(tl.int64) * HQ + head
        tl.store(out + line * D + dims[None, :], result.to(out.dtype.element_ty), (dims < D)[None, :])
