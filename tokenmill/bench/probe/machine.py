"""The probe: measures a device of this machine and writes it down as ``perf/hardware`` describes one."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import torch

from tokenmill.bench.machine import machine_record
from tokenmill.bench.probe import cpu, cuda, disk, exchange
from tokenmill.bench.probe.samples import Samples
from tokenmill.core.errors import ConfigError
from tokenmill.kernels.cpu.build import NoCompiler
from tokenmill.kernels.cpu.isa import processor_family
from tokenmill.kernels.cpu.library import load
from tokenmill.launch import available_cores
from tokenmill.perf.hardware import ARITHMETIC, Hardware
from tokenmill.perf.hardware.catalogue import lookup
from tokenmill.perf.hardware.checks import figures

REPEAT, QUICK_REPEAT = 7, 3
DISK_CHUNKS, QUICK_DISK_CHUNKS = 32, 4
BUSY_SHARE = 0.5
"""A load average above this share of the cores, before anything is measured, is others' work."""
DATASHEET = ("memory_bytes_per_s", "host_link_bytes_per_s")
"""Figures besides the peaks that stand in a datasheet; whatever else is measured is an observation."""

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Probe:
    """What was measured, and what the catalogue says of the same device."""

    hardware: Hardware
    samples: dict[str, Samples]
    datasheet: Hardware | None
    left_out: tuple[str, ...]
    """What could not be measured, and why."""
    seconds: float

    def shares(self) -> dict[str, tuple[float, float, float]]:
        """Figure → (measured, datasheet, measured as a share of it), where the device is known."""
        known = figures(self.datasheet) if self.datasheet else {}
        return {
            name: (value, known[name], value / known[name])
            for name, value in figures(self.hardware).items()
            if name in known
        }

    def as_dict(self) -> dict[str, Any]:
        """For a result file."""
        return {
            "hardware": asdict(self.hardware),
            "measured": {name: samples.as_dict() for name, samples in self.samples.items()},
            "datasheet": self.datasheet.name if self.datasheet else None,
            "shares": {name: share for name, (_, _, share) in self.shares().items()},
            "left_out": list(self.left_out),
            "seconds": self.seconds,
        }


def run(
    *,
    device: Literal["cpu", "cuda"] = "cpu",
    num_threads: int | None = None,
    quick: bool = False,
    folder: Path = Path(),
    progress: Progress = lambda name: None,
) -> Probe:
    """Measure this machine's processor, or its current CUDA device, and its disk under ``folder``.

    Raises:
        ConfigError: there is no such device.
    """
    began = time.perf_counter()
    repeat = QUICK_REPEAT if quick else REPEAT
    left_out: list[str] = []
    if device == "cuda":
        if not torch.cuda.is_available():
            raise ConfigError("device: PyTorch sees no CUDA device here; cpu can be probed")
        samples, description = cuda.measure(repeat, cuda.QUICK if quick else cuda.FULL, progress), cuda.describe()
        left_out.append("all-reduce: not measured between CUDA devices")
    else:
        num_threads = num_threads or available_cores()
        description = _describe_processor(num_threads)
        samples = _processor(num_threads, repeat, quick, left_out, progress)
        samples |= _try(lambda: exchange.all_reduce(repeat), "all-reduce", left_out, progress)
    chunks = QUICK_DISK_CHUNKS if quick else DISK_CHUNKS
    samples |= _try(
        lambda: {"disk_read_bytes_per_s": disk.read_rate(folder, chunks, QUICK_REPEAT)}, "disk", left_out, progress
    )
    hardware = make_hardware(samples, description)
    return Probe(hardware, samples, lookup(hardware.name), tuple(left_out), time.perf_counter() - began)


def make_hardware(samples: dict[str, Samples], description: dict[str, Any]) -> Hardware:
    """Ceilings are the best of their runs, and stand where a datasheet's do; everything else is observed."""
    ceilings: dict[str, Any] = {name: samples[name].best for name in DATASHEET if name in samples}
    peaks = {name: samples[f"peaks.{name}"].best for name in ARITHMETIC if f"peaks.{name}" in samples}
    observed = {name: each.figure() for name, each in samples.items() if name not in DATASHEET and "." not in name}
    today = datetime.now(UTC).date().isoformat()
    return Hardware(
        **description,
        **ceilings,
        peaks=peaks,
        observed=observed,
        source=f"tokenmill probe, {today}, {platform.system()} {platform.release()}",
        confidence="measured",
    )


def _processor(
    num_threads: int, repeat: int, quick: bool, left_out: list[str], progress: Progress
) -> dict[str, Samples]:
    try:
        library = load(on_build=lambda: progress("compiling the kernels"))
    except NoCompiler as error:
        left_out.append(f"int8, launch latency, shares of the kernels: {error}")
        samples = cpu.with_torch(num_threads, repeat, progress)
    else:
        samples = cpu.with_kernels(library, num_threads, repeat, quick, progress)
    progress("products in fp32")
    samples["peaks.fp32"] = cpu.torch_product(torch.float32, num_threads, repeat)
    bandwidths = (samples[f"memory_bytes_per_s_threads_{count}"] for count in cpu.thread_counts(num_threads))
    return samples | {"memory_bytes_per_s": max(bandwidths, key=lambda each: each.best)}


def _describe_processor(num_threads: int) -> dict[str, Any]:
    record = machine_record()
    note = f"{num_threads} threads of {record['cores']} cores"
    if record["load_average"] > BUSY_SHARE * record["cores"]:
        note += f"; others used the machine (load average {record['load_average']}), so that it can do more"
    vendor = next((name for name in ("amd", "intel") if name in record["cpu"].lower()), platform.machine())
    return {
        "name": record["cpu"],
        "kind": "cpu",
        "vendor": vendor,
        "family": processor_family(),
        "memory_bytes": float(min([record["memory_bytes"], *_group_limit()])),
        "note": note,
    }


def _group_limit() -> list[int]:
    """What the control group at the root of what this process sees allows; empty where it sets no limit."""
    try:
        text = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        return []
    return [int(text)] if text.isdigit() else []


def _try(
    measure: Callable[[], dict[str, Samples]], what: str, left_out: list[str], progress: Progress
) -> dict[str, Samples]:
    """What ``measure`` finds; where this machine does not let it, a line in ``left_out``."""
    progress(what)
    try:
        return measure()
    except (OSError, RuntimeError) as error:
        left_out.append(f"{what}: {error}")
        return {}
