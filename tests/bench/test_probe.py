"""The probe: every figure is measured, written, and read back as a device; what cannot be measured is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.support import call
from tokenmill.bench import kernels
from tokenmill.bench.probe import cpu, disk, exchange, machine, run
from tokenmill.bench.probe.machine import Probe, make_hardware
from tokenmill.bench.probe.samples import Samples, rates, times
from tokenmill.core.errors import ConfigError
from tokenmill.kernels.cpu.build import NoCompiler
from tokenmill.perf.hardware import Figure, find, load

RECORD = {"cpu": "Some CPU", "cores": 2, "memory_bytes": 8 * 2**30}
Capsys = pytest.CaptureFixture[str]


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes at which the whole probe takes a moment; no processes are started."""
    sizes: list[tuple[Any, str, int]] = [
        (kernels, "COLD_BYTES", 100_000),
        (kernels, "PROBE_BYTES", 1_000_000),
        (kernels, "PROBE_ROUNDS", 1000),
        (cpu, "MATRIX", 128),
        (cpu, "CALLS", 10),
        (cpu, "TORCH_READ_BYTES", 1_000_000),
        (disk, "CHUNK_BYTES", 65_536),
    ]
    for module, name, value in sizes:
        monkeypatch.setattr(module, name, value)

    def alone(repeat: int) -> dict[str, Samples]:
        raise RuntimeError("no loopback interface")

    monkeypatch.setattr(exchange, "all_reduce", alone)


def test_samples_know_what_is_best() -> None:
    assert (Samples((1.0, 4.0, 2.0), "").best, Samples((1.0, 4.0, 2.0), "", seconds=True).best) == (4.0, 1.0)
    assert rates(10.0, [2.0, 5.0], "").values == (5.0, 2.0)
    assert Samples((5.0, 20.0), "").share_of(10.0).values == (0.5, 1.0)
    figure = Samples((1.0, 4.0, 2.0), "how").figure()
    assert figure == Figure(2.0, "how", "measured", low=1.0, high=4.0)
    assert Samples((3.0, 1.0, 2.0), "", seconds=True).figure().value == 1.0
    called: list[int] = []
    assert len(times(lambda: called.append(1), 3)) == 3
    assert len(called) == 4, "one to warm up"


def test_long_calls_are_made_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tokenmill.bench.probe.samples.ENOUGH_S", 0.0)
    assert len(times(lambda: None, 9)) == 3


def test_thread_counts() -> None:
    assert [cpu.thread_counts(n) for n in (1, 2, 3, 8, 12)] == [[1], [1, 2], [1, 2, 3], [1, 2, 4, 8], [1, 2, 4, 8, 12]]


def test_ceilings_are_the_best_and_observations_the_median() -> None:
    samples = {
        "memory_bytes_per_s": Samples((10e9, 12e9), ""),
        "peaks.bf16": Samples((1e12, 3e12, 2e12), ""),
        "launch_latency_s": Samples((3e-6, 1e-6, 2e-6), "", seconds=True),
    }
    what = {"name": "Xeon 6980P", "kind": "cpu", "vendor": "intel", "family": "amx", "memory_bytes": 1e11}
    hardware = make_hardware(samples, what)
    assert (hardware.memory_bytes_per_s, dict(hardware.peaks)) == (12e9, {"bf16": 3e12})
    assert set(hardware.observed) == {"launch_latency_s"} and hardware.observed["launch_latency_s"].value == 1e-6
    shares = Probe(hardware, samples, find("Xeon 6980P"), (), 1.0).shares()
    assert shares["memory_bytes_per_s"] == (12e9, 844e9, 12 / 844)
    assert "launch_latency_s" not in shares


