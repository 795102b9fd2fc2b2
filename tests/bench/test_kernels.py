"""The bench of kernels: it runs, and its arithmetic is that of a calculator."""

from __future__ import annotations

import pytest

from tokenmill.bench import kernels
from tokenmill.bench.kernels import Ceilings, run


def test_the_floor_is_the_slower_of_memory_and_arithmetic() -> None:
    machine = Ceilings(50e9, 400e9, 800e9)
    assert machine.floor_s(100e9, 400e9, integers=False) == (2.0, "memory")
    assert machine.floor_s(10e9, 800e9, integers=False) == (2.0, "compute")
    assert machine.floor_s(10e9, 800e9, integers=True) == (1.0, "compute")


def test_every_kernel_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = {"hidden": 128, "inner": 256, "heads": 4, "kv_heads": 2, "head_dim": 64, "vocab": 1000}
    monkeypatch.setitem(kernels.SHAPES, "tiny", tiny)  # type: ignore[arg-type]
    for name, value in (("COLD_BYTES", 100_000), ("PROBE_BYTES", 1_000_000), ("PROBE_ROUNDS", 1000)):
        monkeypatch.setattr(kernels, name, value)
    result = run("tiny", rows=(1, 5), num_threads=2, repeat=1)
    found = {(row["kernel"], row["size"]) for row in result["kernels"]}
    assert {name.split()[0] for name, _ in found} == {"linear", "attention", "rms_norm", "rope_kv", "choose"}
    assert {("linear int4 down", "5 rows"), ("attention int8", "8 × 1 of 1024")} <= found
    assert all(row["share"] > 0 and row["microseconds"] > 0 for row in result["kernels"])
    (one,) = (row for row in result["kernels"] if (row["kernel"], row["size"]) == ("linear bf16 down", "1 rows"))
    assert one["gigabytes_per_s"] == pytest.approx(256 * 128 * 2 / one["microseconds"] / 1e3)
    assert one["gigaops_per_s"] == pytest.approx(2 * 256 * 128 / one["microseconds"] / 1e3)
