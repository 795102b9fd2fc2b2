"""The library of CPU kernels: records, instruction sets, threads, and the small kernels, against NumPy."""

from __future__ import annotations

import ctypes
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.numeric.sampling_support import reference_distribution
from tokenmill.core.errors import ConfigError
from tokenmill.core.params import SamplingParams
from tokenmill.kernels.cpu import build as building
from tokenmill.kernels.cpu import isa as isas
from tokenmill.kernels.cpu.library import Library, load
from tokenmill.kernels.cpu.memory import HUGE_PAGE_BYTES, Buffer
from tokenmill.kernels.cpu.packing import PackedMatrix
from tokenmill.kernels.cpu.program import Program, make_step
from tokenmill.kernels.cpu.records import (
    RECORDS,
    ChooseArgs,
    Epilogue,
    LinearArgs,
    ProbeArgs,
    QuantizeArgs,
    Quantized,
    RmsNormArgs,
    Rows,
    Step,
    WeightFormat,
)


@pytest.fixture(scope="module", params=[isa.name for isa in isas.available_isas()])
def library(request: pytest.FixtureRequest) -> Library:
    return load(request.param)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def run(library: Library, kernel: str, args: object, num_tokens: int, outputs: list[int], threads: int = 2) -> None:
    program = Program(library)
    program.add(kernel, args)  # type: ignore[arg-type]
    tokens = ints(*range(num_tokens))
    arrays = (tokens, tokens, tokens, ints(0, num_tokens), np.zeros((1, 1), np.int32), ints(*outputs))
    program.run(library.new_pool(threads), make_step(*arrays))


def choose(
    library: Library,
    logits: np.ndarray,
    temperatures: list[float],
    uniforms: list[float] | None = None,
    params: SamplingParams = SamplingParams(),  # noqa: B008
) -> list[int]:
    count, size = logits.shape
    arrays = (
        np.ascontiguousarray(logits),
        np.array(temperatures, np.float32),
        np.array(uniforms if uniforms is not None else [0.5] * count),
        np.full(count, max(params.top_k, 0), np.int32),
        np.full(count, params.top_p, np.float32),
        np.full(count, params.min_p, np.float32),
        np.zeros(count, np.int32),
    )
    args = ChooseArgs(*(array.ctypes.data for array in arrays), size)
    run(library, "choose", args, count, list(range(count)))
    return arrays[-1].tolist()


def to_float(bf16: np.ndarray) -> np.ndarray:
    return (bf16.astype(np.uint32) << 16).view(np.float32)


def test_records_have_the_sizes_that_the_kernels_think(library: Library) -> None:
    assert library.record_sizes() == [ctypes.sizeof(record) for record in RECORDS]


