"""What is usually wrong with a table of hardware, found from the figures themselves.

*Sparse peaks.* A peak with structured sparsity is twice the dense one. Within an architecture the ratios between the
types are fixed by the silicon (a tensor core does so many products a cycle of each), so a doubled figure stands out:
L40S FP8 at 1466 Tflop/s is four times its bf16, where Ada does twice; MI300X bf16 at 2615 is sixteen times its fp32,
where CDNA3 does eight. GeForce cards halve the products that are summed in 32 bits, so there int8 is four times bf16.

*GB and GiB.* Memory is built in powers of two, so a driver never reports a multiple of a thousand million bytes, and
never more than the number on the box in GiB. The two differ by 7.4 %.

*Both directions.* A link's figure that is twice what its generation carries one way is the sum of both.

A figure that differs from the catalogue's for the same device by exactly these factors is reported too. Nothing is
corrected; a device that is right all the same names the field under ``confirmed``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from tokenmill.perf.hardware.spec import NUMBERS, Hardware

GB, GIB = 1e9, 2.0**30
SLACK = 1.1
"""Ratios are rounded in datasheets, and clocks differ between products of one family."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A figure that looks wrong, where it stands and why."""

    file: str
    device: str
    field: str
    value: object
    problem: str

    def __str__(self) -> str:
        value = f"{self.value:.6g}" if isinstance(self.value, float) else self.value
        return f"{self.file}: {self.device}: {self.field} = {value} {self.problem}"


@dataclass(frozen=True, slots=True)
class _Ratios:
    """Peaks of an architecture, each as a multiple of another; None where it has no units for the type."""

    bf16_to_fp32: float
    fp8_to_bf16: float | None = None
    int8_to_bf16: float | None = None
    fp4_to_fp8: float | None = None


_FAMILIES = {
    "volta": _Ratios(8),
    "turing": _Ratios(8, None, 2),
    "ampere": _Ratios(16, None, 2),
    "ampere-rtx": _Ratios(4, None, 2),
    "hopper": _Ratios(14.8, 2, 2),
    "ada": _Ratios(4, 2, 2),
    "blackwell": _Ratios(32, 2, 2, 3.1),
    "blackwell-rtx": _Ratios(4, 2, 2, 2),
    "cdna2": _Ratios(4, None, 1),
    "cdna3": _Ratios(8, 2, 2),
    "cdna4": _Ratios(16, 2, 2, 2),
    "xe2": _Ratios(8, None, 2),
    "tpu": _Ratios(math.inf, 2, 2),
    "neuron": _Ratios(4, 2, 2),
    "apple": _Ratios(2),
    "amx": _Ratios(17, None, 2),
    "avx512": _Ratios(2.1, None, 2),
    "neoverse": _Ratios(2.1, None, 2),
}
_ANY_FAMILY = _Ratios(math.inf, 2, 4, 4)
_GEFORCE = re.compile(r"rtx-?[345]0[5-9]0", re.IGNORECASE)
_GEFORCE_RATIOS = {
    "ampere-rtx": _Ratios(2, None, 4),
    "ada": _Ratios(2, 2, 4),
    "blackwell-rtx": _Ratios(2, 2, 4, 4),
}

_LINKS = {
    "NVLink2": 150e9,
    "NVLink3": 300e9,
    "NVLink4": 450e9,
    "NVLink5": 900e9,
    "PCIe3": 16e9,
    "PCIe4": 32e9,
    "PCIe5": 64e9,
    "PCIe6": 128e9,
}
"""Bytes per second of one device in one direction (PCIe: 16 lanes)."""


def check(
    devices: Iterable[Hardware], file: str, known: Callable[[str], Hardware | None] = lambda name: None
) -> tuple[Finding, ...]:
    """What looks wrong with ``devices``, which stand in ``file``.

    ``known``: the catalogue's entry of a name, if it has one, to compare with.
    """
    return tuple(
        Finding(file, device.name, field, value, problem)
        for device in devices
        for field, value, problem in _problems(device, known(device.name))
    )


Problem = tuple[str, object, str]
"""Field, value, what is wrong with it."""


def _problems(device: Hardware, known: Hardware | None) -> Iterator[Problem]:
    wrong = [*_unusable(device), *_unsourced(device), *_observations(device)]
    yield from wrong
    # What was measured here was neither printed with sparsity nor in the wrong unit.
    if not wrong and device.confidence != "measured":
        yield from (problem for problem in _suspicious(device, known) if problem[0] not in device.confirmed)


def _suspicious(device: Hardware, known: Hardware | None) -> Iterator[Problem]:
    yield from _sparse(device)
    yield from _memory(device)
    yield from _links(device)
    if known is not None:
        yield from _against(device, known)


def _unusable(device: Hardware) -> Iterator[Problem]:
    """Figures that are no figures."""
    for field, value in figures(device).items():
        if not (math.isfinite(value) and value > 0):
            yield field, value, "must be a positive number"
    if not device.peaks:
        yield "peaks", "{}", "at least one peak is needed"
    if device.power_limit_w and device.tdp_w and device.power_limit_w > device.tdp_w:
        yield "power_limit_w", device.power_limit_w, f"is above tdp_w, {device.tdp_w}"