@pytest.mark.usefixtures("tiny")
def test_this_machine_is_measured_written_and_read_back(capsys: Capsys, tmp_path: Path) -> None:
    file = tmp_path / "made" / "here.toml"
    done = call(capsys, "probe", "--quick", "--num-threads", 2, "--folder", tmp_path, "--output", file, "--json")
    report = json.loads(done.out)
    hardware = load(file)
    assert report["hardware"]["peaks"] == dict(hardware.peaks)
    assert set(hardware.peaks) == {"fp32", "bf16", "int8"}
    by_threads = [report["measured"][f"memory_bytes_per_s_threads_{count}"]["best"] for count in (1, 2)]
    assert hardware.memory_bytes_per_s == max(by_threads)
    assert {
        "memory_bytes_per_s_threads_1", "gemm_peak_share_bf16", "gemm_bandwidth_share_int4", "launch_latency_s",
        "kernel_floor_s", "disk_read_bytes_per_s",
    } <= set(hardware.observed)  # fmt: skip
    assert all(figure.value > 0 for figure in hardware.observed.values())
    assert report["left_out"] == ["all-reduce: no loopback interface"]
    assert all(one["best"] > 0 and one["how"] and one["runs"] >= 3 for one in report["measured"].values())
    assert [path.name for path in tmp_path.iterdir()] == ["made"], "the file that was read is gone"


@pytest.mark.usefixtures("tiny")
def test_a_busy_machine_is_noted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    notes = {}
    for load_average in (0.1, 5.0):
        monkeypatch.setattr(machine, "machine_record", lambda busy=load_average: RECORD | {"load_average": busy})
        notes[load_average] = run(num_threads=1, quick=True, folder=tmp_path).hardware.note
    assert notes[0.1] == "1 threads of 2 cores"
    assert "others used the machine (load average 5.0)" in notes[5.0]


@pytest.mark.usefixtures("tiny")
def test_the_table_has_every_figure(capsys: Capsys, tmp_path: Path) -> None:
    done = call(capsys, "probe", "--quick", "--num-threads", 1, "--folder", tmp_path)
    for name in ("peaks.int8", "memory_bytes_per_s_threads_1", "disk_read_bytes_per_s"):
        assert name in done.out
    assert "left out: all-reduce" in done.err


@pytest.mark.usefixtures("tiny")
def test_without_a_compiler_pytorch_measures(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def none(**_: object) -> None:
        raise NoCompiler("no C++ compiler found")

    monkeypatch.setattr("tokenmill.bench.probe.machine.load", none)
    found = run(num_threads=1, quick=True, folder=tmp_path)
    assert set(found.hardware.peaks) == {"fp32", "bf16"}
    assert found.hardware.memory_bytes_per_s > 0
    assert "launch_latency_s" not in found.hardware.observed
    assert any("no C++ compiler found" in reason for reason in found.left_out)


def test_a_disk_that_cannot_be_written_to(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        disk.read_rate(tmp_path / "absent", 1, 1)


def test_a_file_system_without_direct_reads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(disk, "CHUNK_BYTES", 65_536)
    monkeypatch.delattr("os.O_DIRECT")
    found = disk.read_rate(tmp_path, 2, 2)
    assert found.best > 0 and "POSIX_FADV_DONTNEED" in found.how


@pytest.mark.slow  # on a busy machine two processes take long to import PyTorch
def test_two_processes_sum() -> None:
    found = exchange.all_reduce(1)
    assert 1e-7 < found["all_reduce_latency_s"].best < 1
    assert found["all_reduce_bytes_per_s"].best > 1e6


def test_processes_that_do_not_come_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "TIMEOUT_S", 0)
    with pytest.raises(RuntimeError, match="no all-reduce within 0 s"):
        exchange.all_reduce(1)


def test_no_such_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigError, match="no CUDA device"):
        run(device="cuda")


def test_the_catalogue_is_listed_and_one_device_told(capsys: Capsys) -> None:
    listed = call(capsys, "hardware").out
    assert "H200-SXM-141GB" in listed and "4,800" in listed
    one = call(capsys, "hardware", "h200 sxm").out
    assert "150.8 GB" in one and "gemm_peak_share_bf16" in one and "aiconfigurator systems/h200_sxm.yaml" in one
    (told,) = json.loads(call(capsys, "hardware", "h200 sxm", "--json").out)["hardware"]
    assert told["memory_bytes"] == 143_771 * 2**20
    unknown = call(capsys, "hardware", "h2000")
    assert unknown.code == 1 and "did you mean" in unknown.err