@pytest.mark.parametrize("size", [16, 64, 100, 256])
@pytest.mark.parametrize("threads", [1, 3])
def test_rms_norm(library: Library, size: int, threads: int) -> None:
    chance = np.random.default_rng(size)
    x = chance.standard_normal((9, size), np.float32)
    weight = chance.standard_normal(size, np.float32)
    out = np.zeros((9, size), np.uint16)
    args = RmsNormArgs(x.ctypes.data, weight.ctypes.data, out.ctypes.data, Quantized(), size, 0, 1e-5, Rows.TOKENS)
    run(library, "rms_norm", args, 9, [], threads)
    wanted = x / np.sqrt((x.astype(np.float64) ** 2).mean(1, keepdims=True) + 1e-5) * weight
    np.testing.assert_allclose(to_float(out), wanted, rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize("group", [32, 64, 128])
def test_rms_norm_of_the_outputs_alone_quantised(library: Library, group: int) -> None:
    chance = np.random.default_rng(group)
    x = chance.standard_normal((9, 256), np.float32)
    weight = chance.standard_normal(256, np.float32)
    values, scales = np.zeros((3, 256), np.int8), np.zeros((3, 256 // group), np.float32)
    sums = np.zeros((3, 256 // group), np.int32)
    quantized = Quantized(values.ctypes.data, scales.ctypes.data, sums.ctypes.data)
    args = RmsNormArgs(x.ctypes.data, weight.ctypes.data, None, quantized, 256, group, 1e-5, Rows.OUTPUTS)
    run(library, "rms_norm", args, 9, [8, 0, 5])
    wanted = (x / np.sqrt((x**2).mean(1, keepdims=True) + 1e-5) * weight)[[8, 0, 5]].reshape(3, -1, group)
    grouped = values.reshape(3, -1, group)
    np.testing.assert_allclose(scales, np.abs(wanted).max(2) / 127, rtol=1e-5)
    assert np.abs(grouped * scales[:, :, None] - wanted).max() <= scales.max() * 0.51
    assert (grouped.astype(int).sum(2) == sums).all()


def test_a_row_that_is_not_finite_stays_not_finite(library: Library) -> None:
    """Quantised, a NaN would be a number: the scale carries it on. The other rows and groups never notice."""
    x = np.full((3, 64), 0x3F80, np.uint16)
    x[1, 40] = 0x7FC0
    values, scales = np.zeros((3, 64), np.int8), np.zeros((3, 2), np.float32)
    sums = np.zeros((3, 2), np.int32)
    args = QuantizeArgs(x.ctypes.data, Quantized(values.ctypes.data, scales.ctypes.data, sums.ctypes.data), 64, 32, 1)
    run(library, "quantize", args, 3, [])
    assert np.isnan(scales[1, 1]) and np.isfinite(scales).sum() == 5
    assert (values[[0, 2]] == 127).all() and (sums[[0, 2]] == 32 * 127).all()


def test_argmax(library: Library) -> None:
    chance = np.random.default_rng(0)
    logits = chance.standard_normal((8, 77), np.float32)
    logits[1, [3, 50]] = 9.0  # a tie goes to the lowest
    logits[2, 76] = 9.0  # in the tail
    logits[3, 5] = np.nan
    logits[4, 5] = np.inf
    logits[5] = -np.inf
    logits[6, :76] = -np.inf
    logits[7] = -3e38
    assert choose(library, logits, [0.0] * 8) == [int(logits[0].argmax()), 3, 76, -1, -1, -1, 76, 0]
    assert choose(library, logits, [-1.0] * 8) == [-1] * 8
    assert choose(library, logits, [1.0] * 8, [0.999999] * 8)[3:7] == [-1, -1, -1, 76]


def test_draws_invert_the_cumulative_distribution(library: Library) -> None:
    """Against sums in float64, at vocabularies around the stretches; alone and in company."""
    chance = np.random.default_rng(1)
    for size in (5, 16, 1000, 1024, 1030, 5000):
        logits = 3 * chance.standard_normal((40, size), np.float32)
        logits[:, 1] = -np.inf
        temperatures = chance.uniform(0.3, 2.0, 40).astype(np.float32)
        uniforms = chance.uniform(0, 1, 40)
        uniforms[:4] = 0.0, 1 - 1e-16, 0.5, 1e-12
        found = choose(library, logits, temperatures.tolist(), uniforms.tolist())
        scaled = logits.astype(np.float64) / temperatures[:, None]
        weights = np.exp(scaled - scaled.max(1, keepdims=True))
        below = weights.cumsum(1) / weights.sum(1, keepdims=True)
        for row, token in enumerate(found):
            assert token != 1
            before = below[row, token - 1] if token else 0.0
            assert before - 1e-5 <= uniforms[row] <= below[row, token] + 1e-5
        alone = [choose(library, logits[i : i + 1], [temperatures[i]], [uniforms[i]])[0] for i in range(0, 40, 7)]
        assert alone == found[::7]


FILTERS = {
    "top_k": SamplingParams(top_k=5),
    "wide top_k": SamplingParams(top_k=200),
    "top_p": SamplingParams(top_p=0.8),
    "min_p": SamplingParams(min_p=0.05),
    "cold": SamplingParams(temperature=0.6, top_k=20, top_p=0.95),
    "all": SamplingParams(temperature=1.5, top_k=30, top_p=0.9, min_p=0.02),
}


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize("size", [10, 64, 700, 5000])
def test_filtered_draws_follow_the_reference(library: Library, name: str, size: int) -> None:
    """Against float64 from the likeliest down; alone and in company; ties by token id."""
    params, count = FILTERS[name], 12
    chance = np.random.default_rng(size)
    logits = 3 * chance.standard_normal((count, size), np.float32)
    logits[1, 4:8] = logits[1].max() + 1
    logits[2, 3] = -np.inf
    uniforms = chance.uniform(0, 1, count)
    uniforms[:2] = 0.0, 1 - 1e-16
    found = choose(library, logits, [params.temperature] * count, uniforms.tolist(), params)
    for row, token in enumerate(found):
        share = reference_distribution(logits[row].astype(np.float64), params)
        order = sorted(range(size), key=lambda t, row=row: (-logits[row, t], t))
        below = np.cumsum([share[t] for t in order])
        place = order.index(token)
        assert share[token] > 0
        assert (below[place - 1] if place else 0.0) - 1e-5 <= uniforms[row] <= below[place] + 1e-5
    alone = [choose(library, logits[i : i + 1], [params.temperature], [uniforms[i]], params)[0] for i in range(count)]
    assert alone == found


def test_a_choice_among_more_than_is_looked_at_is_left_to_the_host(library: Library) -> None:
    logits = np.random.default_rng(0).uniform(0, 0.1, (2, 5000)).astype(np.float32)
    for params in (SamplingParams(top_p=0.9), SamplingParams(min_p=0.01), SamplingParams(top_k=2000)):
        assert choose(library, logits, [1.0] * 2, params=params) == [-1, -1]
    assert min(choose(library, logits, [1.0] * 2, params=SamplingParams(top_k=1024))) >= 0
    logits[0, 5] = np.nan
    assert choose(library, logits, [1.0] * 2, params=SamplingParams(top_k=5))[0] == -1


def test_several_threads_may_each_have_a_pool(library: Library) -> None:
    """Runs of different pools at the same time do not disturb each other."""

    def work() -> None:
        test_argmax(library)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()


def test_the_interpreter_runs_on_while_a_kernel_does() -> None:
    """A long call lets go of the lock: another thread counts meanwhile."""
    library = load()
    data, sink = Buffer.allocate(64), np.zeros((1, 16), np.float32)
    pool, program = library.new_pool(1), Program(library)
    program.add("probe_bf16", ProbeArgs(data.address, 64, 30_000_000, sink.ctypes.data))
    runner = threading.Thread(target=program.run, args=(pool, Step()))
    runner.start()
    counted = 0
    while runner.is_alive():
        counted += 1
        time.sleep(0.001)
    assert counted > 5


# ---- building ---------------------------------------------------------------------------------------------


def test_without_a_compiler_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(building.NoCompiler, match="no C\\+\\+ compiler"):
        building.find_compiler()


def test_a_compiler_that_fails_gives_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake = tmp_path / "g++"
    fake.write_text("#!/bin/sh\necho 'x.cpp:1: error: this is no compiler' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("CXX", str(fake))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(building.NoCompiler, match="error: this is no compiler"):
        building.build(isas.ISAS[-1])
    assert not list(tmp_path.rglob("*.so"))


def test_every_call_knows_the_next_product(library: Library) -> None:
    """Of which threads that wait fetch the beginning; without one they only wait."""
    program = Program(library)
    products = [LinearArgs(), LinearArgs()]
    calls = (("rms_norm", RmsNormArgs()), ("linear_bf16", products[0]), ("quantize", QuantizeArgs()))
    for name, args in (*calls, ("linear_int8", products[1]), ("probe_read", ProbeArgs())):
        program.add(name, args)
    first, second = map(ctypes.addressof, products)
    assert [call.ahead for call in program.records()] == [first, second, second, None, None]


@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_products_between_kernels_of_one_thread(library: Library, num_threads: int) -> None:
    """Fewer panels than threads, after a kernel for which all but one wait and fetch what comes next."""
    width, out = 64, 40
    matrix = PackedMatrix.allocate(WeightFormat.BF16, out, width)
    matrix.write_rows(0, torch.eye(out, width))
    x, weight = np.arange(width, dtype=np.float32)[None], np.ones(width, np.float32)
    normed, result = np.zeros((1, width), np.uint16), np.full((1, out), np.nan, np.float32)
    norm = RmsNormArgs(x.ctypes.data, weight.ctypes.data, normed.ctypes.data, Quantized(), width, 0, 1e-6, Rows.TOKENS)
    product = LinearArgs(
        matrix.record(), None, normed.ctypes.data, Quantized(), result.ctypes.data, Epilogue.STORE, Rows.TOKENS
    )
    program = Program(library)
    for _ in range(20):
        program.add("rms_norm", norm)
        program.add("linear_bf16", product)
    arrays = (ints(0), ints(0), ints(0), ints(0, 1), np.zeros((1, 1), np.int32), ints())
    program.run(library.new_pool(num_threads), make_step(*arrays))
    expected = (normed.astype(np.uint32) << 16).view(np.float32)[:, :out]
    assert np.array_equal(result, expected)


def test_unknown_and_missing_instruction_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="TOKENMILL_ISA must be one of avx512_bf16"):
        isas.choose_isa("sse9")
    monkeypatch.setattr(isas, "processor_features", frozenset)
    with pytest.raises(ConfigError, match="this processor lacks avx2"):
        isas.choose_isa("avx2")
    assert isas.choose_isa().name == "plain"


def test_buffers_begin_at_huge_pages() -> None:
    large, small = Buffer.allocate(3 * HUGE_PAGE_BYTES), Buffer.allocate(100)
    assert large.address % HUGE_PAGE_BYTES == 0 and small.address % 64 == 0
    array = large.array(np.float32, (10, 10))
    array[:] = 7
    assert array.ctypes.data == large.address and large.array(np.float32)[:100].sum() == 700
