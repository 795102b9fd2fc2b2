"""Ragged attention over a paged KV cache: prefill, decode and mixed rows in one call.

``AttentionBuffers`` owns what a step needs beside the queries: the work lists and the partial results. ``plan``, once a
step, cuts the step into work (``attention_plan.py``) and sends it to the device in one copy; ``attention``, once a
layer, launches the kernels that walk it (``attention_kernels.py``). Grids, addresses and shapes are the same from step
to step, so a captured launch can be replayed after another ``plan``.

What a token's result depends on: with decode tiles (rows of few tokens, and every row with ``invariant``), on the
queries, keys and values that it sees and on nothing else: not on company, order, chunks of the prompt or how the work
was cut. With prefill tiles the last bits also depend on where the prompt was cut and, for few tiles, on how many there
are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from tokenmill.kernels.triton.attention_kernels import LOG2_E, decode_tiles, merge_parts, prefill_tiles
from tokenmill.kernels.triton.attention_plan import (
    HEADER,
    ITEM,
    LEAF,
    SPAN,
    Ints,
    Numbers,
    Shape,
    Tiles,
    cut,
    decode_units,
    prefill_units,
    tile,
)
from tokenmill.kernels.triton.device import chip, has_native_e4m3, is_interpreted
from tokenmill.kernels.triton.kv import LayerKV

_STAGINGS = 4


@dataclass(frozen=True, slots=True)
class TileConfig:
    """How a kernel is cut and launched."""

    rows: int
    """Rows of a query tile: tokens times query heads of a group."""
    keys: int
    """Keys per step of the loop; divides 256."""
    warps: int
    stages: int
    programs: int
    """Per multiprocessor; all must be resident at once, for each walks its share of the list."""

    def launch_options(self) -> dict[str, int]:
        """Warps and stages; on NVIDIA also the registers of a thread with which all programs are resident."""
        options = {"num_warps": self.warps, "num_stages": self.stages}
        registers = 65536 // (32 * self.warps * self.programs) // 8 * 8
        if chip().vendor == "nvidia" and registers < 255 and not is_interpreted():
            options["maxnreg"] = registers
        return options


DECODE = {64: TileConfig(16, 64, 4, 4, 4), 128: TileConfig(16, 32, 4, 4, 3), 256: TileConfig(16, 32, 4, 3, 2)}
INTERPRETED = TileConfig(16, 128, 4, 1, 1), TileConfig(128, 128, 4, 1, 1)
"""For decode and prefill tiles in Triton's interpreter, whose time goes by operations, not numbers."""
PREFILL = {64: TileConfig(128, 128, 8, 3, 1), 128: TileConfig(128, 64, 8, 3, 1), 256: TileConfig(128, 32, 8, 3, 1)}


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    """One step's work: how many items of each kind the lists hold. The lists themselves are the buffers'."""

    buffers: AttentionBuffers
    num_decode: int
    num_prefill: int
    num_merges: int

    @property
    def merges(self) -> bool:
        """Whether the merging is launched: always where all tiles are decode tiles, so that replays may need it."""
        return self.num_merges > 0 or self.num_prefill == 0