def figures(device: Hardware) -> dict[str, float]:
    """Every figure of the datasheet by its field's name."""
    found = {name: value for name in NUMBERS if (value := getattr(device, name)) is not None}
    found |= {f"peaks.{name}": value for name, value in device.peaks.items()}
    if device.link is not None:
        found |= {"link.bytes_per_s": device.link.bytes_per_s, "link.latency_s": device.link.latency_s}
    return found


def _unsourced(device: Hardware) -> Iterator[Problem]:
    if not device.source.strip():
        yield "source", repr(device.source), "says where the figures are from, and is missing"


def _sparse(device: Hardware) -> Iterator[Problem]:
    """Peaks above what the architecture's ratios allow, or far below: then the other one is wrong."""
    ratios = _FAMILIES.get(device.family, _ANY_FAMILY)
    if _GEFORCE.match(device.name):
        ratios = _GEFORCE_RATIOS.get(device.family, ratios)
    who = "any family" if ratios is _ANY_FAMILY else f"the {device.family} family"
    half = "bf16" if "bf16" in device.peaks else "fp16"
    pairs = (
        (half, "fp32", ratios.bf16_to_fp32),
        ("fp16", "bf16", 1.0),
        ("fp8", half, ratios.fp8_to_bf16),
        ("int8", half, ratios.int8_to_bf16),
        ("fp4", "fp8", ratios.fp4_to_fp8),
    )
    for name, other, most in pairs:
        if name not in device.peaks or other not in device.peaks:
            continue
        value, ratio = device.peaks[name], device.peaks[name] / device.peaks[other]
        if most is None:
            yield f"peaks.{name}", value, f"is given, and {who} has no units for {name}"
        elif ratio > most * SLACK:
            yield f"peaks.{name}", value, f"is {ratio:.3g} × {other}; {who} does {most:g} ×: is it with sparsity?"
        elif ratio < most / 1.8 and name in ("fp8", "int8", "fp4") and ratios is not _ANY_FAMILY:
            text = f"is only {ratio:.3g} × {other}; {who} does {most:g} ×: one of the two is wrong, or with sparsity"
            yield f"peaks.{name}", value, text


def _memory(device: Hardware) -> Iterator[Problem]:
    if device.kind == "cpu":
        return
    found, nominal = device.memory_bytes, device.nominal_memory_gb
    if found % GB == 0:
        gib = found / GB * GIB
        text = f"is {found / GB:g} GB to the byte, and memory comes in GiB: {found / GB:g} GiB are {gib:.0f}"
        yield "memory_bytes", found, text
    elif nominal is not None and found > nominal * GIB:
        yield "memory_bytes", found, f"is more than the {nominal:g} GiB on the box: were GB taken for GiB twice?"
    elif nominal is not None and found < 0.6 * nominal * GB:
        yield "memory_bytes", found, f"is far less than the {nominal:g} GB on the box"


def _links(device: Hardware) -> Iterator[Problem]:
    if device.link is not None:
        name = device.link.generation
        most = _LINKS.get(name)
        if most is not None and device.link.bytes_per_s > most * SLACK:
            text = f"{name} carries {most:g} in one direction: is this the sum of both?"
            yield "link.bytes_per_s", device.link.bytes_per_s, text


def _observations(device: Hardware) -> Iterator[Problem]:
    """A share of a ceiling above 1 was measured in a cache, or against the wrong ceiling."""
    for name, figure in device.observed.items():
        if not figure.source.strip():
            yield f"observed.{name}.source", repr(figure.source), "says who measured it, and is missing"
        if not (math.isfinite(figure.value) and figure.value > 0):
            yield f"observed.{name}.value", figure.value, "must be a positive number"
        elif "_share" in name and figure.value > 1:
            yield f"observed.{name}.value", figure.value, "is a share of a ceiling and above 1"


def _against(device: Hardware, known: Hardware) -> Iterator[Problem]:
    """Figures that differ from a known device's by a telling factor."""
    expected = figures(known)
    for field, value in figures(device).items():
        if field not in expected or field == "price_per_hour":
            continue
        ratio = value / expected[field]
        there = f"{known.name} has {expected[field]:g}"
        if field.startswith("peaks.") and _close(ratio, 2):
            yield field, value, f"{there}: is this the peak with sparsity?"
        elif field.endswith("link_bytes_per_s") or field == "link.bytes_per_s":
            if _close(ratio, 2):
                yield field, value, f"{there}: is this the sum of both directions?"
        elif field.startswith("memory_") and (_close(ratio, GIB / GB) or _close(ratio, GB / GIB)):
            yield field, value, f"{there}: were GB and GiB taken for each other?"


def _close(ratio: float, factor: float) -> bool:
    return abs(ratio / factor - 1) < 0.01
