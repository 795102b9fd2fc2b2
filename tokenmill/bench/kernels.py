"""Each CPU kernel against the ceilings of this machine, which are measured in the same run.

A kernel moves bytes and does operations; it can take no less time than either allows::

    floor = max(bytes / bandwidth, operations / peak)        share = floor / measured

``bandwidth`` is what all threads together read from a gigabyte, ``peak`` what they multiply out of registers, in
bfloat16 or 8-bit integers (``kernels/cpu/src/probe.cpp``). Bytes are those that have to come from memory at least
once: weights, keys and values; what flows between kernels stays in caches and is not counted. So that weights and
caches really come from memory, copies of them are used in turn, more than the caches hold.

The bandwidth is measured again before and after every kernel. Figures are medians over runs.
Operations of an attention are those of the positions that a token may see.
"""

from __future__ import annotations

import ctypes
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenmill.core.model_config import ModelConfig
from tokenmill.kernels.cpu import ceilings
from tokenmill.kernels.cpu.ceilings import Ceilings
from tokenmill.kernels.cpu.kv import PagedKV
from tokenmill.kernels.cpu.library import Library, Pool, load
from tokenmill.kernels.cpu.packing import PackedMatrix
from tokenmill.kernels.cpu.program import Program, make_step
from tokenmill.kernels.cpu.records import (
    AttentionArgs,
    ChooseArgs,
    Epilogue,
    LinearArgs,
    Quantized,
    RmsNormArgs,
    RopeKvArgs,
    Rows,
    Step,
    WeightFormat,
)

COLD_BYTES = 300_000_000
"""Weights and caches in turn, together more than any cache holds."""
PROBE_BYTES = 1_000_000_000
PROBE_ROUNDS = 3_000_000
BLOCK_SIZE = 16
GROUP = 128

SHAPES: Mapping[str, Mapping[str, int]] = {
    "qwen3-0.6b": {"hidden": 1024, "inner": 3072, "heads": 16, "kv_heads": 8, "head_dim": 128, "vocab": 151_936},
    "llama-3.2-1b": {"hidden": 2048, "inner": 8192, "heads": 32, "kv_heads": 8, "head_dim": 64, "vocab": 128_256},
}


@dataclass(frozen=True, slots=True)
class Case:
    """One kernel at one size: a program of ``num_calls`` equal calls on different memory."""

    kernel: str
    size: str
    program: Program
    step: Step
    num_calls: int
    num_bytes: float
    operations: float
    integers: bool
    keep: tuple[Any, ...]
    """What the addresses point to."""


def run(
    shape: str,
    *,
    rows: Sequence[int] = (1, 8, 32, 512),
    num_threads: int,
    repeat: int = 9,
    progress: Callable[[str], None] = lambda name: None,
) -> dict[str, Any]:
    """Measure every kernel at the sizes of a layer of ``shape``."""
    library = load()
    pool = library.new_pool(num_threads)
    progress("ceilings")
    found = measure_ceilings(library, pool, repeat)
    reader = Reader(library, pool)
    figures = []
    for case in _cases(SHAPES[shape], library, rows):
        progress(f"{case.kernel}, {case.size}")
        before = reader.bytes_per_s()
        seconds = _seconds(partial(case.program.run, pool, case.step), repeat) / case.num_calls
        now = replace(found, bytes_per_s=max(before, reader.bytes_per_s()))
        floor, bound = now.floor_s(case.num_bytes, case.operations, integers=case.integers)
        figures.append(
            {
                "kernel": case.kernel,
                "size": case.size,
                "microseconds": seconds * 1e6,
                "gigabytes_per_s": case.num_bytes / seconds / 1e9,
                "gigaops_per_s": case.operations / seconds / 1e9,
                "bandwidth_gigabytes_per_s": now.bytes_per_s / 1e9,
                "bound": bound,
                "share": floor / seconds,
            }
        )
    return {
        "shape": shape,
        "isa": library.isa.name,
        "threads": num_threads,
        "ceilings": {
            "gigabytes_per_s": found.bytes_per_s / 1e9,
            "bf16_gigaops_per_s": found.bf16_per_s / 1e9,
            "int8_gigaops_per_s": found.int8_per_s / 1e9,
        },
        "kernels": figures,
    }


class Reader(ceilings.Reader):
    """A reader of a gigabyte: no cache holds a share of it that matters."""

    def __init__(self, library: Library, pool: Pool) -> None:
        super().__init__(library, pool, PROBE_BYTES)