class AttentionBuffers:
    """Work lists and partial results of attention with one window, for steps of at most so many tokens and rows."""

    def __init__(
        self,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        block_size: int,
        max_tokens: int,
        max_rows: int,
        max_blocks_per_row: int,
        window: int | None = None,
        softcap: float | None = None,
        device: torch.device | str = "cuda",
    ) -> None:
        self.num_heads, self.num_kv_heads, self.head_dim = num_heads, num_kv_heads, head_dim
        self.block_size, self.max_blocks_per_row = block_size, max_blocks_per_row
        self.window, self.softcap = window, softcap
        self.dims = max(16, triton.next_power_of_2(head_dim))
        group = num_heads // num_kv_heads
        sizes = min(size for size in DECODE if size >= min(self.dims, 256))
        self.decode, self.prefill = INTERPRETED if is_interpreted() else (DECODE[sizes], PREFILL[sizes])
        multiprocessors = 2 if is_interpreted() else chip().num_multiprocessors
        self.shape = Shape(
            num_kv_heads=num_kv_heads,
            window=window,
            decode_tokens=self.decode.rows // group,
            prefill_tokens=self.prefill.rows // group,
            decode_programs=multiprocessors * self.decode.programs,
            prefill_programs=multiprocessors * self.prefill.programs,
            num_multiprocessors=multiprocessors,
            num_slots=max(1024, 16 * multiprocessors * self.decode.programs // num_kv_heads),
        )
        most = HEADER + ITEM * (max_tokens + max_rows + 2 * self.shape.num_slots)
        on_gpu = torch.device(device).type == "cuda"
        self.lists = torch.zeros(most, dtype=torch.int32, device=device)
        self.parts = torch.empty((self.shape.num_slots, num_heads, head_dim), dtype=torch.float32, device=device)
        self.stats = torch.empty((self.shape.num_slots, num_heads, 2), dtype=torch.float32, device=device)
        self._staging = [torch.zeros(most, dtype=torch.int32, pin_memory=on_gpu) for _ in range(_STAGINGS)]
        self._copied = [torch.cuda.Event() if on_gpu else None for _ in range(_STAGINGS)]
        self._turn = 0

    @property
    def num_bytes(self) -> int:
        """Of device memory."""
        return sum(tensor.numel() * tensor.element_size() for tensor in (self.lists, self.parts, self.stats))

    def plan(
        self,
        starts: Sequence[int],
        counts: Sequence[int],
        table_rows: Sequence[int],
        *,
        invariant: bool | Sequence[bool] = False,
    ) -> AttentionPlan:
        """Row ``i`` computes ``counts[i]`` tokens from position ``starts[i]`` on, its blocks in line ``table_rows[i]``.

        The tokens of all rows lie one after the other in the order of the rows. The plan holds until the next one.
        ``invariant``, of all rows or of each: a token's bits do not depend on where the prompt was cut (slower).
        """
        shape = self.shape
        starts_, counts_, rows_ = (np.asarray(x, dtype=np.int64) for x in (starts, counts, table_rows))
        small = (counts_ <= shape.decode_tokens) | np.asarray(invariant, dtype=bool)
        per_tile = np.where(small, shape.decode_tokens, shape.prefill_tokens)
        tiles = tile(starts_, counts_, rows_, per_tile)
        if small.all():
            decode, merges, _ = self._cut(tiles, decode_units, 0)
            prefill = decode[:0]
        else:
            small = np.repeat(small, -(-counts_ // per_tile))
            decode, decode_merges, slot = self._cut(tiles[small], decode_units, 0)
            prefill, prefill_merges, _ = self._cut(tiles[~small], prefill_units, slot)
            merges = np.concatenate([decode_merges, prefill_merges])
        self._send(decode, prefill, merges)
        return AttentionPlan(self, len(decode), len(prefill), len(merges))

    def _cut(self, tiles: Tiles, units: Callable[[Ints, Ints, Shape], Ints], slot: int) -> tuple[Numbers, Numbers, int]:
        """Longest first, so that what is left for the end is short."""
        tiles = tiles[np.argsort(-tiles.position, kind="stable")]
        begin = tiles.begin(self.shape.window)
        return cut(tiles, begin, units(begin, tiles.end, self.shape), slot, self.shape.num_slots)

    def _send(self, decode: Numbers, prefill: Numbers, merges: Numbers) -> None:
        turn = self._turn = (self._turn + 1) % _STAGINGS
        event = self._copied[turn]
        if event is not None:
            event.synchronize()
        staging = self._staging[turn].numpy()
        at = HEADER
        for number, items in enumerate((decode, prefill, merges)):
            staging[2 * number : 2 * number + 2] = len(items), at
            staging[at : at + items.size] = items.reshape(-1)
            at += items.size
        self.lists[:at].copy_(self._staging[turn][:at], non_blocking=True)
        if event is not None:
            event.record()


def _score_factors(scale: float, softcap: float | None) -> tuple[float, float]:
    """What a product of query and key is multiplied with, and the cap; scores carry log2(e)."""
    if softcap is None:
        return scale * LOG2_E.value, 0.0
    return scale / softcap, softcap * LOG2_E.value


def _compute_dtype(queries: torch.dtype, fp8: bool) -> tl.dtype:
    """In what products are made. Float8 converts to float16 by one instruction; the interpreter has no bf16."""
    if is_interpreted() or queries == torch.float32:
        return tl.float32
    return tl.float16 if fp8 else tl.bfloat16


def attention(
    q: Tensor,
    layer: LayerKV,
    tables: Tensor,
    plan: AttentionPlan,
    scale: float,
    out: Tensor,
    *,
    sinks: Tensor | None = None,
) -> None:
    """``out = softmax(scale q kᵀ) v`` for every token of the plan.

    ``q``, ``out``: ``[T, num_heads, head_dim]``, contiguous. ``layer`` holds this step's own keys and values already.
    ``tables``: ``[max_rows, max_blocks_per_row]`` int32: the blocks of each row. ``sinks``: ``[num_heads]`` float32: a
    score per head that joins the softmax's sum without a value. Lines of ``out`` that no row has are left as they are.
    """
    buffers, shape = plan.buffers, plan.buffers.shape
    keys, values, k_scales, v_scales = layer.for_kernels()
    unused = buffers.stats
    heads = {"HQ": buffers.num_heads, "D": buffers.head_dim, "DIMS": buffers.dims, "SINKS": sinks is not None}
    sinks = unused if sinks is None else sinks
    common = (
        q, keys, values, unused if k_scales is None else k_scales, unused if v_scales is None else v_scales, tables,
        buffers.lists, out, buffers.parts, buffers.stats, sinks,
        *_score_factors(scale, buffers.softcap),
    )  # fmt: skip
    constants = heads | {
        "HKV": buffers.num_kv_heads,
        "B": buffers.block_size,
        "MAX_BLOCKS": tables.stride(0),
        "WINDOW": buffers.window or 0,
        "SOFTCAP": buffers.softcap is not None,
        "FP8": k_scales is not None,
        "NATIVE": has_native_e4m3(),
        "COMPUTE": _compute_dtype(q.dtype, k_scales is not None),
    }
    if plan.num_decode:
        config = buffers.decode
        decode_tiles[(shape.decode_programs,)](
            *common, **constants, ROWS=config.rows, TILE=config.keys, LEAF=LEAF, SPAN=SPAN,
            **config.launch_options(),
        )  # fmt: skip
    if plan.num_prefill:
        config = buffers.prefill
        prefill_tiles[(shape.prefill_programs,)](
            *common, **constants, ROWS=config.rows, TILE=config.keys, **config.launch_options()
        )
    if plan.merges:
        merge_parts[(shape.decode_programs,)](
            buffers.lists, out, buffers.parts, buffers.stats, sinks, **heads, BATCH=16, num_warps=1
        )