def measure_ceilings(library: Library, pool: Pool, repeat: int) -> Ceilings:
    """The best of several runs each, long enough for a benchmark."""
    return ceilings.measure(library, pool, repeat, PROBE_BYTES, PROBE_ROUNDS)


def _seconds(call: Callable[[], None], repeat: int) -> float:
    return statistics.median(ceilings.times(call, repeat))


# ---- cases ------------------------------------------------------------------------------------------------


def _cases(shape: Mapping[str, int], library: Library, rows: Sequence[int]) -> Iterator[Case]:
    hidden, inner, head = shape["hidden"], shape["inner"], shape["head_dim"]
    qkv = (shape["heads"] + 2 * shape["kv_heads"]) * head
    for form in WeightFormat:
        for name, width, out in (("qkv", hidden, qkv), ("gate-up", hidden, 2 * inner), ("down", inner, hidden)):
            yield from linear_cases(library, name, form, width, out, rows)
    for count, context in ((1, 1024), (8, 1024), (32, 1024), (1, 8192)):
        for form in (WeightFormat.BF16, WeightFormat.INT8):
            yield _attention(library, shape, form, [context - 1] * count, [1] * count, f"{count} × 1 of {context}")
    for new, past in ((512, 0), (2048, 0), (512, 1536)):
        yield _attention(library, shape, WeightFormat.BF16, [past], [new], f"{new} after {past}")
    for count in rows:
        yield _rms_norm(library, hidden, count)
        yield _rope_kv(library, shape, count)
    yield _choose(library, shape["vocab"], 8)


def linear_cases(
    library: Library, name: str, form: WeightFormat, width: int, out: int, rows: Sequence[int]
) -> Iterator[Case]:
    """A product by weights that come from memory, for each number of ``rows``."""
    group = 0 if form is WeightFormat.BF16 else GROUP
    first = PackedMatrix.allocate(form, out, width, group)
    copies = [first, *(PackedMatrix.allocate(form, out, width, group) for _ in range(COLD_BYTES // first.nbytes))]
    for matrix in copies:
        matrix.data[:] = 0x3C
        matrix.scales[:] = 0.01
    for count in rows:
        x = np.full((count, width), 0x3F80, np.uint16)
        groups = width // GROUP
        values, scales = np.ones((count, width), np.int8), np.ones((count, groups), np.float32)
        sums = np.full((count, groups), GROUP, np.int32)
        result = np.zeros((count, out), np.float32)
        quantized = Quantized(values.ctypes.data, scales.ctypes.data, sums.ctypes.data)
        program = Program(library)
        for matrix in copies:
            args = LinearArgs(
                matrix.record(), None, x.ctypes.data, quantized, result.ctypes.data, Epilogue.STORE, Rows.TOKENS
            )
            program.add(f"linear_{form.name.lower()}", args)
        step, arrays = _plain_step(count)
        yield Case(
            f"linear {form.name.lower()} {name}",
            f"{count} rows",
            program,
            step,
            len(copies),
            first.nbytes,
            2.0 * count * width * out,
            group > 0,
            (copies, x, values, scales, sums, result, arrays),
        )


def _attention(
    library: Library, shape: Mapping[str, int], form: WeightFormat, starts: list[int], counts: list[int], size: str
) -> Case:
    heads, kv_heads, head = shape["heads"], shape["kv_heads"], shape["head_dim"]
    blocks_each = -(-(starts[0] + counts[0]) // BLOCK_SIZE)
    position_bytes = (
        2 * kv_heads * (head * (1 if form is WeightFormat.INT8 else 2) + (4 if form is WeightFormat.INT8 else 0))
    )
    num_bytes = len(starts) * blocks_each * BLOCK_SIZE * position_bytes
    copies = 1 + COLD_BYTES // num_bytes
    config = _one_layer(shape, copies)
    num_blocks = len(starts) * blocks_each
    kv = PagedKV(config, num_blocks, BLOCK_SIZE, form)
    for layer in range(copies):
        cache = kv.record(layer)
        for address in (cache.keys, cache.values):  # pages that were never written share one page of zeros
            ctypes.memset(address, 0x3C, num_blocks * kv.block_bytes)
        for address in (cache.key_scales, cache.value_scales) if kv.scale_bytes else ():
            ctypes.memset(address, 0x3C, num_blocks * kv.scale_bytes)
    total = sum(counts)
    q, out = np.full((total, heads * head), 0x3C00, np.uint16), np.zeros((total, heads * head), np.uint16)
    program = Program(library)
    for layer in range(copies):
        args = AttentionArgs(q.ctypes.data, kv.record(layer), out.ctypes.data, heads, 0, head**-0.5)
        program.add("attention", args)
    order = np.random.default_rng(0).permutation(num_blocks).astype(np.int32).reshape(len(starts), -1)
    positions = np.concatenate([np.arange(s, s + c, dtype=np.int32) for s, c in zip(starts, counts, strict=True)])
    begins = np.cumsum([0, *counts]).astype(np.int32)
    arrays = (np.zeros(total, np.int32), positions, np.zeros(total, np.int32), begins, order, np.zeros(0, np.int32))
    seen = float(sum(int(p) + 1 for p in positions))
    return Case(
        f"attention {form.name.lower()}",
        size,
        program,
        make_step(*arrays),
        copies,
        num_bytes,
        4.0 * seen * heads * head,
        False,
        (kv, q, out, arrays),
    )


def _rms_norm(library: Library, hidden: int, count: int) -> Case:
    x, weight = np.ones((count, hidden), np.float32), np.ones(hidden, np.float32)
    out = np.zeros((count, hidden), np.uint16)
    program = Program(library)
    args = RmsNormArgs(x.ctypes.data, weight.ctypes.data, out.ctypes.data, Quantized(), hidden, 0, 1e-6, Rows.TOKENS)
    program.add("rms_norm", args)
    step, arrays = _plain_step(count)
    num_bytes = count * hidden * 6
    return Case(
        "rms_norm", f"{count} rows", program, step, 1, num_bytes, 4.0 * count * hidden, False, (x, weight, out, arrays)
    )


def _rope_kv(library: Library, shape: Mapping[str, int], count: int) -> Case:
    heads, kv_heads, head = shape["heads"], shape["kv_heads"], shape["head_dim"]
    kv = PagedKV(_one_layer(shape, 1), -(-count // BLOCK_SIZE), BLOCK_SIZE, WeightFormat.BF16)
    qkv = np.ones((count, (heads + 2 * kv_heads) * head), np.float32)
    norm, q = np.ones(head, np.float32), np.zeros((count, heads * head), np.uint16)
    cos, sin = np.ones((count, head // 2), np.float32), np.zeros((count, head // 2), np.float32)
    program = Program(library)
    args = RopeKvArgs(
        qkv.ctypes.data,
        norm.ctypes.data,
        norm.ctypes.data,
        cos.ctypes.data,
        sin.ctypes.data,
        q.ctypes.data,
        kv.record(0),
        heads,
        1e-6,
    )
    program.add("rope_kv", args)
    step, arrays = _plain_step(count)
    num_bytes = qkv.nbytes + q.nbytes + 4 * count * kv_heads * head
    return Case(
        "rope_kv",
        f"{count} rows",
        program,
        step,
        1,
        num_bytes,
        10.0 * qkv.size,
        False,
        (kv, qkv, norm, q, cos, sin, arrays),
    )


def _choose(library: Library, vocab: int, count: int) -> Case:
    """Half of the rows greedy, half drawn."""
    logits, ids = np.zeros((count, vocab), np.float32), np.zeros(count, np.int32)
    temperatures, uniforms = np.arange(count, dtype=np.float32) % 2, np.full(count, 0.5)
    filters = (np.zeros(count, np.int32), np.ones(count, np.float32), np.zeros(count, np.float32))
    held = (logits, temperatures, uniforms, *filters, ids)
    program = Program(library)
    program.add("choose", ChooseArgs(*(array.ctypes.data for array in held), vocab))
    step, arrays = _plain_step(count)
    return Case("choose", f"{count} rows", program, step, 1, logits.nbytes, 4.0 * logits.size, False, (held, arrays))


def _plain_step(count: int) -> tuple[Step, tuple[NDArray[np.int32], ...]]:
    """One row of ``count`` tokens, all of them outputs."""
    tokens = np.arange(count, dtype=np.int32)
    table = np.arange(-(-count // BLOCK_SIZE), dtype=np.int32)[None]
    arrays = (tokens, tokens, tokens, np.array([0, count], np.int32), table, tokens)
    return make_step(*arrays), arrays


def _one_layer(shape: Mapping[str, int], num_layers: int) -> ModelConfig:
    """A configuration with the cache of ``num_layers`` layers."""
    return ModelConfig.from_hf(
        {
            "architectures": ["LlamaForCausalLM"],
            "vocab_size": shape["vocab"],
            "hidden_size": shape["hidden"],
            "intermediate_size": shape["inner"],
            "num_hidden_layers": num_layers,
            "num_attention_heads": shape["heads"],
            "num_key_value_heads": shape["kv_heads"],
            "head_dim": shape["head_dim"],
            "max_position_embeddings": 131_072,
        }
    )
